"""What a run needs, looked at before its folder is claimed: a method that there is, its inputs, and its samples."""

from __future__ import annotations

from bird.errors import EmptyCellError, UsageError
from bird.methods import METHODS, Hyperparameters, Method, build_method
from bird.students import STUDENTS, last_stage, require_stages
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.data import RunData
from bird_pipelines.marks import few
from bird_pipelines.progress import tell

__all__ = ["hyperparameters", "make_method", "require_samples", "tell_empty_cells"]


def hyperparameters(config: RunConfig) -> Hyperparameters:
    """The run's, as the methods take them."""
    return Hyperparameters(
        alpha=config.alpha,
        tau=config.tau,
        lambda_=config.lambda_,
        mu1=config.mu1,
        mu2=config.mu2,
        fitnet_weight=config.fitnet_weight,
        at_beta=config.at_beta,
        mfd_weight=config.mfd_weight,
        ad_weight=config.ad_weight,
        ad_lr=config.ad_lr,
        ad_every=max(config.ad_every, 1),
        dro_step=config.dro_step,
        average=None if config.average < 0 else config.average,
        balance=config.balance,
        offsets_from=config.offsets_from,
        shrink=config.shrink,
        soft_max=config.soft_max,
        feedback_every=config.feedback_every,
        feedback_through=config.feedback_through,
    )


def make_method(config: RunConfig, data: RunData) -> Method:
    """The run's method. Raises UsageError if it needs a teacher and the run has no cache."""
    method = build_method(config.method, hyperparameters(config), len(data.group_names))
    method.recompute = config.recompute
    if method.stages and config.student in STUDENTS:
        require_stages(config.student)
    if method.meta and config.feedback_through == "last":
        last_stage(config.student)
    if method.logits and config.head != "plain" and data.logits is not None:
        raise UsageError(
            where=f"--head {config.head}",
            found="a cache with the teacher's logits",
            wanted="one without: a head is trained where there are none",
            fix="leave --head out, or use a cache without the layer `logits`",
        )
    if data.features is None and (method.features or method.logits or method.stages):
        raise UsageError(
            where=f"--method {config.method}",
            found="no cache",
            wanted="a teacher's features",
            fix="use `bird distill --cache CACHE`, or --method baseline",
        )
    return method


def require_samples(config: RunConfig, method: Method, data: RunData) -> None:
    """Raise UsageError for a split that the method reads and that has no sample, EmptyCellError, by name, for a (class,
    group) cell that it needs and that has none."""
    limited = "" if config.limit is None else f" (--limit {config.limit})"
    for split in ("train", *(["meta"] if method.meta else [])):
        if not len(data.rows(split)):
            raise UsageError(
                where=f"--method {config.method}",
                found=f"no sample in the {split} split{limited}",
                wanted="some, for the meta step" if split == "meta" else "some, to learn from",
                fix="raise --limit"
                if limited
                else "use a method without a meta step"
                if split == "meta"
                else "add some",
            )
    for split, cells in data.empty_cells().items():
        if split in method.cells:
            others = [name for name in METHODS if not build_method(name, Hyperparameters(), 2).cells]
            raise EmptyCellError(
                where=f"--method {config.method}",
                found=f"no {split} sample of {few(cells)}{limited}",
                wanted=f"a {split} sample of every class in every group: {method.cells[split]}",
                fix=("raise --limit, " if limited else "add such samples, ")
                + f"leave out the class or the group, or use a method that does without ({', '.join(others)})",
            )


def tell_empty_cells(data: RunData) -> None:
    """Say on stderr which cells are empty: what trains without them says nothing of them. run.json records it."""
    for split, cells in data.empty_cells().items():
        tell(f"warning: no {split} sample of {few(cells)}; run.json records it")

"""What a run needs, looked at before its folder is claimed: a method that there is, its inputs, and its samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bird.errors import EmptyCellError, UsageError
from bird.methods import METHODS, Hyperparameters, Method, build_method
from bird.own import Part
from bird.students import STUDENTS, Student, last_stage, require_stages
from bird_cache.order import slices
from bird_pipelines.config import RunConfig, Training, Weights
from bird_pipelines.distilling.data import RunData
from bird_pipelines.marks import few
from bird_pipelines.progress import tell

__all__ = [
    "hyperparameters",
    "make_method",
    "require_groups",
    "require_meta_to_stop",
    "require_samples",
    "required_method",
    "tell_empty_cells",
    "tell_student",
]


def hyperparameters(weights: Weights) -> Hyperparameters:
    """The run's, as the methods take them."""
    given = dataclasses.asdict(weights)
    usual = {"average": None if weights.average < 0 else weights.average, "ad_every": max(weights.ad_every, 1)}
    return Hyperparameters(**{**given, **usual})


def make_method(
    name: str,
    weights: Weights,
    data: RunData,
    student: str = "adapter",
    *,
    head: str = "plain",
    recompute: bool = False,
    part: Part | None = None,
) -> Method:
    """The method of that name, or the user's own `part`. `head` is how the teacher's head is trained where it has none.
    Raises UsageError if it needs a teacher and there is no cache, or for a head where there are logits."""
    method = build_method(name, hyperparameters(weights), len(data.group_names), part)
    method.recompute = recompute
    if method.stages and student in STUDENTS:
        require_stages(student)
    if method.meta and weights.feedback_through == "last" and student in STUDENTS:
        last_stage(student)
    if method.logits and head != "plain" and data.logits is not None:
        raise UsageError(
            where=f"--head {head}",
            found="a cache with the teacher's logits",
            wanted="one without: a head is trained where there are none",
            fix="leave --head out, or use a cache without the layer `logits`",
        )
    if data.features is None and (method.features or method.logits or method.stages):
        raise UsageError(
            where=f"--method {name}",
            found="no cache",
            wanted="a teacher's features",
            fix="use `bird distill --cache CACHE`, or --method baseline",
        )
    return method


def required_method(config: RunConfig, data: RunData) -> Method:
    """The run's method, where all that it needs is there. Raises UsageError and EmptyCellError."""
    method = make_method(
        config.method,
        config.weights,
        data,
        config.student,
        head=config.training.head,
        recompute=config.place.recompute,
        part=config.part("method"),
    )
    require_samples(config.method, method, data, config.source.limit)
    require_meta_to_stop(config.training, data)
    require_feedback(config, method, len(data.rows("train")))
    return method


def require_feedback(config: RunConfig, method: Method, rows: int) -> None:
    """Raise UsageError for feedback so seldom that no step of the run has any."""
    every, training = config.weights.feedback_every, config.training
    each = sum(1 for _ in slices(rows, training.batch_size))
    first, end = training.warmup * each, training.epochs * each
    if method.meta and every > 1 and first < end and -(-first // every) * every >= end:
        raise UsageError(
            where=f"--feedback-every {every}",
            found=f"{end - first} steps after the warmup ({each} an epoch), and feedback in none of them",
            wanted=f"at most {end - first}",
            fix="lower it, or train longer",
        )


def require_groups(name: str, method: Method, data: RunData) -> None:
    """Raise UsageError for feedback of one group. (`BirdClassifier` may be given no groups, as scikit-learn wants it.)"""
    if "meta" in method.cells and len(data.group_names) < 2:
        raise UsageError(
            where=f"--method {name}",
            found=f"one group ({few(data.group_names)})",
            wanted="two groups or more: the feedback compares them",
            fix="use a cache with several groups, or a method without feedback",
        )


def require_samples(name: str, method: Method, data: RunData, limit: int | None = None) -> None:
    """Raise UsageError for a split that the method of that name reads and that has no sample, EmptyCellError, by name, for
    a (class, group) cell that it needs and that has none. `limit` is what the rows were limited to."""
    limited = "" if limit is None else f" (--limit {limit})"
    for split in ("train", *(["meta"] if method.meta else [])):
        if not len(data.rows(split)):
            raise UsageError(
                where=f"--method {name}",
                found=f"no sample in the {split} split{limited}",
                wanted="at least one sample, for the meta step"
                if split == "meta"
                else "at least one sample to train on",
                fix="raise --limit"
                if limited
                else "use a method without a meta step"
                if split == "meta"
                else "add some",
            )
    for split, cells in data.empty_cells().items():
        if split in method.cells:
            others = [each for each in METHODS if not build_method(each, Hyperparameters(), 2).cells]
            raise EmptyCellError(
                where=f"--method {name}",
                found=f"no {split} sample of {few(cells)}{limited}",
                wanted=f"a {split} sample of every class in every group: {method.cells[split]}",
                fix=("raise --limit, " if limited else "add such samples, ")
                + f"leave out the class or the group, or use a method that does without ({', '.join(others)})",
            )


def require_meta_to_stop(training: Training, data: RunData) -> None:
    """Raise UsageError for an early stop where there is no meta sample to judge by."""
    if training.early_stop and not len(data.rows("meta")):
        raise UsageError(
            where=f"--early-stop {training.early_stop}",
            found="no sample in the meta split",
            wanted="meta rows: their balanced accuracy says which epoch is best",
            fix="leave it out, or put rows into the meta split",
        )


def tell_empty_cells(data: RunData) -> None:
    """Say on stderr which cells are empty: what trains without them says nothing of them. run.json records it."""
    for split, cells in data.empty_cells().items():
        tell(f"warning: no {split} sample of {few(cells)}; run.json records it")


def tell_student(student: Student, training: Training, out: Path) -> None:
    """Say on stderr, at the start of a run, where an image student's weights are from, and, of a module of the user's, which
    layer was taken for the last one."""
    if student.input != "image" or (out / "checkpoint.json").exists():
        return
    if student.own is not None and student.head_name:
        tell(
            f"{student.architecture}: the features are the input of its last layer {student.head_name} ({student.dim})"
        )
    if student.started is not None:
        left = ", ".join(student.started["left_as_drawn"])
        tell(
            f"{student.architecture} starts from {student.started['from']}"
            + (f"; left as drawn: {left}" if left else "")
        )
    elif training.start_from is None and (student.own is None or "weights" not in student.own):
        tell(f"{student.architecture} starts from scratch; --init pretrained or --init FILE starts it from weights")

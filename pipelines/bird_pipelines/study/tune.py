"""`bird tune`: a method's weights chosen on data that is neither trained on nor tested on.

The meta split is halved (by class and group, by the search's seed): one half feeds the meta step, on the other a candidate
is judged. Its mean-DEO, averaged over seeds, is minimised; a candidate whose AUROC falls below the floor is not feasible.
A candidate with a trivial student (`bird.measuring.caveats`), whose gap says nothing, is not feasible either.
While candidates are compared the test split is not read. At the end the chosen setting is trained with the whole meta split
and scored on test; after that the study is closed.

OUT/study.journal     every candidate, as it is drawn and as it is judged (optuna's journal)
OUT/baseline, OUT/candidates, OUT/final      run folders
OUT/tune.json, OUT/tune.html                 the result, written last
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bird.errors import RunError, UsageError
from bird_cache.files import LOCKS, replace, write_lock
from bird_cache.manifest import flatten
from bird_cache.order import raw
from bird_pipelines import runs
from bird_pipelines.config import CHOOSE, RunConfig
from bird_pipelines.distilling.data import load_data
from bird_pipelines.distilling.many import distill_many
from bird_pipelines.marks import MARK, ONE_SEED, WHAT_TRIVIAL_MEANS, few, reason_of, trivial_seeds

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["SPACES", "Search", "tune"]


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a weight is looked for; `log`: evenly by its logarithm."""

    low: float
    high: float
    log: bool = False


LAMBDA, ALPHA, MU2 = Range(1e-3, 1.0, log=True), Range(0.3, 0.99), Range(1e-4, 1e-1, log=True)
MMD = Range(0.1, 30.0, log=True)
SPACES: Mapping[str, Mapping[str, Range]] = {
    "bkd": {"alpha": Range(0.0, 1.0)},
    "fitnet": {"fitnet_weight": Range(1e-2, 10.0, log=True)},
    "bird": {"lambda": LAMBDA, "alpha": ALPHA, "mu2": MU2},
    "bird-no-meta": {"lambda": LAMBDA, "alpha": ALPHA},
    "bird-offsets": {"alpha": Range(0.0, 0.99), "mu2": MU2, "balance": Range(0.0, 1.0)},
    "bird-plus": {"alpha": Range(0.0, 0.99), "mu2": MU2},  # a teacher as biased as the data is best heard little
    "mfd": {"mfd_weight": MMD},
    "bird+mfd": {"lambda": LAMBDA, "alpha": ALPHA, "mu2": MU2, "mfd_weight": MMD},
}
"""What is chosen, by method."""

FIELDS = {"lambda": "lambda_"}
METRICS = ("auroc", "f1_macro", "accuracy", "mean_deo", "max_deo")


@dataclasses.dataclass(frozen=True)
class Search:
    """How a setting is looked for. `auroc_floor` (x100) takes the place of the baseline's AUROC less `auroc_drop`."""

    trials: int = 24
    per_round: int = 6
    seeds: int = 3
    final_seeds: int = 8
    auroc_drop: float = 1.0
    auroc_floor: float | None = None
    seed: int = 0


def tune(base: RunConfig, search: Search) -> dict[str, Any]:
    """Choose the weights of `base.method` in the folder `base.out` and return what tune.json says. Resumes.

    Raises UsageError for a method that has nothing to choose or a meta split that is too small, RunError if the folder
    holds another study, or one whose test split has been opened and that should go on; whatever `distill_many` raises.
    """
    if base.method not in SPACES:
        raise UsageError(
            where=f"--method {base.method}",
            found="no weight to choose",
            wanted=f"one of {', '.join(SPACES)}",
            fix="train it with `bird distill`",
        )
    if not (base.out / "tune.json").exists():
        require_halves(base, search)
    claim(base, search)
    with write_lock(base.out):
        if not (base.out / "tune.json").exists():
            reference = judge(base.model_copy(update={"method": "baseline"}), search, {0: {}}, "baseline")[0]
            floor = reference["auroc"] - search.auroc_drop if search.auroc_floor is None else search.auroc_floor
            study = open_study(base, search)
            while len(complete(study)) < search.trials:
                one_round(study, base, search, floor)
            conclude(study, base, search, floor, reference)
    return runs.read_json(base.out / "tune.json")


def claim(base: RunConfig, search: Search) -> None:
    """Start a study in `base.out`, or check that the one there is this one; more trials may be asked for until the test
    split has been opened."""
    path = base.out / "search.json"
    identity = {k: v for k, v in base.identity().items() if k not in SPACES[base.method] and k != "seed"}
    asked = {"identity": identity, "search": dataclasses.asdict(search)}
    base.out.mkdir(parents=True, exist_ok=True)
    opened = (base.out / "final").exists()
    if path.exists():
        there, here = flatten(runs.read_json(path)), flatten(asked)
        for field in sorted({*there, *here}):
            if there.get(field) != here.get(field) and (field != "search.trials" or opened):
                raise RunError(
                    where=f"study {base.out}",
                    found=f"{field} = {there.get(field)}" + (", and its test split has been opened" if opened else ""),
                    wanted=f"{field} = {here.get(field)}",
                    fix="choose another --out, or repeat the old settings to resume it",
                )
    elif foreign := [entry.name for entry in base.out.iterdir() if entry.name not in LOCKS]:
        raise RunError(
            where=f"study {base.out}",
            found=f"other files ({foreign[0]})",
            wanted="an empty folder",
            fix="choose another --out",
        )
    runs.write_json(path, asked)


def require_halves(base: RunConfig, search: Search) -> None:
    """Before anything is trained: raise UsageError where the choosing half of meta lacks a (class, group) cell."""
    data = load_data(base.model_copy(update={"choose": search.seed}))
    empty = data.empty_cells().get(CHOOSE, [])
    if empty or not len(data.rows(CHOOSE)):
        raise UsageError(
            where=f"study {base.out}",
            found=f"no sample of {few(empty) or 'any class'} in the choosing half of meta",
            wanted="at least two meta samples in every (class, group) cell",
            fix="use a larger --limit, or a cache with a larger meta split",
        )


def open_study(base: RunConfig, search: Search) -> Study:
    """The study in the folder's journal; a new one begins with the setting that `base` has."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(base.out / "study.journal")))
    study = optuna.create_study(storage=storage, study_name="tune", direction="minimize", load_if_exists=True)
    if not study.trials:
        given = {name: getattr(base, FIELDS.get(name, name)) for name in SPACES[base.method]}
        spans = SPACES[base.method]
        study.enqueue_trial({name: min(max(given[name], span.low), span.high) for name, span in spans.items()})
    return study


def one_round(study: Study, base: RunConfig, search: Search, floor: float) -> None:
    """Draw candidates, train them together, and tell the study. Candidates that were drawn before a kill come first."""
    from optuna.trial import Trial, TrialState

    drawn = [Trial(study, each._trial_id) for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    drawn = [trial for trial in drawn if trial.params.keys() == SPACES[base.method].keys()]
    wanted = min(search.per_round, search.trials - len(complete(study)))
    while len(drawn) < wanted:
        drawn.append(draw(study, base.method, search.seed))
    found = judge(base, search, {trial.number: trial.params for trial in drawn}, "candidates")
    for trial in drawn:
        values = found[trial.number]
        for name in (*METRICS, "deo_floor", "trivial"):
            trial.set_user_attr(name, values[name])
        trial.set_user_attr("shortfall", floor - values["auroc"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.tell(trial, values["mean_deo"])


def draw(study: Study, method: str, seed: int) -> Trial:
    """A new candidate: a pure function of the seed and of what the study holds."""
    import optuna

    number = len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():  # optuna calls constraints experimental
        warnings.simplefilter("ignore")
        study.sampler = optuna.samplers.TPESampler(
            seed=int(raw(seed, 7, number, count=1)[0] % np.uint64(1 << 32)),
            constraints_func=shortfall,
            n_startup_trials=8,
            multivariate=True,
        )
        trial = study.ask()
        for name, span in SPACES[method].items():
            trial.suggest_float(name, span.low, span.high, log=span.log)
    return trial


def shortfall(trial: FrozenTrial) -> tuple[float, float]:
    """How far a candidate's AUROC lies below the floor, and 1 for a trivial student: above 0 it is not feasible."""
    return float(trial.user_attrs["shortfall"]), float(bool(trial.user_attrs.get("trivial")))


def complete(study: Study) -> list[FrozenTrial]:
    """The candidates that have been judged."""
    from optuna.trial import TrialState

    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def judge(
    base: RunConfig, search: Search, settings: Mapping[int, Mapping[str, float]], kind: str
) -> dict[int, dict[str, Any]]:
    """Each setting's metrics on the choosing half, averaged over the seeds, and in words which students are trivial; all
    runs together."""
    configs = [
        base.model_copy(
            update={FIELDS.get(name, name): value for name, value in values.items()}
            | {"seed": seed, "choose": search.seed, "out": base.out / kind / f"{number:03d}-{seed}"}
        )
        for number, values in settings.items()
        for seed in range(search.seeds)
    ]
    infos = distill_many(configs)
    means: dict[int, dict[str, Any]] = {}
    for index, number in enumerate(settings):
        scores = [info["metrics"][CHOOSE] for info in infos[index * search.seeds : (index + 1) * search.seeds]]
        wrong = [each["error"] for each in scores if "error" in each]
        if wrong := wrong or [why for name in METRICS if (why := reason_of(name, scores))]:
            raise RunError(
                where=f"study {base.out}",
                found=f"half of meta cannot be scored: {wrong[0]}",
                wanted="two classes, two groups, and at least two meta samples in every (class, group) cell",
                fix="use a larger --limit, or a cache with a larger meta split",
            )
        means[number] = {name: float(np.mean([each[name] for each in scores])) for name in METRICS}
        means[number]["deo_floor"] = float(np.mean([each["deo_floor"]["mean"] for each in scores]))
        means[number]["trivial"] = trivial_seeds(dict(enumerate(scores)))
    return means


def candidates_of(study: Study) -> list[dict[str, Any]]:
    """The judged candidates: which are feasible, which on the Pareto front of mean-DEO and AUROC, which is chosen. A
    trivial student is neither, whatever its gap."""
    found: list[dict[str, Any]] = [
        {"number": t.number, "setting": dict(t.params), **{name: t.user_attrs[name] for name in METRICS}}
        | {"trivial": t.user_attrs.get("trivial"), "deo_floor": t.user_attrs.get("deo_floor")}
        | {"feasible": max(shortfall(t)) <= 0}
        for t in complete(study)
    ]
    telling = [each for each in found if not each["trivial"]]
    for each in found:
        each["front"] = not each["trivial"] and not any(dominates(other, each) for other in telling)
    feasible = [each for each in found if each["feasible"]]
    best = min(
        feasible or telling or found,
        key=lambda e: (e["mean_deo"], -e["auroc"]) if feasible else (-e["auroc"], 0.0),
    )
    for each in found:
        each["chosen"] = each is best
    return found


def dominates(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a candidate is as good in both and better in one."""
    no_worse = one["mean_deo"] <= other["mean_deo"] and one["auroc"] >= other["auroc"]
    return no_worse and (one["mean_deo"], one["auroc"]) != (other["mean_deo"], other["auroc"])


def conclude(study: Study, base: RunConfig, search: Search, floor: float, reference: Mapping[str, float]) -> None:
    """Train the chosen setting with the whole meta split, score it on test, and write the result."""
    candidates = candidates_of(study)
    chosen = next(each for each in candidates if each["chosen"])
    weights = {FIELDS.get(name, name): value for name, value in chosen["setting"].items()}
    configs = [
        base.model_copy(update=weights | {"seed": seed, "out": base.out / "final" / str(seed)})
        for seed in range(search.final_seeds)
    ]
    tests = [info["metrics"]["test"] for info in distill_many(configs)]
    result = {
        "method": base.method,
        "cache": base.cache,
        "search": dataclasses.asdict(search),
        "space": {name: dataclasses.asdict(span) for name, span in SPACES[base.method].items()},
        "auroc_floor": floor,
        "baseline": dict(reference),
        "candidates": candidates,
        "chosen": chosen,
        "test": summary_of(tests),
        "runs": [str(config.out) for config in configs],
        "report": str(base.out / "tune.html"),
    }
    replace(base.out / "tune.html", render(result).encode())
    runs.write_json(base.out / "tune.json", result)


def summary_of(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (ddof 1) of the test metrics over the seeds; or why they are not there."""
    wrong = [each["error"] for each in tests if "error" in each]
    if wrong := wrong or [why for name in METRICS if (why := reason_of(name, tests))]:
        return {"error": wrong[0]}
    columns = {name: [each[name] for each in tests] for name in METRICS}
    scores = {
        name: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)) if len(v) > 1 else None}
        | ({"undefined": {"std": ONE_SEED}} if len(v) == 1 else {})
        for name, v in columns.items()
    }
    floor = float(np.mean([each["deo_floor"]["mean"] for each in tests]))
    return {**scores, "seeds": len(tests), "deo_floor": floor, "trivial": trivial_seeds(dict(enumerate(tests)))}


def render(result: Mapping[str, Any]) -> str:
    """The page: chosen setting, test figures, Pareto front, all candidates."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from bird_pipelines.reporting.plots import front_plot

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ranked = sorted(result["candidates"], key=lambda each: (not each["feasible"], each["mean_deo"]))
    plot = Markup(front_plot(result["candidates"], result["auroc_floor"], "front"))
    page = environment.get_template("tune.html.j2")
    marks = {"mark": MARK, "what_trivial_means": WHAT_TRIVIAL_MEANS}
    return page.render(**{**result, "candidates": ranked}, plot=plot, metrics=METRICS, **marks)

"""Candidates of `bird tune`: what may be chosen, how it is drawn, how it is judged, which one is best.

A study is a folder with a journal (optuna's) of every candidate, as it is drawn and as it is judged. A candidate is judged
on the half of meta that no training step has seen: by its mean-DEO, where it keeps the floor and no student is trivial.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from bird.errors import DivergedError, EmptyCellError, UsageError
from bird.measuring.seeds import two_level_intervals
from bird.methods.own import AROUND
from bird_cache.order import raw
from bird_pipelines.config import CHOOSE, RunConfig
from bird_pipelines.distilling.requirements import required_method
from bird_pipelines.distilling.training import read
from bird_pipelines.marks import ONE_SEED, few, reason_of, trivial_seeds
from bird_pipelines.progress import tell
from bird_pipelines.study.places import Train

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import TPESampler
    from optuna.trial import FrozenTrial, Trial

__all__ = [
    "BASELINE",
    "FIELDS",
    "FLOORS",
    "METRICS",
    "SPACES",
    "Range",
    "Search",
    "Space",
    "candidates_of",
    "look",
    "require_halves",
    "run_of",
    "space_of",
    "summary_of",
]


@final
@dataclasses.dataclass(frozen=True)
class Range:
    """Where a weight is looked for; `log`: evenly by its logarithm."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, Range]
LAMBDA, ALPHA, MU2 = Range(1e-3, 1.0, log=True), Range(0.3, 0.99), Range(1e-4, 1e-1, log=True)
MMD, AVERAGE = Range(0.1, 30.0, log=True), Range(0.0, 0.999)
BASELINE: Space = {"lr": Range(1e-4, 1e-2, log=True), "average": AVERAGE}
"""What is chosen for the baseline, with as many trials, and for a method without a weight."""

FEEDBACK: Space = {"lambda": LAMBDA, "alpha": ALPHA, "mu2": MU2}
ADJUSTED = Range(0.0, 0.99)  # a teacher as biased as the data is best heard little
SPACES: Mapping[str, Space] = {
    "bkd": {"alpha": Range(0.0, 1.0)},
    "fitnet": {"fitnet_weight": Range(1e-2, 10.0, log=True)},
    "at": {"at_beta": Range(1e1, 1e4, log=True)},
    "ad": {"ad_weight": Range(1e-2, 10.0, log=True), "ad_lr": Range(1e-4, 1e-2, log=True), "average": AVERAGE},
    "mfd": {"mfd_weight": MMD},
    "bird": FEEDBACK,
    "bird+fitnet": FEEDBACK,
    "bird-no-meta": {"lambda": LAMBDA, "alpha": ALPHA},
    "bird+at": {**FEEDBACK, "at_beta": Range(1e1, 1e4, log=True)},
    "bird+mfd": {**FEEDBACK, "mfd_weight": MMD},
    "bird-plus": {"alpha": ADJUSTED, "mu2": MU2},
    "bird-plus-no-meta": {"alpha": ADJUSTED},
    "bird-offsets": {"alpha": ADJUSTED, "mu2": MU2, "balance": Range(0.0, 1.0)},
    "bird-offsets-no-meta": {"alpha": ADJUSTED},
    "group-dro": {"dro_step": Range(1e-3, 1e-1, log=True)},
    "reweight": BASELINE,
    "domain-independent": BASELINE,
}
"""What is chosen, by method."""

FIELDS = {"lambda": "lambda_"}
METRICS = ("auroc", "f1_macro", "accuracy", "balanced_accuracy", "mean_deo", "max_deo")
FLOORS = {"auroc": "AUROC", "f1_macro": "F1", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
"""What a floor can be on."""


@final
@dataclasses.dataclass(frozen=True)
class Search:
    """How a setting is looked for. A candidate keeps `floor_on` (x100) at `floor` or above; where `floor` is None, at what
    the baseline's default setting has, less `drop`. Balanced accuracy is the mean recall over all (class, group) cells."""

    trials: int = 24
    per_round: int = 6
    seeds: int = 3
    final_seeds: int = 8
    floor_on: str = "balanced_accuracy"
    drop: float = 1.0
    floor: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a number out of its range."""
        for name in ("trials", "per_round", "seeds", "final_seeds"):
            if getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), "1 or more")
        if not 0 <= self.drop <= 100:  # NaN, too
            raise _out_of_range("drop", self.drop, "points, from 0 to 100")
        if self.floor is not None and not 0 <= self.floor <= 100:
            raise _out_of_range("floor", self.floor, "a score x100, from 0 to 100")


def _out_of_range(name: str, value: float, wanted: str) -> UsageError:
    return UsageError(
        where=f"--{name.replace('_', '-')}", found=f"{value:g}", wanted=wanted, fix="see `bird tune --help`"
    )


def space_of(config: RunConfig) -> Space:
    """What is chosen for a method; BIRD around a loss of the user's own has BIRD's weights. Raises UsageError for a method
    that has nothing to choose."""
    part = config.part("method")
    name = "bird" if part is not None and part.attribute.startswith(AROUND) else config.method
    if name not in SPACES:
        own = "a loss of your own (bird+file.py:loss)"
        raise UsageError(
            where=f"--method {config.method}",
            found="no weight to choose" if part is None else "a Method of your own, whose weights are not known here",
            wanted=f"one of {', '.join(SPACES)}, or {own}",
            fix="train it with `bird distill`",
        )
    return SPACES[name]


def require_halves(base: RunConfig, search: Search) -> None:
    """Before anything is trained: raise UsageError where the choosing half of meta lacks a (class, group) cell, and what
    the method itself raises for lack of something."""
    halved = base.but(choose=search.seed)
    data = read(halved)
    if min(len(data.class_names), len(data.group_names)) < 2:
        raise UsageError(
            where=f"study {base.place.out}",
            found=f"{few(data.class_names)} as classes, {few(data.group_names)} as groups",
            wanted="two classes and two groups: a setting is chosen by its gap",
            fix="use a cache with both",
        )
    empty = data.empty_cells().get(CHOOSE, [])
    if empty or not len(data.rows(CHOOSE)):
        raise UsageError(
            where=f"study {base.place.out}",
            found=f"no sample of {few(empty) or 'any class'} in the choosing half of meta",
            wanted="at least two meta samples in every (class, group) cell",
            fix="use a larger --limit, or a cache with a larger meta split",
        )
    required_method(halved, data)


def look(
    base: RunConfig, search: Search, folder: Path, space: Space, floor: float | None, train: Train
) -> list[dict[str, Any]]:
    """The judged candidates of `base.method`, in a study of its own in `folder`. The first is the setting that `base` has;
    where no `floor` is given, it is that candidate's score less `search.drop`. Resumes."""
    study = open_study(base, folder, space)
    while used(study) < search.trials:
        one_round(study, base, search, folder, space, floor, train)
    return candidates_of(study, search.floor_on, floor_of(study, search, floor))


def floor_of(study: Study, search: Search, floor: float | None) -> float:
    """The floor, where none is given by the first candidate."""
    if floor is not None:
        return floor
    return float(study.get_trials(deepcopy=False)[0].user_attrs[search.floor_on]) - search.drop


def open_study(base: RunConfig, folder: Path, space: Space) -> Study:
    """The study in the folder's journal; a new one begins with the setting that `base` has."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name="tune", direction="minimize", load_if_exists=True)
    if not study.trials:
        given = {name: base.flat()[name] for name in space}
        study.enqueue_trial({name: min(max(given[name], span.low), span.high) for name, span in space.items()})
    return study


def one_round(
    study: Study, base: RunConfig, search: Search, folder: Path, space: Space, floor: float | None, train: Train
) -> None:
    """Draw candidates, train them together, and tell the study. Candidates that were drawn before a kill come first."""
    from optuna.trial import Trial, TrialState

    def wanting(trial: FrozenTrial) -> tuple[float, float]:
        return shortfall(trial.user_attrs, search.floor_on, floor_of(study, search, floor))

    study.sampler = sampler(0, wanting)  # which heeds `wanting` when a candidate is told
    drawn = [Trial(study, each._trial_id) for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    drawn = [trial for trial in drawn if trial.params.keys() == space.keys()]
    wanted = min(search.per_round, search.trials - used(study))
    while len(drawn) < wanted:
        number = len(study.get_trials(deepcopy=False))
        study.sampler = sampler(int(raw(search.seed, 7, number, count=1)[0] % np.uint64(1 << 32)), wanting)
        drawn.append(draw(study, space))
    found = judge(base, search, {trial.number: trial.params for trial in drawn}, folder, train)
    for trial in drawn:
        if trial.number not in found:
            study.tell(trial, state=TrialState.FAIL)  # its training diverged
    drawn = [trial for trial in drawn if trial.number in found]
    for trial in drawn:
        for name, value in found[trial.number].items():
            trial.set_user_attr(name, value)
    for trial in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.tell(trial, found[trial.number]["mean_deo"])


def sampler(seed: int, wanting: Callable[[FrozenTrial], tuple[float, float]]) -> TPESampler:
    """What draws candidates, in view of what others lacked."""
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():  # optuna calls constraints experimental
        warnings.simplefilter("ignore")
        return TPESampler(seed=seed, constraints_func=wanting, n_startup_trials=8, multivariate=True)


def draw(study: Study, space: Space) -> Trial:
    """A new candidate: a pure function of the sampler's seed and of what the study holds."""
    trial = study.ask()
    for name, span in space.items():
        trial.suggest_float(name, span.low, span.high, log=span.log)
    return trial


def shortfall(judged: Mapping[str, Any], floor_on: str, floor: float) -> tuple[float, float]:
    """How far a candidate lies below the floor, and 1 for a trivial student: above 0 it is not feasible."""
    return floor - float(judged[floor_on]), float(bool(judged.get("trivial")))


def complete(study: Study) -> list[FrozenTrial]:
    """The candidates that have been judged."""
    from optuna.trial import TrialState

    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def used(study: Study) -> int:
    """How many candidates have been tried: those that were judged, and those that diverged."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))


def judge(
    base: RunConfig, search: Search, settings: Mapping[int, Mapping[str, float]], folder: Path, train: Train
) -> dict[int, dict[str, Any]]:
    """Each setting's metrics on the choosing half, averaged over the seeds, with the interval of its mean-DEO, and in words
    which students are trivial; without those whose training diverges."""
    configs = {
        number: [
            base.but(
                **{FIELDS.get(name, name): value for name, value in values.items()},
                seed=seed,
                choose=search.seed,
                out=run_of(folder, number, seed),
            )
            for seed in range(search.seeds)
        ]
        for number, values in settings.items()
    }
    means: dict[int, dict[str, Any]] = {}
    for number, infos in trained(configs, train).items():
        means[number] = summary_of([info["metrics"][CHOOSE] for info in infos])
        if why := means[number].get("error"):
            raise EmptyCellError(
                where=f"study {base.place.out}",
                found=f"half of meta cannot be scored: {why}",
                wanted="two classes, two groups, and at least two meta samples in every (class, group) cell",
                fix="use a larger --limit, or a cache with a larger meta split",
            )
        means[number] = {name: means[number][name]["mean"] for name in METRICS} | {
            name: means[number][name] for name in ("deo_interval", "deo_floor", "trivial")
        }
    return means


def trained(configs: Mapping[int, Sequence[RunConfig]], train: Train) -> dict[int, list[dict[str, Any]]]:
    """The finished runs of each candidate, all trained together; where one diverges, one by one, and without it. Raises
    DivergedError where the first one of a study does: it is the setting that the user gave."""
    try:
        infos = iter(train([config for each in configs.values() for config in each]))
        return {number: [next(infos) for _ in each] for number, each in configs.items()}
    except DivergedError:
        pass
    found: dict[int, list[dict[str, Any]]] = {}
    for number, each in configs.items():
        try:
            found[number] = train(each)
        except DivergedError as error:
            if number == 0:
                raise
            tell(f"candidate {number} is left out: {error}")
    return found


def run_of(folder: Path, number: int, seed: int) -> Path:
    """The run of a candidate."""
    return folder / f"{number:03d}-{seed}"


def summary_of(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (ddof 1) of each metric over the seeds, x100, the interval and floor of the mean-DEO, and
    the mark of trivial students; or why they are not there. `balanced_accuracy` is the mean recall over all cells."""
    wrong = [each["error"] for each in scores if "error" in each]
    found = [name for name in METRICS if name != "balanced_accuracy"]
    if wrong := wrong or [why for name in found if (why := reason_of(name, scores))]:
        return {"error": wrong[0]}
    columns = {name: [each[name] for each in scores] for name in found}
    columns["balanced_accuracy"] = [100 * float(np.mean(each["recalls"])) for each in scores]
    spread = {
        name: {"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)) if len(v) > 1 else None}
        | ({"undefined": {"std": ONE_SEED}} if len(v) == 1 else {})
        for name, v in columns.items()
    }
    interval = two_level_intervals([np.asarray(each["confusion"], dtype=np.int64) for each in scores], 200)["mean_deo"]
    return {
        **{name: spread[name] for name in METRICS},
        "seeds": len(scores),
        "deo_interval": [interval.low, interval.high],
        "deo_floor": float(np.mean([each["deo_floor"]["mean"] for each in scores])),
        "trivial": trivial_seeds(dict(enumerate(scores))),
    }


def candidates_of(study: Study, floor_on: str, floor: float) -> list[dict[str, Any]]:
    """The judged candidates: which are feasible, which on the Pareto front of mean-DEO and what the floor is on, which is
    chosen. A trivial student is neither, whatever its gap."""
    found: list[dict[str, Any]] = [
        {"number": t.number, "setting": dict(t.params), **t.user_attrs}
        | {"feasible": max(shortfall(t.user_attrs, floor_on, floor)) <= 0}
        for t in complete(study)
    ]
    telling = [each for each in found if not each["trivial"]]
    for each in found:
        each["front"] = not each["trivial"] and not any(dominates(other, each, floor_on) for other in telling)
    feasible = [each for each in found if each["feasible"]]
    best = min(
        feasible or telling or found,
        key=lambda e: (e["mean_deo"], -e[floor_on]) if feasible else (-e[floor_on], 0.0),
    )
    for each in found:
        each["chosen"] = each is best
    return found


def dominates(one: Mapping[str, Any], other: Mapping[str, Any], by: str) -> bool:
    """Whether a candidate is as good in mean-DEO and in `by`, and better in one."""
    no_worse = one["mean_deo"] <= other["mean_deo"] and one[by] >= other[by]
    return no_worse and (one["mean_deo"], one[by]) != (other["mean_deo"], other[by])

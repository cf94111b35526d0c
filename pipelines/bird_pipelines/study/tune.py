"""`bird tune`: a method's weights chosen on data that is neither trained on nor tested on.

The meta split is halved (by class and group, by the search's seed): one half feeds the meta step, on the other a candidate
is judged (bird_pipelines.study.tune_search). Its mean-DEO, averaged over seeds, is minimised; a candidate that falls
below the floor of accuracy is not feasible, nor is one with a trivial student (`bird.measuring.caveats`), whose gap
says nothing. The baseline gets as many trials, for its learning rate and its running mean, and is chosen by the same
rule: a method that was tuned is not compared with one that was not. While candidates are compared the test split is not
read. At the end both chosen settings are trained with the whole meta split and scored on test; after that the study is
closed.

OUT/baseline, OUT/candidates     a journal of candidates, as they are drawn and judged, and their run folders
OUT/final, OUT/final-baseline    run folders
OUT/tune.json, OUT/tune.html     the result, written last
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bird.errors import WrongRunError
from bird.measuring.paired import Predicted, compare
from bird_cache.files import LOCKS, replace, write_lock
from bird_cache.manifest import flatten
from bird_pipelines import runs
from bird_pipelines.config import CHOOSE, RunConfig
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.marks import MARK, WHAT_TRIVIAL_MEANS
from bird_pipelines.predictions import load_predictions
from bird_pipelines.study.places import Train
from bird_pipelines.study.tune_search import (
    BASELINE,
    FIELDS,
    FLOORS,
    METRICS,
    Search,
    look,
    require_halves,
    run_of,
    space_of,
    summary_of,
)

__all__ = ["Search", "tune"]


def tune(base: RunConfig, search: Search, train: Train = distill_many) -> dict[str, Any]:
    """Choose the weights of `base.method` in the folder `base.out` and return what tune.json says. Resumes. The runs are
    made by `train`.

    Raises UsageError for a method that has nothing to choose or a meta split that is too small, WrongRunError if the folder
    holds another study, or one whose test split has been opened and that should go on; whatever `distill_many` raises.
    """
    space = space_of(base)
    if not (base.place.out / "tune.json").exists():
        require_halves(base, search)
    with held(base, search):
        if not (base.place.out / "tune.json").exists():
            plain = base.but(method="baseline", average=0.0)
            baseline = look(plain, search, base.place.out / "baseline", BASELINE, search.floor, train)
            default = next(each for each in baseline if each["number"] == 0)
            floor = default[search.floor_on] - search.drop if search.floor is None else search.floor
            candidates = look(base, search, base.place.out / "candidates", space, floor, train)
            conclude(base, plain, search, floor, baseline, candidates, train)
    return runs.read_json(base.place.out / "tune.json")


@contextmanager
def held(base: RunConfig, search: Search) -> Iterator[None]:
    """Hold `base.out` for one process: start the study in it, or go on with it. A study of which no run kept
    anything gives way to another one."""
    out = base.place.out
    identity = {k: v for k, v in base.identity().items() if k not in space_of(base) and k != "seed"}
    asked = {"identity": identity, "search": dataclasses.asdict(search)}
    out.mkdir(parents=True, exist_ok=True)
    refuse_another(out, asked)  # before a lock is left in a folder that is not ours
    with write_lock(out):
        refuse_another(out, asked)  # another process may have begun it since
        if only_begun(out):
            for journal in out.glob("*/study.journal*"):  # its candidates were drawn for other settings
                journal.unlink()
        runs.write_json(out / "search.json", asked)
        yield


def only_begun(out: Path) -> bool:
    """Whether a study of ours is there in which no run has kept anything."""
    if not (out / "search.json").exists() or {*runs.read_json(out / "search.json")} != {"identity", "search"}:
        return False
    return not any(next(out.rglob(name), None) for name in ("checkpoint.json", "run.json"))


def refuse_another(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise WrongRunError if the folder holds something else than this study, or than one that kept nothing; more trials
    may be asked for until the test split has been opened."""
    path, opened = out / "search.json", (out / "final").exists()
    if only_begun(out):
        return
    if path.exists():
        there, here = flatten(runs.read_json(path)), flatten(asked)
        for field in sorted({*there, *here}):
            if there.get(field) != here.get(field) and (field != "search.trials" or opened):
                raise WrongRunError(
                    where=f"study {out}",
                    found=f"{field} = {there.get(field)}" + (", and its test split has been opened" if opened else ""),
                    wanted=f"{field} = {here.get(field)}",
                    fix="choose another --out, or repeat the old settings to resume it; or delete the folder",
                )
    elif foreign := [entry.name for entry in out.iterdir() if entry.name not in LOCKS]:
        raise WrongRunError(
            where=f"study {out}",
            found=f"other files ({foreign[0]})",
            wanted="an empty folder",
            fix="choose another --out",
        )


def conclude(
    base: RunConfig,
    plain: RunConfig,
    search: Search,
    floor: float,
    baseline: Sequence[Mapping[str, Any]],
    candidates: Sequence[Mapping[str, Any]],
    train: Train,
) -> None:
    """Train both chosen settings with the whole meta split, score them on test, compare them, and write the result."""
    ours, theirs = (next(each for each in found if each["chosen"]) for found in (candidates, baseline))
    halves = [
        [run_of(base.place.out / name, chosen["number"], seed) for seed in range(search.seeds)]
        for name, chosen in (("candidates", ours), ("baseline", theirs))
    ]
    finals = [final(base, ours, search, "final", train), final(plain, theirs, search, "final-baseline", train)]
    info = runs.read_json(finals[0][0].place.out / "run.json")
    sizes = len(info["class_names"]), len(info["group_names"])
    folders = [[config.place.out for config in each] for each in finals]
    tests = [summary_of([runs.read_json(out / "metrics-test.json") for out in each]) for each in folders]
    result = {
        "method": base.method,
        "cache": base.source.cache,
        "search": dataclasses.asdict(search),
        "space": {name: dataclasses.asdict(span) for name, span in space_of(base).items()},
        "baseline_space": {name: dataclasses.asdict(span) for name, span in BASELINE.items()},
        "floor": floor,
        "candidates": candidates,
        "chosen": ours,
        "baseline": {"candidates": baseline, "chosen": theirs, "test": tests[1]},
        "test": tests[0],
        "less_baseline": {
            CHOOSE: less(halves[0], halves[1], CHOOSE, *sizes),
            "test": less(folders[0], folders[1], "test", *sizes),
        },
        "runs": [str(out) for out in folders[0]],
        "report": str(base.place.out / "tune.html"),
    }
    replace(base.place.out / "tune.html", render(result).encode())
    runs.write_json(base.place.out / "tune.json", result)


def final(config: RunConfig, chosen: Mapping[str, Any], search: Search, name: str, train: Train) -> list[RunConfig]:
    """The chosen setting's runs on the whole meta split, trained."""
    weights = {FIELDS.get(name, name): value for name, value in chosen["setting"].items()}
    configs = [
        config.but(**weights, seed=seed, out=config.place.out / name / str(seed)) for seed in range(search.final_seeds)
    ]
    train(configs)
    return configs


def less(
    ours: Sequence[Path], theirs: Sequence[Path], split: str, classes: int, groups: int
) -> dict[str, dict[str, Any]]:
    """The chosen setting less the baseline's, paired by seed and row, x100: effect and 95 % interval by metric."""
    one, other = predicted(ours, split), predicted(theirs, split)
    if not one.keys() & other.keys():
        return {}
    return {
        name: {"effect": each.effect, "interval": list(each.interval), "p": each.p}
        for name, each in compare(one, other, classes, groups).items()
    }


def predicted(folders: Sequence[Path], split: str) -> dict[int, Predicted]:
    """What the runs of seeds 0, 1, ... answered on `split`, where they kept it."""
    found = {seed: load_predictions(folder, split) for seed, folder in enumerate(folders)}
    return {seed: each for seed, each in found.items() if each is not None}


def better(difference: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the mean-DEO is shown to be lower than the baseline's."""
    return "mean_deo" in difference and difference["mean_deo"]["interval"][1] < 0


def render(result: Mapping[str, Any]) -> str:
    """The page: chosen setting, test figures, Pareto front, all candidates."""
    from markupsafe import Markup

    from bird_pipelines.reporting.page import page
    from bird_pipelines.reporting.plots import front_plot
    from bird_pipelines.reporting.results import COLUMNS

    on = result["search"]["floor_on"]
    ranked = [
        sorted(each["candidates"], key=lambda each: (not each["feasible"], each["mean_deo"]))
        for each in (result, result["baseline"])
    ]
    plot = front_plot(result["candidates"], result["baseline"]["candidates"], on, FLOORS[on], result["floor"], "front")
    shown = {name: better(each) for name, each in result["less_baseline"].items()}
    marks = {"mark": MARK, "what_trivial_means": WHAT_TRIVIAL_MEANS, "choose": CHOOSE}
    columns = {**COLUMNS, "balanced_accuracy": "balanced accuracy ↑"}
    names = {"metrics": METRICS, "columns": columns, "on": on, "on_name": FLOORS[on]}
    found = {**result, "candidates": ranked[0], "of_baseline": ranked[1], "plot": Markup(plot), "better": shown}
    return page("tune", {**found, **names, **marks})

"""`bird evaluate`: a finished run's metrics on one split, from its student and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bird.devices import choose_device
from bird.errors import UsageError, WrongRunError
from bird.own import find
from bird.students import Student, named_student
from bird_cache.errors import NotACacheError, StaleCacheError
from bird_pipelines import runs
from bird_pipelines.config import Place, RunConfig
from bird_pipelines.config.reading import run_of
from bird_pipelines.distilling.data import RunData, load_data
from bird_pipelines.distilling.ranks import joined
from bird_pipelines.distilling.scoring import score
from bird_pipelines.marks import with_caveats

__all__ = ["evaluate", "open_run", "run_config"]


def evaluate(
    run: Path,
    split: str = "test",
    *,
    data_root: Path | None = None,
    cache: str | None = None,
    student: object = None,
    dataset: object = None,
) -> dict[str, Any]:
    """The metrics of `run` on `split`, also written to RUN/metrics-SPLIT.json, and the predictions to
    RUN/predictions-SPLIT.npz.

    `data_root` and `cache` override the paths stored in the run; `student` is the module of a student of the user's own,
    a reference to it, or the run's own built-in name, `dataset` a data set of the user's own. Raises RunError for a folder
    without a finished run, NotACacheError if its cache is missing, StaleCacheError if the path holds another
    cache, UsageError for an unknown split, for another built-in student, and for a student of the user's own that
    is not given, or another one.
    """
    with joined(Place(out=run)) as world:
        loaded, data, _ = open_run(run, data_root=data_root, cache=cache, student=student, dataset=dataset)
        device = choose_device("auto")
        keep = run if world.first else None
        metrics = score(loaded.to(device), data, split, device, keep, world)
        if world.first:
            runs.write_json(run / f"metrics-{split}.json", metrics)
        return with_caveats(metrics, data.class_names)


def open_run(
    run: Path,
    *,
    data_root: Path | None = None,
    cache: str | None = None,
    student: object = None,
    dataset: object = None,
) -> tuple[Student, RunData, RunConfig]:
    """A finished run's student, its data and its configuration. Raises as `evaluate` does."""
    config, fingerprint = run_config(run, data_root=data_root, cache=cache)
    loaded = named_student(run, student)
    own = None if dataset is None else find("dataset", dataset)
    if own is not None and own.label != config.source.dataset:
        raise UsageError(
            where=own.where,
            found=own.label,
            wanted=f"{config.source.dataset}, as the run has it",
            fix="give the data set that it was trained on, from an unchanged file",
        )
    try:
        data = load_data(config.source, config.student, config.place.workers, own)
    except NotACacheError as error:
        raise NotACacheError(
            where=error.where,
            found=error.found,
            wanted=f"the cache of {run}",
            fix="if it moved, say where it is now with --cache",
        ) from error
    if data.fingerprint != fingerprint:
        raise StaleCacheError(
            where=str(config.source.cache),
            found=f"fingerprint {data.fingerprint}",
            wanted=f"fingerprint {fingerprint} (run {run})",
            fix="point --cache at the cache that the run was distilled from",
        )
    return loaded, data, config


def run_config(run: Path, *, data_root: Path | None = None, cache: str | None = None) -> tuple[RunConfig, str | None]:
    """The configuration a run was started with, and its cache's fingerprint. Raises WrongRunError where it
    is none of this version, RunError."""
    if not (run / "config.json").exists():
        raise WrongRunError(where=str(run), found="no config.json", wanted="a run folder", fix=runs.instead_of(run))
    found = runs.read_json(run / "config.json")
    try:
        place = {name: value for name, value in found["place"].items() if value}
        place |= {name: str(value) for name, value in {"data_root": data_root, "cache": cache}.items() if value}
        # The parts of the user's own are records: nothing is imported because a run names it.
        options = {name: value for name, value in found["identity"].items() if name != "own"}
        return run_of({**options, **place, "out": run}), found["fingerprint"]
    except (KeyError, ValueError, AttributeError, UsageError) as error:
        raise WrongRunError(
            where=str(run),
            found=f"a config.json that does not fit ({error})",
            wanted="a run of this version",
            fix="run it again",
        ) from None

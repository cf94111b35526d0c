"""`bird evaluate`: a finished run's metrics on one split, from its student and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bird.devices import choose_device
from bird.errors import RunError, UsageError
from bird.students import Student, load_student
from bird_cache.errors import NotACacheError, StaleCacheError
from bird_pipelines import runs
from bird_pipelines.config import RunConfig
from bird_pipelines.config.reading import run_of
from bird_pipelines.distilling.data import RunData, load_data
from bird_pipelines.distilling.scoring import score
from bird_pipelines.marks import with_caveats

__all__ = ["evaluate", "open_run", "run_config"]


def evaluate(
    run: Path, split: str = "test", *, data_root: Path | None = None, cache: str | None = None
) -> dict[str, Any]:
    """The metrics of `run` on `split`, also written to RUN/metrics-SPLIT.json, and the predictions to
    RUN/predictions-SPLIT.npz.

    `data_root` and `cache` override the paths stored in the run. Raises RunError for a folder without a finished
    run, NotACacheError if its cache is missing, StaleCacheError if the path holds another cache, UsageError for
    an unknown split.
    """
    student, data, _ = open_run(run, data_root=data_root, cache=cache)
    device = choose_device("auto")
    metrics = score(student.to(device), data, split, device, save_to=run).as_json()
    runs.write_json(run / f"metrics-{split}.json", metrics)
    return with_caveats(metrics, data.class_names)


def open_run(
    run: Path, *, data_root: Path | None = None, cache: str | None = None
) -> tuple[Student, RunData, RunConfig]:
    """A finished run's student, its data and its configuration. Raises as `evaluate` does."""
    config, fingerprint = run_config(run, data_root=data_root, cache=cache)
    student = load_student(run)
    try:
        data = load_data(config.source, config.student, config.place.workers)
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
    return student, data, config


def run_config(run: Path, *, data_root: Path | None = None, cache: str | None = None) -> tuple[RunConfig, str | None]:
    """The configuration a run was started with, and its cache's fingerprint. Raises RunError."""
    if not (run / "config.json").exists():
        raise RunError(where=str(run), found="no config.json", wanted="a run folder", fix="give the --out of a run")
    found = runs.read_json(run / "config.json")
    try:
        place = {name: value for name, value in found["place"].items() if value}
        place |= {name: str(value) for name, value in {"data_root": data_root, "cache": cache}.items() if value}
        return run_of({**found["identity"], **place, "out": run}), found["fingerprint"]
    except (KeyError, ValueError, AttributeError, UsageError) as error:
        raise RunError(
            where=str(run),
            found=f"a config.json that does not fit ({error})",
            wanted="a run of this version",
            fix="run it again",
        ) from None

"""`bird report`: run folders in, one self-contained HTML page out. Loads nothing from the network, holds no date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bird.errors import WrongRunError
from bird_cache.files import make_room_for, replace
from bird_pipelines.marks import MARK, WHAT_TRIVIAL_MEANS
from bird_pipelines.reporting.details import detail_of, groups_of, sources_of, versions_of
from bird_pipelines.reporting.effects import ENOUGH_SEEDS, effects_of
from bird_pipelines.reporting.loading import SPLITS, Configuration, Run, folders_of_runs, group, marginals, read_run
from bird_pipelines.reporting.page import page
from bird_pipelines.reporting.results import COLUMNS, REPLICATES, paths_of, scatters_of, table_of
from bird_pipelines.reporting.settings import SHOWN, plain, settings_that_matter

__all__ = ["Run", "read_run", "write_report"]


def write_report(runs: Sequence[Path], out: Path, *, title: str = "BIRD report", against: str | None = None) -> Path:
    """Write the page on `runs` to `out`, whole or not at all, and return `out`. The same runs give the same bytes.

    A folder of run folders stands for those. `against` names the method, or the configuration, that the others are
    compared with: by default the baseline, else the first. A run that is not finished is listed as such. Raises
    WrongRunError for a path that is no run folder or if no run is finished, RunError for a damaged run; UsageError for an
    unknown `against`; StorageError if `out` cannot be written.
    """
    loaded = [read_run(folder) for folder in folders_of_runs(runs)]
    finished = [run for run in loaded if isinstance(run, Run)]
    unfinished = [run for run in loaded if isinstance(run, str)]
    if not finished:
        found = f"none that is finished ({'; '.join(unfinished) or 'none given'})"
        raise WrongRunError(
            where="report",
            found=found,
            wanted="at least one finished run",
            fix="finish one with `bird distill`",
        )
    configurations, repeated = group(finished)
    make_room_for(out)
    replace(out, render(title, configurations, unfinished, repeated, against).encode())
    return out


def render(
    title: str,
    configurations: Sequence[Configuration],
    unfinished: Sequence[str],
    repeated: Sequence[str],
    against: str | None = None,
) -> str:
    """The page."""
    matter = [settings_that_matter(each.runs[0].settings) for each in configurations]
    names = list(dict.fromkeys(name for each in matter for name in each))
    shared = [
        name
        for name in names
        if name not in SHOWN
        and all(name in each for each in matter)
        and len({plain(each[name]) for each in matter}) == 1
    ]
    few = [f"{each.label}: {len(each.runs)}" for each in configurations if len(each.runs) < ENOUGH_SEEDS]
    by = marginals(configurations)
    values: dict[str, Any] = {
        "title": title,
        "runs": sum(len(each.runs) for each in configurations),
        "shared": [(name, configurations[0].setting(name)) for name in shared],
        "sources": sources_of(configurations),
        "versions": versions_of(configurations),
        "unfinished": unfinished,
        "repeated": repeated,
        "few": few,
        "enough": ENOUGH_SEEDS,
        "replicates": REPLICATES,
        "columns": COLUMNS,
        "mark": MARK,
        "what_trivial_means": WHAT_TRIVIAL_MEANS,
        "tables": [table_of(configurations, split) for split in SPLITS],
        "marginals": [(name, table_of(each, "test")) for name, each in by.items()],
        "groups": groups_of(configurations) + [table for name, each in by.items() for table in groups_of(each, name)],
        "effects": effects_of(configurations, against),
        "scatters": scatters_of(configurations),
        "paths": paths_of(configurations),
        "details": [detail_of(each, shared) for each in configurations],
    }
    return page("report", values, {"plain": plain})

"""`bird dial`: accuracy against gap, in one path from the balanced CE to L_o.

bird-offsets learns phi from the feedback of (1 - balance) L_o + balance CE over cells (bird.step.offsets). The first point
of the path is a whole run; each point after it goes on from the run before, for a few epochs at its own balance. So one path
costs little more than one run, and each point is an ordinary run folder, which can be evaluated and shipped:

    OUT/BALANCE-SEED        adapters of all seeds train side by side
    OUT/report.html         the front, with intervals

Nothing is chosen here. To choose a point, look at meta (`bird tune` does); test tells what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bird.errors import UsageError
from bird_pipelines.config import RunConfig, resolve
from bird_pipelines.distilling.data import cache_dataset
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.reporting.report import write_report
from bird_pipelines.study.compare import TAKEN as OF_COMPARE
from bird_pipelines.study.compare import refuse_taken, require_seeds, scores_of

__all__ = ["BALANCES", "turn"]

TAKEN = {
    "balance": "give --balances",
    "start_from": "the points of a path follow each other",
    **{name: OF_COMPARE[name] for name in ("seed", "out", "cache")},
}
BALANCES = (1.0, 0.75, 0.5, 0.25, 0.0)


def turn(
    cache: str,
    out: Path,
    balances: Sequence[float] = BALANCES,
    *,
    seeds: int = 8,
    epochs_each: int = 3,
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> dict[str, Any]:
    """Train the path for each of the seeds 0..seeds-1, write OUT/report.html, and return the scores on the test split by
    balance, x100.

    `flags` are other options of `bird distill`, for the first point; the later ones take `epochs_each` epochs without a
    warmup. What is there is not trained again. Raises UsageError for balances outside [0, 1] or that repeat, and what
    `distill_many` raises.
    """
    refuse_taken(flags or {}, TAKEN)
    require_seeds(seeds)
    names = {f"{each:g}" for each in balances}  # of their folders
    if not balances or len(names) != len(balances) or not all(0 <= each <= 1 for each in balances):
        raise UsageError(
            where="--balances",
            found=", ".join(map(str, balances)) or "none",
            wanted="numbers from 0 to 1 that differ in six digits",
            fix=f"such as {','.join(f'{each:g}' for each in BALANCES)}",
        )
    base = {"student": "adapter", "dataset": cache_dataset(cache), "method": "bird-offsets"}
    points: dict[float, list[dict[str, Any]]] = {}
    before: list[RunConfig | None] = [None] * seeds
    for balance in balances:
        configs = []
        for seed, start in enumerate(before):
            given = {**(flags or {}), "cache": cache, "balance": balance, "seed": seed}
            given["out"] = out / f"{balance:g}-{seed}"
            if start is not None:
                given |= {"start_from": start.place.out, "epochs": epochs_each, "warmup": 0}
            configs.append(resolve(given, file, base))
        if configs[0].method != "bird-offsets":
            raise UsageError(
                where="--method",
                found=configs[0].method,
                wanted="bird-offsets, whose feedback is a mixture",
                fix="leave it out",
            )
        points[balance] = distill_many(configs)
        before = [*configs]
    folders = [out / f"{balance:g}-{seed}" for balance in balances for seed in range(seeds)]
    return {
        "cache": cache,
        "seeds": seeds,
        "points": [{"balance": balance, **scores_of(runs)} for balance, runs in points.items()],
        "report": str(write_report(folders, out / "report.html", title="Accuracy against gap")),
    }

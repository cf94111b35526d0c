"""`bird distill --seeds`: one configuration with several seeds, and one summary.

OUT/seed-N are ordinary runs: adapters train as one stack, image students one after the other. The same command goes on
where it stopped, and trains only the seeds that are new. OUT/seeds.json is written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bird.errors import UsageError
from bird_pipelines import runs
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.study.compare import SCORES, scores_of

__all__ = ["distill_seeds", "seeds_of"]

MOST = 1000


def seeds_of(given: str | Iterable[int]) -> list[int]:
    """Seeds as numbers: "0-7", "0,3,5", "0-3,8", or numbers. Raises UsageError for anything else, and for repeated ones."""
    found: list[int] = []
    for part in given.split(",") if isinstance(given, str) else [str(each) for each in given]:
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.strip().isdecimal() for end in ends) or not 0 <= int(ends[1]) - int(ends[0]) < MOST:
            raise _refuse(repr(part.strip()), f"seeds from 0 on, such as 0-7 or 0,3,5, at most {MOST} of them")
        found += range(int(ends[0]), int(ends[1]) + 1)
    if not found:
        raise _refuse("no seed", "one or more seeds, such as 0-7 or 0,3,5")
    if repeated := sorted({seed for seed in found if found.count(seed) > 1}):
        raise _refuse(f"{repeated[0]} more than once", "each seed once")
    return found


def distill_seeds(config: RunConfig, seeds: Sequence[int]) -> dict[str, Any]:
    """Train (or finish) the run of each seed in OUT/seed-N, and return what seeds.json says: scores on test, x100, with
    mean and standard deviation over the seeds, and the floor of the mean-DEO.

    Raises UsageError if OUT is itself a run, and whatever `distill_many` raises.
    """
    out = config.place.out
    if (out / "config.json").exists():
        raise UsageError(
            where=f"--seeds with --out {out}",
            found="a run folder",
            wanted="a folder for several runs",
            fix="choose another --out",
        )
    configs = [config.but(seed=seed, out=out / f"seed-{seed}") for seed in seeds]
    finished = distill_many(configs)
    found = summary(finished, seeds) | {"out": str(out)}
    runs.write_json(out / "seeds.json", found)
    return found


def summary(finished: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """What the runs of several seeds ended as."""
    first = finished[0]
    by_seed = [
        {"seed": seed, **{name: each["metrics"]["test"].get(name) for name in SCORES}}
        for seed, each in zip(seeds, finished, strict=True)
    ]
    return {
        "seeds": [*seeds],
        "config": {name: value for name, value in first["config"].items() if name != "seed"},
        "fingerprint": first["fingerprint"],
        "test": scores_of(finished),
        "by_seed": by_seed,
        "runs": [each["out"] for each in finished],
    }


def _refuse(found: str, wanted: str) -> UsageError:
    return UsageError(where="--seeds", found=found, wanted=wanted, fix="write it so")

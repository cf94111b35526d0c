"""How fast `bird cache verify` goes over a cache of random vectors, by the number of its threads.

    python bench/verify.py [--rows 400000] [--dim 512] [--rounds 5]

Everything is in the page cache. The first round, which imports what reads tables, is not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from results import save

from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_cache.writer import open_writer


def write(folder, rows, dim):
    names = ((f"images/{row:08d}.png", "train", f"{row:032x}", PENDING) for row in range(rows))
    ids, splits, digests, status = (np.array(column, dtype=object) for column in zip(*names, strict=True))
    halves = np.arange(rows) % 2
    plan = Plan(
        causes={"bench": rows},
        layers={"penultimate": Layer(shape=(dim,), dtype="float16", kind="penultimate")},
        rows=rows,
        shard_rows=8192,
        chunk_rows=1024,
        class_names=("a", "b"),
        group_names=("g", "h"),
    )
    rng = np.random.default_rng(0)
    with open_writer(folder, plan, Samples(ids, halves, halves, splits, digests, status)) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(
                shard, {"penultimate": rng.standard_normal((stop - start, 1, dim)).astype(np.float32)}, {}
            )
        writer.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, value in (("--rows", 400_000), ("--dim", 512), ("--rounds", 5)):
        parser.add_argument(option, type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "cache", args.rows, args.dim)
        rates, opening, cpu = {1: [], 2: [], 4: []}, [], {1: [], 2: [], 4: []}
        for number in range(args.rounds + 1):
            for workers, seen in rates.items():
                began, worked = time.perf_counter(), time.process_time()
                result = verify(Path(folder) / "cache", workers=workers)
                assert not result.findings
                if number:
                    seen.append(result.bytes / 1e9 / (time.perf_counter() - began))
                    cpu[workers].append(result.bytes / 1e9 / (time.process_time() - worked))
            began = time.perf_counter()
            open_cache(Path(folder) / "cache")
            opening += [time.perf_counter() - began] if number else []
    rows = [
        {
            "threads": workers,
            "GB/s": f"{statistics.median(seen):.2f} ({min(seen):.2f} to {max(seen):.2f})",
            "GB a processor second": f"{statistics.median(cpu[workers]):.2f}",
        }
        for workers, seen in rates.items()
    ]
    notes = [
        f"{args.rows:,} x {args.dim} float16, {result.bytes / 1e6:,.0f} MB, warm; {args.rounds} rounds: median (range).",
        f"Opening alone: {statistics.median(opening):.3f} s. Wanted: 1 GB/s.",
    ]
    save("verify", "`bird cache verify`, by its threads.", ("threads", "GB/s", "GB a processor second"), rows, notes)


if __name__ == "__main__":
    main()

"""What `--compress` saves and costs: bytes, writing and reading of features after a ReLU, by codec.

    python bench/compress.py [--rows 100000] [--dim 512] [--rounds 3]

Features are the largest of 0 and normal numbers, as float16: half are zeros. Everything is in the page cache, one thread.
pcodec is left out where the package is not installed.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from results import save

from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.writer import open_writer

LAYER = "penultimate"
COLUMNS = (
    "codec",
    "bytes against none",
    "written rows/s",
    "read in order, rows/s",
    "a shuffled epoch from disk, rows/s",
)


def samples(rows):
    """All train, of one class and group."""
    ids, splits, digests, status = (np.empty(rows, object) for _ in range(4))
    ids[:], splits[:] = [f"images/{row:08d}.png" for row in range(rows)], "train"
    digests[:], status[:] = [f"{row:032x}" for row in range(rows)], PENDING
    return Samples(ids, np.zeros(rows, int), np.zeros(rows, int), splits, digests, status)


def write(folder, codec, vectors, table):
    """The cache; returns the seconds of its shards."""
    plan = Plan(
        causes={"bench": len(vectors)},
        layers={LAYER: Layer(shape=vectors.shape[2:], dtype="float16", kind="penultimate")},
        rows=len(vectors),
        shard_rows=16_384,
        chunk_rows=1024,
        class_names=("a",),
        group_names=("g",),
        compress=codec,
    )
    with open_writer(folder, plan, table) as writer:
        began = time.perf_counter()
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(shard, {LAYER: vectors[start:stop]}, {})
        seconds = time.perf_counter() - began
        writer.finish()
    return seconds


def read(folder):
    """Seconds of reading all rows in order, once every hash was checked."""
    store = open_cache(folder)
    plan = store.manifest.plan
    starts = range(0, plan.rows, plan.chunk_rows)
    for _ in range(2):
        began = time.perf_counter()
        total = sum(float(store.read(LAYER, row, min(row + plan.chunk_rows, plan.rows)).max()) for row in starts)
    assert total > 0
    return time.perf_counter() - began


def epoch(folder):
    """Seconds of an epoch of a cache that does not fit into the memory it is given."""
    stream = FeatureStream(open_cache(folder), "train", batch_size=256, memory_bytes=90_000_000, window=2)
    for number in range(2):
        began = time.perf_counter()
        assert sum(len(batch.rows) for batch in stream.epoch(number))
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, value in (("--rows", 100_000), ("--dim", 512), ("--rounds", 3)):
        parser.add_argument(option, type=int, default=value)
    args = parser.parse_args()
    vectors = np.random.default_rng(0).standard_normal((args.rows, 1, args.dim)).astype(np.float32)
    np.maximum(vectors, 0, out=vectors)
    table, rows, plain = samples(args.rows), [], 0
    for codec in ("none", "zstd", "pcodec"):
        if codec == "pcodec" and importlib.util.find_spec("pcodec") is None:
            continue
        took = {"write": [], "read": [], "epoch": []}
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                took["write"].append(write(Path(folder) / "c", codec, vectors, table))
                took["read"].append(read(Path(folder) / "c"))
                took["epoch"].append(epoch(Path(folder) / "c"))
                size = open_cache(Path(folder) / "c").info()["bytes"]
        plain = plain or size
        rates = [f"{args.rows / statistics.median(took[name]):,.0f}" for name in took]
        rows.append(dict(zip(COLUMNS, (codec, f"{size / plain:.2f}", *rates), strict=True)))
    notes = [
        f"{args.rows:,} x {args.dim} float16, {plain / 1e6:,.0f} MB uncompressed, warm; median of {args.rounds} rounds."
    ]
    save("compress", "`--compress` of features after a ReLU.", COLUMNS, rows, notes)


if __name__ == "__main__":
    main()

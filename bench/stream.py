"""Rows a second of a shuffled epoch, keys checked: our stream against what else reads the same vectors from this disk.

    python bench/stream.py [--rows 200000] [--rounds 5]

All deliver float32 batches of 256 x 512 from float16 on disk. Rounds are interleaved; ratios are of the same round.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["WDS_SECURE"] = "1"

import numpy as np
import webdataset
import zarr

from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.verify import verify
from bird_cache.writer import open_writer

DIM, BATCH, BLOCK, SHARD = 512, 256, 1024, 8192


def make(folder, rows, store):
    """A cache of random vectors, as one of our stores."""
    text = [
        np.array(column, dtype=object)
        for column in zip(*((f"id-{i}", "train", f"{i:032x}", PENDING) for i in range(rows)), strict=True)
    ]
    numbers = np.arange(rows) % 2
    samples = Samples(text[0], numbers, numbers, text[1], text[2], text[3])
    plan = Plan(
        causes={"bench": rows},
        layers={"penultimate": Layer(shape=(DIM,), dtype="float16", kind="penultimate")},
        rows=rows,
        shard_rows=SHARD,
        chunk_rows=BLOCK,
        store=store,
        class_names=("a", "b"),
        group_names=("g", "h"),
    )
    rng = np.random.default_rng(0)
    with open_writer(folder, plan, samples) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            vectors = rng.standard_normal((stop - start, 1, DIM)).astype(np.float32)
            writer.write_shard(shard, {"penultimate": vectors}, {})
        writer.finish()


def stream(folder, memory_bytes, window):
    source = FeatureStream(open_cache(folder), "train", batch_size=BATCH, memory_bytes=memory_bytes, window=window)
    return lambda epoch: sum(len(batch.features["penultimate"]) for batch in source.epoch(epoch))


def shuffled_blocks(read, rows, window=10 * SHARD):
    """Blocks in random order, rows mixed within a window: what a careful person writes."""

    def epoch(number):
        rng, count = np.random.default_rng(number), 0
        blocks = rng.permutation(-(-rows // BLOCK))
        for start in range(0, len(blocks), window // BLOCK):
            held = np.concatenate(
                [read(b * BLOCK, min((b + 1) * BLOCK, rows)) for b in blocks[start : start + window // BLOCK]]
            )
            order = rng.permutation(len(held))
            for first in range(0, len(held), BATCH):
                count += len(held[order[first : first + BATCH]].astype(np.float32))
        return count

    return epoch


def tars(folder, rows):
    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))

    def epoch(number):
        pipeline = webdataset.WebDataset(shards, shardshuffle=100, seed=number).shuffle(4096).decode()
        count, batch = 0, []
        for sample in pipeline:
            batch.append(sample["penultimate.npy"][0])
            if len(batch) == BATCH:
                count, batch = count + len(np.stack(batch).astype(np.float32)), []
        return count + len(batch)

    return epoch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as box:
        make(f"{box}/zarr", options.rows, "zarr")
        make(f"{box}/tar", min(options.rows, 4 * SHARD), "webdataset")
        flat = np.lib.format.open_memmap(f"{box}/flat.npy", "w+", np.float16, (options.rows, DIM))
        flat[:] = open_cache(f"{box}/zarr").read("penultimate", 0, options.rows)[:, 0]
        mapped = np.load(f"{box}/flat.npy", mmap_mode="r")
        array = zarr.open(f"{box}/zarr", mode="r")["penultimate"]
        began = time.perf_counter()
        found = verify(f"{box}/zarr", workers=2)
        speed = found.bytes / (time.perf_counter() - began) / 1e9
        assert not found.findings
        group = 10 * SHARD * DIM * 2
        runs = {
            "bird, in memory": stream(f"{box}/zarr", 4 << 30, None),
            "bird, bounded": stream(f"{box}/zarr", 2 * group + 1, 10) if options.rows > 22 * SHARD else None,
            "numpy memmap, shuffled blocks": shuffled_blocks(lambda a, b: np.array(mapped[a:b]), options.rows),
            "numpy memmap, random rows": lambda number: sum(
                len(mapped[rows].astype(np.float32))
                for rows in np.array_split(
                    np.random.default_rng(number).permutation(options.rows), options.rows // BATCH
                )
            ),
            "plain zarr, shuffled blocks": shuffled_blocks(lambda a, b: array[a:b][:, 0], options.rows),
            "webdataset, our tars": tars(f"{box}/tar", options.rows),
        }
        rates = {name: [] for name, run in runs.items() if run}
        for number in range(options.rounds + 1):
            for name in rates:
                began = time.perf_counter()
                count = runs[name](number)
                if number:  # the first round warms the page cache
                    rates[name].append(count / (time.perf_counter() - began))
        bytes_a_row = (
            sum(path.stat().st_size for path in Path(f"{box}/zarr/penultimate").rglob("*") if path.is_file())
            / options.rows
        )
    ours = rates["bird, in memory"]
    result = {
        "rows": options.rows,
        "verify GB/s": round(speed, 2),
        "bytes a row / 2d": round(bytes_a_row / (2 * DIM), 4),
    }
    for name, values in rates.items():
        ratios = sorted(a / b for a, b in zip(ours, values, strict=True))
        result[name] = {
            "rows/s": round(statistics.median(values)),
            "GB/s": round(statistics.median(values) * DIM * 2 / 1e9, 3),
            "bird in memory over it": [round(r, 2) for r in (ratios[0], statistics.median(ratios), ratios[-1])],
        }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

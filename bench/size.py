"""What a row costs in caches of 10 k to 10 M rows: writing, opening, one shuffled epoch in bounded memory; bytes, memory.

    OMP_NUM_THREADS=1 python bench/size.py [--rows 10000 100000 1000000] [--dim 64] [--work FOLDER]

Synthetic float16 vectors, in a folder that is deleted afterwards. Every phase is a process of its own: its peak memory is
the system's word (ru_maxrss), and its time is processor time, since other programs run here, too. The row of 400 M rows is
an extrapolation: what one row and one byte cost in the largest cache measured, times their number.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LAYER, BATCH, BOUND, CHUNK_ROWS, SHARD_BYTES = "penultimate", 256, 128 << 20, 1024, 2 << 20
WIDE, MANY, WIDE_SHARD_BYTES = 768, 400_000_000, 64 << 20


def samples_of(rows):
    """The sample table of a large image set: short names, digests of 32 digits, one split."""
    from bird_cache.samples import PENDING, Samples

    def text(values):
        found = np.empty(rows, dtype=object)
        found[:] = values
        return found

    names, drawn = [f"images/{row:09d}.jpg" for row in range(rows)], np.random.default_rng(1).bytes(16 * rows).hex()
    digests = [drawn[at : at + 32] for at in range(0, 32 * rows, 32)]
    number = np.arange(rows)
    return Samples(text(names), number % 2, number // 2 % 2, text("train"), text(digests), text(PENDING))


def write(folder, rows, dim):
    """Seconds of the vectors' part, and of all that the sample table needs."""
    from bird_cache.manifest import Layer, Plan
    from bird_cache.writer import open_writer

    vectors = np.random.default_rng(0).standard_normal((SHARD_BYTES // (2 * dim), 1, dim), np.float32)
    plan = Plan(
        causes={"teacher": "none"},
        layers={LAYER: Layer(shape=(dim,), dtype="float16", kind="penultimate")},
        rows=rows,
        shard_rows=len(vectors),
        chunk_rows=CHUNK_ROWS,
        class_names=("no", "yes"),
        group_names=("f", "m"),
    )
    samples = samples_of(rows)
    began = time.process_time()
    with open_writer(folder, plan, samples) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(shard, {LAYER: vectors[: stop - start]}, {})
        writer.finish()
    return time.process_time() - began


def opened(folder, rows, dim):
    from bird_cache.store import open_cache

    began = time.process_time()
    store = open_cache(folder)
    assert len(store.samples) == rows
    return time.process_time() - began


def epoch(folder, rows, dim):
    """One shuffled epoch, without the opening."""
    from bird_cache.store import open_cache
    from bird_cache.stream import FeatureStream

    store = open_cache(folder)
    began = time.process_time()
    stream = FeatureStream(store, "train", layers=(LAYER,), batch_size=BATCH, seed=0, memory_bytes=BOUND, window=8)
    count = sum(len(batch.ids) for batch in stream.epoch(0))
    assert count == rows
    return time.process_time() - began


PHASES = {"write": write, "open": opened, "epoch": epoch}


def phase(name, folder, rows, dim):
    """Seconds and peak bytes of a phase in a process of its own."""
    command = [sys.executable, __file__, "--phase", name, str(folder), "--rows", str(rows), "--dim", str(dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def measure(work, rows, dim, rounds):
    """The least of some rounds of each phase; what disturbs a round only makes it longer."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        found = {}
        for number in range(rounds):
            folder = Path(place) / str(number % 2)
            for name in PHASES:
                if name == "write" and rows > 1_000_000 and number:
                    continue  # disk, and time
                got = phase(name, Path(place) / "0" if name != "write" and rows > 1_000_000 else folder, rows, dim)
                if name not in found or got["seconds"] < found[name]["seconds"]:
                    found[name] = got
            if number < rounds - 1 and rows <= 1_000_000:
                remove(folder)
        left = Path(place) / ("0" if rows > 1_000_000 else str((rounds - 1) % 2))
        size = sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
        table = (left / "samples.parquet").stat().st_size
    return found | {"bytes": size, "table": table}


def peak():
    """The most memory that this process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def remove(folder):
    import shutil

    shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--phase", nargs=2, help="for this file's own use")
    options = parser.parse_args()
    if options.phase:
        name, folder = options.phase
        with tempfile.TemporaryDirectory() as small:  # what is imported and allocated once is no cost of a row
            for each in PHASES.values():
                each(Path(small), 2 * BATCH, options.dim)
        before = peak()
        seconds = PHASES[name](Path(folder), options.rows[0], options.dim)
        print(json.dumps({"seconds": seconds, "peak": peak() - before}))
        return
    rows = []
    for count in options.rows:
        found = measure(options.work, count, options.dim, options.rounds)
        rows.append(row(count, options.dim, found))
        print(rows[-1], flush=True)
    rows.append(extrapolated(rows[-1], options.dim))
    from results import save  # it brings torch, and a process starts with the peak of the one that started it

    columns = ["rows", "width", *(f"{name}, µs a row" for name in PHASES), *(f"{name}, peak MiB" for name in PHASES)]
    columns += ["bytes a row over vectors", "table, bytes a row", "GB", "shards", "hours to write", "hours an epoch"]
    notes = [
        "Processor time of one thread, the least of some rounds. Peaks are above what the same phase takes with 512 rows. "
        "Peaks of 'write' hold the whole sample table, made in memory.",
        f"Epoch: shuffled in groups of 8 shards, at most {BOUND >> 20} MiB of vectors held. The last row is extrapolated, "
        f"not measured, with shards of {WIDE_SHARD_BYTES >> 20} MiB.",
    ]
    save("size", "Cost against size, synthetic vectors in float16", columns, rows, notes)


def row(count, dim, found):
    return {
        "rows": count,
        "width": dim,
        **{f"{name}, µs a row": 1e6 * found[name]["seconds"] / count for name in PHASES},
        **{f"{name}, peak MiB": found[name]["peak"] / 2**20 for name in PHASES},
        "bytes a row over vectors": found["bytes"] / count - 2 * dim,
        "table, bytes a row": found["table"] / count,
        "GB": found["bytes"] / 1e9,
        "shards": -(-count * 2 * dim // SHARD_BYTES),
        "hours to write": found["write"]["seconds"] / 3600,
        "hours an epoch": found["epoch"]["seconds"] / 3600,
    }


def extrapolated(last, dim):
    """Costs a row stay; what a row's vector costs grows with its width (all of writing and streaming, to be safe)."""
    size = 2 * WIDE + last["bytes a row over vectors"]
    wider = WIDE / dim
    return {
        "rows": MANY,
        "width": WIDE,
        "open, µs a row": last["open, µs a row"],
        "open, peak MiB": last["open, peak MiB"] / last["rows"] * MANY,
        "table, bytes a row": last["table, bytes a row"],
        "bytes a row over vectors": last["bytes a row over vectors"],
        "GB": MANY * size / 1e9,
        "shards": -(-MANY * 2 * WIDE // WIDE_SHARD_BYTES),
        "hours to write": MANY * last["write, µs a row"] * wider / 3.6e9,
        "hours an epoch": MANY * last["epoch, µs a row"] * wider / 3.6e9,
    }


if __name__ == "__main__":
    main()

"""What a row costs in caches of 10 k to 10 M rows: writing, opening, one shuffled epoch in bounded memory; bytes, memory.

    OMP_NUM_THREADS=1 python bench/size.py [--rows 10000 100000 1000000] [--dim 64] [--work FOLDER]

Synthetic float16 vectors, in a folder that is deleted afterwards. Every phase is a process of its own: its peak memory is
the system's word (VmHWM, above what was held when it began), and its time is processor time, since other programs run
here, too. A phase has a fixed cost and one of each row: beside the mean of all rows stands what the further rows cost,
those that a cache has more than the next smaller one. The row of 400 M rows is an extrapolation: what one further row and
one byte cost in the largest cache measured, times their number.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LAYER, BATCH, CHUNK_ROWS, SHARD_BYTES = "penultimate", 256, 1024, 2 << 20
WINDOW, BOUND = 2, 12 << 20  # so few that 100 k rows are more than are held, too
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
    """All but the making of the table, which is the caller's and stays in memory."""
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
    with costs() as found, open_writer(folder, plan, samples) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(shard, {LAYER: vectors[: stop - start]}, {})
        writer.finish()
    return found


def opened(folder, rows, dim):
    from bird_cache.store import open_cache

    with costs() as found:
        store = open_cache(folder)
    assert len(store.samples) == rows
    return found


def epoch(folder, rows, dim):
    """One shuffled epoch, without the time of opening; what the open cache holds is part of the peak."""
    from bird_cache.store import open_cache
    from bird_cache.stream import FeatureStream

    with costs() as whole:
        store = open_cache(folder)
        with costs() as found:
            stream = FeatureStream(
                store, "train", layers=(LAYER,), batch_size=BATCH, seed=0, memory_bytes=BOUND, window=WINDOW
            )
            count = sum(len(batch.ids) for batch in stream.epoch(0))
    assert count == rows
    return found | {"peak": whole["peak"]}


PHASES = {"write": write, "open": opened, "epoch": epoch}
FURTHER, GROWTH = "{}, µs a further row", "{}, bytes of peak a further row"


@contextlib.contextmanager
def costs():
    """Processor seconds of what is done inside, and the most bytes held above what was held before."""
    found = {}
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    held, began = memory("VmRSS"), time.process_time()
    yield found
    found |= {"seconds": time.process_time() - began, "peak": memory("VmHWM") - held}


def memory(name):
    """What the system says of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


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
        print(json.dumps(PHASES[name](Path(folder), options.rows[0], options.dim)))
        return
    rows = []
    for count in options.rows:
        found = measure(options.work, count, options.dim, options.rounds)
        rows.append(row(count, options.dim, found))
        if len(rows) > 1:
            rows[-1] |= further(rows[-2], rows[-1])
        print(rows[-1], flush=True)
    if len(rows) > 1:
        rows.append(extrapolated(rows[-1], options.dim))
    from results import save  # it brings torch, and a process starts with the peak of the one that started it

    columns = ["rows", "width", *(f"{name}, µs a row" for name in PHASES), *(FURTHER.format(name) for name in PHASES)]
    columns += [*(f"{name}, peak MiB" for name in PHASES), *(GROWTH.format(name) for name in PHASES)]
    columns += ["bytes a row over vectors", "table, bytes a row", "GB", "shards", "hours to write", "hours an epoch"]
    notes = [
        "Processor time of one thread, the least of some rounds. Further rows: those that this cache has more than the one "
        "above it, without the fixed costs. Peaks are above what was held before; that of 'write' leaves out the sample "
        "table, which the caller made in memory; that of 'epoch' holds the open cache.",
        f"Epoch: shuffled in groups of {WINDOW} shards, at most {BOUND >> 20} MiB of vectors held. The last row is "
        f"extrapolated, not measured, with shards of {WIDE_SHARD_BYTES >> 20} MiB; its peaks are with as few vectors held.",
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


def further(smaller, larger):
    """What the rows cost that the larger cache has more."""
    more = larger["rows"] - smaller["rows"]
    found = {}
    for name in PHASES:
        seconds, bytes_held = (
            [cache[f"{name}, µs a row"] * cache["rows"] for cache in (smaller, larger)],
            [cache[f"{name}, peak MiB"] * 2**20 for cache in (smaller, larger)],
        )
        found[FURTHER.format(name)] = (seconds[1] - seconds[0]) / more
        found[GROWTH.format(name)] = (bytes_held[1] - bytes_held[0]) / more
    return found


def extrapolated(last, dim):
    """What a further row costs stays; its vector's part grows with its width (all of writing and streaming, to be safe)."""
    size = 2 * WIDE + last["bytes a row over vectors"]
    wider = WIDE / dim
    more = MANY - last["rows"]
    peaks = {
        f"{name}, peak MiB": last[f"{name}, peak MiB"] + last[GROWTH.format(name)] * more / 2**20 for name in PHASES
    }
    return {
        "rows": MANY,
        "width": WIDE,
        "open, µs a row": last["open, µs a row"],
        **peaks,
        "table, bytes a row": last["table, bytes a row"],
        "bytes a row over vectors": last["bytes a row over vectors"],
        "GB": MANY * size / 1e9,
        "shards": -(-MANY * 2 * WIDE // WIDE_SHARD_BYTES),
        "hours to write": MANY * last["write, µs a row"] * wider / 3.6e9,
        "hours an epoch": MANY * last["epoch, µs a row"] * wider / 3.6e9,
    }


if __name__ == "__main__":
    main()

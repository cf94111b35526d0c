"""Shuffled epochs of cached vectors: our stream beside other ways to read the same ones. Paired, in one process.

    python bench/stream.py [--rows 200000] [--dim 512] [--batch 256] [--rounds 5] [--only NAME ...] [--out out/stream.json]

litdata and mosaicml-streaming pin other versions than we do. To have them in the table, give them an environment of
their own that finds ours (PYTHON is the interpreter of ours), and run there; without them they are left out:

    python -m venv /tmp/bench-stream && /tmp/bench-stream/bin/pip install litdata mosaicml-streaming
    PYTHON -c "import site; print(site.getsitepackages()[0])" > "$(/tmp/bench-stream/bin/python -c \
        "import site; print(site.getsitepackages()[0])")/zz_ours.pth"
    PYTHONPATH=.:cache:pipelines /tmp/bench-stream/bin/python bench/stream.py

Every contestant reads from a warm page cache, has no worker processes, and ends where a training step begins: float32
(batch, dim). Each is asked once, untimed, whether it gives every vector once. Rounds time one epoch of each, in turn;
a ratio is taken within a round.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.writer import open_writer

SHARD_ROWS, CHUNK_ROWS, WINDOW = 8192, 1024, 4
LAYER, OURS = "penultimate", "bird, in memory"
CHECKS = {
    "bird, in memory": "key of every row; shard hash at first touch; NaN at load",
    "bird, bounded": "key of every row; shard hash at first touch; NaN at load",
    "memmap, random rows": "nothing",
    "memmap, shuffled blocks": "nothing",
    "zarr, shuffled chunks": "CRC32C of every chunk; no keys",
    "webdataset": "nothing; the key travels with the row",
    "litdata": "nothing; the id travels with the row",
    "mosaicml-streaming": "nothing by default; the id travels with the row",
}


def name_of(row):
    return f"images/{row:08d}.png"


def widened(stored):
    """The fastest way here from float16 to float32."""
    return torch.from_numpy(np.ascontiguousarray(stored)).float()


def shuffled_groups(count, unit, epoch, read, batch):
    """Units permuted, groups of `WINDOW` shards' worth read and shuffled: the order of our bounded stream."""
    rng = np.random.default_rng(epoch)
    starts, together = rng.permutation(np.arange(0, count, unit)), WINDOW * SHARD_ROWS // unit
    for first in range(0, len(starts), together):
        group = np.concatenate([read(start, min(start + unit, count)) for start in starts[first : first + together]])
        order = rng.permutation(len(group))
        for at in range(0, len(group), batch):
            yield None, widened(group[order[at : at + batch]])


def write_cache(folder, vectors):
    rows = len(vectors)
    number = np.arange(rows)

    def text(values):
        return np.array(values, dtype=object)

    names = text([name_of(row) for row in range(rows)])
    digests = text([f"{row:032x}" for row in range(rows)])
    samples = Samples(names, number % 10, number % 2, text(["train"] * rows), digests, text([PENDING] * rows))
    plan = Plan(
        causes={"teacher": "none"},
        layers={LAYER: Layer(shape=vectors.shape[1:], dtype="float16", kind="penultimate")},
        rows=rows,
        shard_rows=SHARD_ROWS,
        chunk_rows=CHUNK_ROWS,
        class_names=tuple("abcdefghij"),
        group_names=("g", "h"),
    )
    with open_writer(folder, plan, samples) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(shard, {LAYER: vectors[start:stop, None].astype(np.float32)}, {})
        writer.finish()


def bird(folder, vectors, batch, memory_bytes, window):
    stream = FeatureStream(
        open_cache(folder / "cache"), "train", batch_size=batch, memory_bytes=memory_bytes, window=window, widen=False
    )

    def epoch(number):
        for given in stream.epoch(number):
            yield given.ids, widened(given.features[LAYER])

    return epoch


def bird_in_memory(folder, vectors, batch):
    return bird(folder, vectors, batch, 4 << 30, None)


def bird_bounded(folder, vectors, batch):
    return bird(folder, vectors, batch, 2 * WINDOW * SHARD_ROWS * vectors[0].nbytes, WINDOW)


def memmap_rows(folder, vectors, batch):
    mapped = np.load(folder / "vectors.npy", mmap_mode="r")

    def epoch(number):
        order = np.random.default_rng(number).permutation(len(mapped))
        for at in range(0, len(order), batch):
            yield None, widened(mapped.take(order[at : at + batch], axis=0))

    return epoch


def memmap_blocks(folder, vectors, batch):
    mapped = np.load(folder / "vectors.npy", mmap_mode="r")
    return lambda number: shuffled_groups(len(mapped), CHUNK_ROWS, number, lambda a, b: mapped[a:b], batch)


def zarr_chunks(folder, vectors, batch):
    import zarr

    array = zarr.open(str(folder / "cache"), mode="r")[LAYER]
    return lambda number: shuffled_groups(
        len(vectors), CHUNK_ROWS, number, lambda a, b: array[int(a) : int(b), 0], batch
    )


def webdataset(folder, vectors, batch):
    import webdataset as wds

    (folder / "tars").mkdir()
    with wds.ShardWriter(str(folder / "tars/%06d.tar"), maxcount=SHARD_ROWS, verbose=0) as sink:
        for row, vector in enumerate(vectors):
            sink.write({"__key__": f"{row:08d}", "npy": vector})
    urls = sorted(map(str, (folder / "tars").glob("*.tar")))

    def epoch(number):
        data = wds.WebDataset(urls, shardshuffle=len(urls), seed=number, empty_check=False)
        data = data.shuffle(SHARD_ROWS).decode().to_tuple("__key__", "npy").batched(batch)
        for keys, stored in data:
            yield [name_of(int(key)) for key in keys], widened(np.stack(stored))

    return epoch


def lit_items(part):
    path, start, stop = part
    vectors = np.load(path, mmap_mode="r")
    for row in range(start, stop):
        yield {"id": name_of(row), "x": np.array(vectors[row])}


def litdata(folder, vectors, batch):
    import litdata as lit

    rows = len(vectors)
    parts = [(str(folder / "vectors.npy"), at, min(at + SHARD_ROWS, rows)) for at in range(0, rows, SHARD_ROWS)]
    out = str(folder / "lit")
    lit.optimize(lit_items, parts, output_dir=out, chunk_size=SHARD_ROWS, num_workers=1, verbose=False)
    data = lit.StreamingDataset(out, shuffle=True)

    def epoch(number):
        data.set_epoch(number)
        loader = lit.StreamingDataLoader(data, batch_size=batch, num_workers=0, collate_fn=collated)
        yield from loader

    return epoch


def collated(items):
    return [item["id"] for item in items], widened(np.stack([item["x"] for item in items]))


def mosaicml(folder, vectors, batch):
    import streaming

    out = str(folder / "mds")
    with streaming.MDSWriter(out=out, columns={"id": "str", "x": f"ndarray:float16:{vectors.shape[1]}"}) as sink:
        for row, vector in enumerate(vectors):
            sink.write({"id": name_of(row), "x": vector})
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=out, shuffle=True, batch_size=batch, num_canonical_nodes=1)
    return lambda number: iter(torch.utils.data.DataLoader(data, batch_size=batch, collate_fn=collated))


CONTESTANTS = {
    "bird, in memory": ("bird_cache", bird_in_memory),
    "bird, bounded": ("bird_cache", bird_bounded),
    "memmap, random rows": ("numpy", memmap_rows),
    "memmap, shuffled blocks": ("numpy", memmap_blocks),
    "zarr, shuffled chunks": ("zarr", zarr_chunks),
    "webdataset": ("webdataset", webdataset),
    "litdata": ("litdata", litdata),
    "mosaicml-streaming": ("streaming", mosaicml),
}


def prove(name, epoch, vectors):
    """Whether an epoch holds every vector once, and under its id where there are ids."""
    seen, total = [], 0.0
    for ids, features in epoch:
        features = np.asarray(features)
        total += float(features.sum(dtype=np.float64))
        if ids is not None:
            rows = [int(id[7:15]) for id in ids]
            np.testing.assert_array_equal(features[:, :8], vectors[rows, :8].astype(np.float32), err_msg=name)
            seen += rows
    expected = float(vectors.sum(dtype=np.float64))
    if abs(total - expected) > 1e-6 * vectors.size or (seen and sorted(seen) != list(range(len(vectors)))):
        raise SystemExit(f"{name} does not give every vector once")


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def measure(folder, options):
    vectors = np.random.default_rng(0).standard_normal((options.rows, options.dim), np.float32).astype(np.float16)
    np.save(folder / "vectors.npy", vectors)
    write_cache(folder / "cache", vectors)
    epochs = {}
    for name, (module, prepare) in CONTESTANTS.items():
        if name != OURS and options.only and name not in options.only:
            continue
        if importlib.util.find_spec(module) is None:
            sys.stderr.write(f"{name} left out: no {module} here (how to have it: the first lines of this file)\n")
            continue
        epochs[name] = prepare(folder, vectors, options.batch)
        prove(name, epochs[name](0), vectors)
    rates = {name: [] for name in epochs}
    for number in range(1, options.rounds + 1):
        for name, epoch in epochs.items():
            began = time.perf_counter()
            count = sum(len(features) for _, features in epoch(number))
            rates[name].append(count / (time.perf_counter() - began))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, help="where the copies are written for the while; default: a temporary folder"
    )
    parser.add_argument("--only", nargs="+", choices=[*CONTESTANTS], help="these and ours; default: all that are here")
    parser.add_argument("--out", type=Path, default=Path("out/stream.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        rates = measure(Path(folder), options)
    ours = rates[OURS]
    results = {
        name: {
            "rows_per_second": spread(found),
            "gigabytes_per_second": statistics.median(found) * options.dim * 2 / 1e9,
            "bird_in_memory_over_it": spread([a / b for a, b in zip(ours, found, strict=True)]),
            "checks": CHECKS[name],
        }
        for name, found in rates.items()
    }
    said = {"rows": options.rows, "dim": options.dim, "batch": options.batch, "rounds": options.rounds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**said, "numpy": np.__version__, "results": results}, indent=1) + "\n")
    for name, found in sorted(results.items(), key=lambda item: -item[1]["rows_per_second"]["median"]):
        rate, ratio = found["rows_per_second"], found["bird_in_memory_over_it"]
        sys.stdout.write(
            f"{name:24} {rate['median']:>10,.0f} rows/s ({rate['min']:,.0f}-{rate['max']:,.0f})"
            f"  {found['gigabytes_per_second']:.3f} GB/s  ours/it {ratio['median']:.2f}"
            f" ({ratio['min']:.2f}-{ratio['max']:.2f})  checks: {found['checks']}\n"
        )


if __name__ == "__main__":
    main()

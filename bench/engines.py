"""Ray's actors against local processes: the same shards of the same plan, on this machine. Paired.

    python bench/engines.py --onnx FILE --data FOLDER [--images 4000] [--rounds 3] [--workers 2] [--shard-rows 256]

`bird precompute` of CIFAR-10S with a black box. Each round computes the shards with N processes and with N actors of a Ray
that this machine starts, one after the other, in alternating order. Start-up is the time until the last worker has its
teacher; the rate is that of the rest. The caches of all rounds must be equal to the byte.
"""

import argparse
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import torch
from results import paired, save

from bird.datasets.base import prepare
from bird.devices import threads
from bird_pipelines.config import resolve_precompute
from bird_pipelines.precomputing.engines import ENGINES
from bird_pipelines.precomputing.engines.base import Order
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.precomputing.extraction import open_for, planned
from bird_pipelines.precomputing.teacher import open_data, open_teacher

OPTION = {"local": "processes", "ray": "actors"}


def write(engine, flags, count, table, data, teacher, out):
    """Seconds until every worker is ready, seconds of the work, and the files that it made."""
    config = resolve_precompute({**flags, "out": out, "engine": engine, OPTION[engine]: count})
    plan, samples, _ = planned(teacher, data, table, config.stored, "fp32", config.work.batch_size)
    began = time.perf_counter()
    with open_for(out, plan, samples) as writer:
        asked, threads = pickle.dumps(config), torch.get_num_threads()
        order = Order(asked, plan.fingerprint, "", writer.pending(), 0.01, threads, str(Path.cwd()))
        with ENGINES[engine](order) as workers:
            while workers.free() < count:
                assert not workers.wait(0.1), "a worker could not begin"
            ready = time.perf_counter()
            Coordinator(writer, workers, lambda *_: None, 0.01).run(lambda: False)
            done = time.perf_counter()
        writer.finish()
    files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.rmtree(out)
    return ready - began, done - ready, files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=256)
    given = parser.parse_args()
    flags = {"teacher": f"onnx:{given.onnx}", "dataset": "cifar10s", "data_root": given.data, "limit": given.images}
    flags |= {"image_size": 96, "workers": 1, "shard_rows": given.shard_rows}
    config = resolve_precompute({**flags, "out": "unused"})
    data, teacher = open_data(config), open_teacher(config)
    table = prepare(data, limit=given.images, workers=2)
    rates, starts, first = {"local": [], "ray": []}, {"local": [], "ray": []}, None
    with tempfile.TemporaryDirectory() as folder, threads(1):
        for number in range(given.rounds):
            for engine in ("local", "ray") if number % 2 else ("ray", "local"):
                out = Path(folder) / "cache"
                start, seconds, files = write(engine, flags, given.workers, table, data, teacher, out)
                first = first or files
                assert files == first, "not the same cache"
                rates[engine].append(len(table) / seconds)
                starts[engine].append(start)
                print(engine, f"{start:.1f} s to start, {rates[engine][-1]:.0f} images/s", flush=True)
    row = {
        "workers": given.workers,
        "processes: s to start": sorted(starts["local"])[given.rounds // 2],
        "Ray: s to start": sorted(starts["ray"])[given.rounds // 2],
        "processes: images/s": sorted(rates["local"])[given.rounds // 2],
        "Ray: images/s": sorted(rates["ray"])[given.rounds // 2],
        "Ray / processes": paired(rates["ray"], rates["local"]),
    }
    notes = [
        f"{len(table):,} images, shards of {given.shard_rows} rows, {given.rounds} rounds; every cache equal to the byte.",
        "A worker has one torch thread. Wanted: .95 of the rate once started.",
    ]
    save("engines", "Ray's actors against processes of the same number.", [*row], [row], notes)


if __name__ == "__main__":
    main()

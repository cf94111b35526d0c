"""One student in several processes: what a BIRD step sends, and what it costs each of them, by gloo on one machine.

    OMP_NUM_THREADS=1 python bench/ranks.py [--worlds 1 2] [--students adapter] [--steps 20] [--rounds 7]

The training loop of `bird distill` after the warmup, on synthetic images and vectors, under torchrun; batches of 128 rows in
all. Numbers sent are counted in the first of the steps that is not checked by the guard. Processor time is of one rank: on a
machine with fewer free cores than ranks the time that passes says nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from distill import DecodedImages
from results import save
from synthetic import run_data

from bird.datasets.base import SampleTable
from bird_cache.order import batches, shuffled
from bird_pipelines.config.reading import run_of
from bird_pipelines.distilling.ranks import joined
from bird_pipelines.distilling.training import Trainer

CLASSES, GROUPS, DIM, ROWS, BATCH = 10, 2, 512, 4000, 128
STUDENTS = ("adapter", "shufflenetv2")


def data_of(student):
    number = np.arange(ROWS)
    ids = np.array([f"{row:06d}" for row in number], dtype=object)
    splits = np.where(number % 10 == 0, "meta", "train").astype(object)
    table = SampleTable(ids, number % 97 % CLASSES, number % 89 % GROUPS, splits, ids)
    return run_data(
        table,
        class_names=tuple("abcdefghij"),
        group_names=("g", "h"),
        image_size=32,
        images=None if student == "adapter" else DecodedImages(ROWS, 32),
        features=torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)),
    )


def measure(student, options, world, folder):
    given = {
        "dataset": "synthetic",
        "student": student,
        "method": "bird",
        "batch_size": BATCH,
        "warmup": 0,
        "cache": "none",
    }
    one = Trainer(run_of({**given, "out": folder}), data_of(student), world)
    sent, reduce = [], one.learner.ranks.reduce

    def counted(vector):
        sent.append(vector.numel())
        return reduce(vector)

    order = [*batches(shuffled(one.train_rows, 0, 0), BATCH)]
    for number in range(9):  # the guard checks the first eight
        sent.clear()
        if reduce is not None:
            one.learner.ranks.reduce = counted
        one.one_step(one.material(number, order[number]))
    one.learner.ranks.reduce = reduce
    cpu, wall = [], []
    for _ in range(options.rounds):
        began = time.process_time(), time.monotonic()
        for number in range(options.steps):
            one.one_step(one.material(one.step, order[number % len(order)]))
        cpu.append((time.process_time() - began[0]) / options.steps)
        wall.append((time.monotonic() - began[1]) / options.steps)
    theta = sum(each.numel() for each in one.learner.model.parameters())
    return {
        "student": student,
        "ranks": world.size,
        "theta": theta,
        "sums a step": len(sent),
        "numbers sent": sum(sent),
        "beyond 3 theta": sum(sent) - 3 * theta if sent else 0,
        "processor, ms a step": 1000 * statistics.median(cpu),
        "passed, ms a step": 1000 * statistics.median(wall),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for world in options.worlds:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
            subprocess.run(
                [*torchrun, *sys.argv, "--worker", folder], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            rows += json.loads((Path(folder) / "rows.json").read_text())
    rows.sort(key=lambda row: row["student"])
    save(
        "ranks",
        "A BIRD step in several processes.",
        [*rows[0]],
        rows,
        [f"batch {BATCH} in all, 8 of each cell in the meta batch"],
    )


def worker(options):
    torch.set_num_threads(1)
    place = run_of({"dataset": "synthetic", "student": "adapter", "method": "bird", "out": options.worker}).place
    with joined(place) as world, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [measure(student, options, world, options.worker) for student in options.students]
        if world.first:
            (Path(options.worker) / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

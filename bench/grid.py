"""Table 1 at CelebA's size from the cache: 90 adapters as `bird reproduce` trains them, against one run at a time.

    OMP_NUM_THREADS=1 python bench/grid.py [--dims 1024 512 768] [--steps 20] [--rounds 3] [--precision fp32]

A scaled protocol: the whole table takes an hour. Rows are synthetic, and as many as CelebA's, held as training holds them.
For each width (FLAVA 768, CLIP ViT-B/32 512, CLIP RN50 1024) and method the processor time is taken of some steps of
either half of a run (before and after the warmup), of an evaluation of the meta split, and of the end of a run; and
multiplied by how often the recipe (10 epochs, warmup 5, batches of 128, 5 seeds) has them. "Together" is two processes
at once, each with the stacks that `distill_many` makes, scheduled as `bird reproduce --jobs 2` does, the dearest first.
"One by one" is one process, a run at a time (`bird distill`). The two take turns, round by round. The limit is the matrix
products of the forward and backward pass at the rate that torch.mm reaches alone.
"""

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from results import paired, save
from synthetic import run_data

from bird.datasets.base import SampleTable
from bird.methods import METHODS, Hyperparameters, build_method
from bird_cache.order import batches, shuffled
from bird_pipelines.config.reading import run_of
from bird_pipelines.distilling.scoring import meta_score
from bird_pipelines.distilling.side_by_side import Source, Stack, models_at_once
from bird_pipelines.distilling.training import Trainer

TRAIN, META, TEST = 162_770, 19_867, 19_962
EPOCHS, WARMUP, BATCH, SEEDS = 10, 5, 128, 5
METHODS_OF_TABLE = ("baseline", "bkd", "fitnet", "ad", "mfd", "bird")


def data_of(dim):
    """CelebA's rows with synthetic vectors: two classes, two groups."""
    rng = np.random.default_rng(dim)
    splits = np.repeat(np.array(["train", "meta", "test"], dtype=object), [TRAIN, META, TEST])
    rows = len(splits)
    labels, groups = rng.integers(0, 2, (2, rows))
    ids = np.array([f"{row:06d}.jpg" for row in range(rows)], dtype=object)
    generator = torch.Generator().manual_seed(dim)
    return run_data(
        SampleTable(ids, labels, groups, splits, ids),
        class_names=("no", "yes"),
        group_names=("f", "m"),
        image_size=0,
        features=torch.randn(rows, dim, generator=generator),
        logits=torch.randn(rows, 2, generator=generator),
    )


def configs(method, folder, count, precision, device):
    given = {"dataset": "celeba", "student": "adapter", "method": method, "epochs": EPOCHS, "warmup": WARMUP}
    given |= {"batch_size": BATCH, "precision": precision, "device": device}
    return [run_of({**given, "seed": seed, "out": Path(folder) / f"{method}-{seed}"}) for seed in range(count)]


class Bench:
    """One (width, method): the runs one by one, and the same in stacks."""

    def __init__(self, data, method, folder, precision, device, clock):
        self.data, self.kind, self.clock = data, build_method(method, Hyperparameters(), 2), clock
        self.runs = configs(method, folder, SEEDS, precision, device)
        self.single = Trainer(self.runs[0], data)
        self.single.teacher_logits = data.logits.to(self.single.device) if self.kind.logits else None
        self.count = models_at_once(data) if self.kind.stackable else 1
        self.count = min(self.count, SEEDS)
        self.stack = None
        if self.kind.stackable:
            source = copy.copy(SOURCES.setdefault(id(data), Source(self.runs[0], data)))
            source.method = self.single.method
            source.logits = data.logits.to(source.device) if self.kind.logits else None
            self.stack = Stack([Trainer(each, data) for each in self.runs[: self.count]], source)

    def steps(self, together, warm, steps):
        """Seconds of `steps` steps of one run, or of a run's share of a stack."""
        epoch = WARMUP if warm else 0
        if together and self.stack is not None:
            trainers = self.stack.trainers
            orders = [
                list(batches(shuffled(t.train_rows, t.config.training.seed, epoch), BATCH))[:steps] for t in trainers
            ]
            given, step = [np.stack(rows) for rows in zip(*orders, strict=True)], self.stack.one_step
        else:
            trainers = [self.single]
            given = list(batches(shuffled(self.single.train_rows, 0, epoch), BATCH))[:steps]

            def step(rows):
                return self.single.one_step(self.single.material(self.single.step, rows))

        for trainer in trainers:
            trainer.epoch = epoch
        began = self.clock()
        for rows in given:
            step(rows)
        return (self.clock() - began) / len(trainers)

    def evaluation(self):
        began = self.clock()
        meta_score(self.single.learner.student, self.single.data, self.single.device)
        return self.clock() - began

    def end(self):
        self.single.config.place.out.mkdir(parents=True, exist_ok=True)
        began = self.clock()
        self.single.conclude()
        return self.clock() - began


SOURCES = {}


def measure(dim, methods, steps, together, precision, device="cpu", clock=time.thread_time):
    """Seconds of one run of each method, extrapolated from `steps` steps of each half."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if dim not in DATA:
        DATA.clear()
        SOURCES.clear()
        DATA[dim] = data_of(dim), tempfile.TemporaryDirectory(), {}
    data, folder, benches = DATA[dim]
    found = {}
    for method in methods:
        if method not in benches:
            benches[method] = bench = Bench(data, method, folder.name, precision, device, clock)
            for warm in (False, True):
                bench.steps(together, warm, 3)
            bench.shared = EPOCHS * bench.evaluation() + bench.end()
        bench, an_epoch = benches[method], -(-TRAIN // BATCH)
        cold, warm = (bench.steps(together, after, steps) / steps for after in (False, True))
        train = an_epoch * (WARMUP * cold + (EPOCHS - WARMUP) * warm)
        found[method] = {
            "train": train,
            "rest": bench.shared,
            "cold": cold,
            "warm": warm,
            "models": bench.count,
        }
    return found


DATA = {}


def peak(dim, precision):
    """Operations a second of torch.mm in the two products of a step, one thread: the best of some."""
    torch.set_num_threads(1)
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    inputs, weight = torch.randn(BATCH, dim).to(kind), torch.randn(dim, dim).to(kind)
    best = []
    for product in (lambda: inputs @ weight.mT, lambda: inputs.mT @ inputs):
        seconds = []
        for _ in range(30):
            began = time.thread_time()
            product()
            seconds.append(time.thread_time() - began)
        best.append(min(seconds))
    return 4 * BATCH * dim * dim / sum(best)


def makespan(seconds, jobs=2):
    """Wall time of independent steps, the dearest first, each to the process that is free first."""
    ends = [0.0] * jobs
    for each in sorted(seconds, reverse=True):
        ends[ends.index(min(ends))] += each
    return max(ends)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS_OF_TABLE, choices=[*METHODS])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    halves = [options.methods[0::2], options.methods[1::2]]
    rows, ones, both = [], [[] for _ in range(options.rounds)], [[] for _ in range(options.rounds)]
    for dim in options.dims:
        alone = [{} for _ in range(options.rounds)]
        side = [{} for _ in range(options.rounds)]
        context = get_context("spawn")
        with context.Pool(1) as first, context.Pool(1) as second, context.Pool(1) as single:
            for number in range(options.rounds):
                given = (options.steps, True, options.precision)
                jobs = [
                    p.apply_async(measure, (dim, half, *given)) for p, half in zip((first, second), halves, strict=True)
                ]
                for job in jobs:
                    side[number] |= job.get()
                given = (options.steps, False, options.precision)
                alone[number] = single.apply(measure, (dim, options.methods, *given))
            rate = single.apply(peak, (dim, options.precision))
        for number in range(options.rounds):
            ones[number] += [SEEDS * sum_of(alone[number][method]) for method in options.methods]
            both[number] += [SEEDS * sum_of(side[number][method]) for method in options.methods]
        rows += [row(dim, method, alone, side, rate) for method in options.methods]
        for each in rows[-len(options.methods) :]:
            print(each, flush=True)
    total_one = [sum(each) for each in ones]
    total_both = [makespan(each) for each in both]
    rows.append(
        {
            "width": "all",
            "method": f"{SEEDS * len(options.methods) * len(options.dims)} runs",
            "one by one, minutes": statistics.median(total_one) / 60,
            "together, minutes": statistics.median(total_both) / 60,
            "one by one / together": paired(total_one, total_both),
        }
    )
    columns = [
        "width",
        "method",
        "models at once",
        "ms a step alone",
        "ms a step and model together",
        "matrix products, ms",
    ]
    columns += ["one by one, minutes", "together, minutes", "one by one / together"]
    notes = [
        f"Extrapolated from {options.steps} steps of each half of a run and one evaluation, {options.rounds} rounds: see "
        "the first lines of bench/grid.py.",
        "Processor time, since other programs run here, too: minutes are what two idle cores would take. Of 5 "
        "seeds; together: of one process of two that run side by side; in the last line of both, the dearest first. "
        "Milliseconds are of a step after the warmup. Matrix products: forward and backward at the best rate of torch.mm.",
    ]
    name = "grid" if options.precision == "fp32" else f"grid-{options.precision}"
    save(name, f"Table 1 at CelebA's size ({TRAIN:,} train rows), {options.precision}", columns, rows, notes)


def sum_of(found):
    return found["train"] + found["rest"]


def row(dim, method, alone, side, rate):
    ones, both = ([SEEDS * sum_of(each[method]) for each in found] for found in (alone, side))
    return {
        "width": dim,
        "method": method,
        "models at once": side[0][method]["models"],
        "ms a step alone": 1000 * statistics.median(each[method]["warm"] for each in alone),
        "ms a step and model together": 1000 * statistics.median(each[method]["warm"] for each in side),
        "matrix products, ms": 1000 * 4 * BATCH * dim * dim / rate,
        "one by one, minutes": statistics.median(ones) / 60,
        "together, minutes": statistics.median(both) / 60,
        "one by one / together": paired(ones, both),
    }


if __name__ == "__main__":
    main()

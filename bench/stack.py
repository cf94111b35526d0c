"""Five adapters in one stack against the same five one after another: paired, in one process, one thread.

    OMP_NUM_THREADS=1 python bench/stack.py [--dims 128 512 1024] [--models 5] [--rounds 7] [--out FILE]

Each round times a step of every model alone and a step of the stack, in turn; what is reported is the ratio within a round
(median, quartiles), and how far the weights are apart at the end.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import torch

from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.step.stack import StackedLearner
from bird.students import build_student

CLASSES, GROUPS, BATCH, META, STEPS = 10, 2, 128, 160, 4
METHODS = ("baseline", "bkd", "fitnet", "mfd", "bird-no-meta", "bird")


def learner(dim, seed):
    mean, std = torch.zeros(dim), torch.ones(dim)
    student = build_student("adapter", classes=CLASSES, feature_mean=mean, feature_std=std, seed=seed)
    return SingleLearner(student, teacher_dim=dim, lr=1e-3, mu2=1e-3, seed=seed)


def batches(dim, models, count, seed):
    """One batch for each model, and the same as one batch of the stack."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(models, count, dim, generator=generator)
    y = torch.randint(0, CLASSES, (models, count), generator=generator)
    a = torch.randint(0, GROUPS, (models, count), generator=generator)
    parts = (x, y, a, x, x[..., :CLASSES])
    return [Batch(*(part[s] for part in parts)) for s in range(models)], Batch(*parts)


def measure(method, dim, models, rounds):
    alone, stacked = ([learner(dim, seed) for seed in range(models)] for _ in range(2))
    stack, step, ratios = StackedLearner(stacked), build_method(method, Hyperparameters(), GROUPS), []
    for number in range(rounds * STEPS):
        if number % STEPS == 0:
            seconds = [0.0, 0.0]
        each, together = batches(dim, models, BATCH, number)
        metas, meta = batches(dim, models, META, 10_000 + number)
        began = time.perf_counter()
        for one, batch, own in zip(alone, each, metas, strict=True):
            step.step(one, batch, lambda own=own: own, warm=True)
        middle = time.perf_counter()
        step.step(stack, together, lambda meta=meta: meta, warm=True)
        seconds[0], seconds[1] = seconds[0] + middle - began, seconds[1] + time.perf_counter() - middle
        if number % STEPS == STEPS - 1:
            ratios.append(seconds[0] / seconds[1])
    pairs = [pair for a, b in zip(alone, stacked, strict=True) for pair in zip(*parameters(a, b), strict=True)]
    low, median, high = statistics.quantiles(ratios[1:], n=4)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    return {"dim": dim, "method": method, "ratio": median, "quartiles": [low, high], "weights_apart": apart}


def parameters(*learners):
    return [list(each.model.parameters()) for each in learners]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    found = []
    for dim in args.dims:
        for method in METHODS:
            found.append(measure(method, dim, args.models, args.rounds))
            line = "{dim:5d} {method:14s} {ratio:5.2f} x faster together {quartiles}, weights {weights_apart:.0e} apart"
            print(line.format(**found[-1] | {"quartiles": [round(q, 2) for q in found[-1]["quartiles"]]}), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Does torch.compile pay? A plain FitNet step, eager and compiled: what it gains, and the steps that pay for the warm-up.

    python bench/compiled.py [--students resnet18 shufflenetv2] [--size 64] [--batch 64] [--rounds 9]

The student's forward and backward passes are compiled, with the default backend and whole graphs; BIRD's own step is not
(its forward-mode pass under other parameters is not something the compiler takes). Each round times a step of either.
"""

import argparse
import time

import torch
from results import paired, save
from step import make_batch, make_learner

from bird.methods import Hyperparameters, build_method


def measure(student, size, count, rounds):
    method, batch = build_method("fitnet", Hyperparameters(), 2), make_batch(size, count, 0)
    eager, compiled = make_learner(student, size), make_learner(student, size)
    compiled.model.compile(fullgraph=True)

    def step(learner):
        began = time.perf_counter()
        method.step(learner, batch, lambda: batch, warm=False)
        return time.perf_counter() - began

    warm_up = step(compiled) + step(compiled)
    for _ in range(2):
        step(eager)
    seconds = {"eager": [], "compiled": []}
    for _ in range(rounds):
        seconds["eager"].append(step(eager))
        seconds["compiled"].append(step(compiled))
    plain, fast = (sorted(each)[rounds // 2] for each in seconds.values())
    return {
        "student": student,
        "px": str(size),
        "eager, ms": 1000 * plain,
        "compiled / eager": paired(seconds["compiled"], seconds["eager"]),
        "warm-up, s": warm_up,
        "steps that pay for it": f"{warm_up / (plain - fast):,.0f}" if fast < plain else "none",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [measure(student, options.size, options.batch, options.rounds) for student in options.students]
    save("compiled", "torch.compile of a plain step.", rows[0], rows, [f"Batch {options.batch}."])


if __name__ == "__main__":
    main()

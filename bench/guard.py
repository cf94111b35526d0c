"""What a check of the feedback (bird.step.guard) costs: a step that checks against one that does not, paired, in one process.

    OMP_NUM_THREADS=1 python bench/guard.py [--rounds 15]

Eight of a thousand meta steps check, so a run pays .008 of what is shown here.
"""

import argparse
import statistics
import time

import torch
from results import paired, save
from step import make_batch, make_learner

from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.step.guard import Guard
from bird.step.stack import StackedLearner
from bird.students import build_student

CLASSES, GROUPS, BATCH, META, MODELS = 10, 2, 128, 160, 5


def features(dim, count, seed, lead=()):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(*lead, count, dim, generator=generator)
    labels, groups = torch.arange(count) % CLASSES, torch.arange(count) // CLASSES % GROUPS
    return Batch(inputs, labels.expand(*lead, count), groups.expand(*lead, count), inputs)


def adapter(dim, seed):
    mean, std = torch.zeros(dim), torch.ones(dim)
    student = build_student("adapter", classes=CLASSES, feature_mean=mean, feature_std=std, seed=seed)
    return SingleLearner(student, teacher_dim=dim, lr=1e-3, mu2=1e-3, seed=seed)


def adapters(dim):
    def make():
        learner = adapter(dim, 0)
        learner.model.train()
        return learner

    return make, features(dim, BATCH, 0), features(dim, META, 1), GROUPS


def stack(dim):
    def make():
        return StackedLearner([adapter(dim, seed) for seed in range(MODELS)])

    return make, features(dim, BATCH, 0, (MODELS,)), features(dim, META, 1, (MODELS,)), GROUPS


def images(student):
    return lambda: make_learner(student, 64), make_batch(64, 64, 0), make_batch(64, 64, 1), 2


CASES = {
    "adapter, 512": adapters(512),
    "stack of 5 adapters, 512": stack(512),
    "shufflenetv2, 64 px": images("shufflenetv2"),
    "resnet18, 64 px": images("resnet18"),
}


def measure(name, make, batch, meta, groups, rounds):
    steps, seconds = {}, {"checked": [], "unchecked": []}
    for kind, every in (("checked", 1), ("unchecked", 0)):
        learner, method = make(), build_method("bird", Hyperparameters(), groups)
        learner.guard = Guard(every)
        steps[kind] = lambda learner=learner, method=method: method.step(learner, batch, lambda: meta, warm=True)
    for number in range(rounds + 2):  # the first two allocate and choose kernels
        order = list(steps) if number % 2 else list(steps)[::-1]
        for kind in order:
            began = time.perf_counter()
            steps[kind]()
            if number > 1:
                seconds[kind].append(time.perf_counter() - began)
    row = {"student": name, "unchecked, ms": 1000 * statistics.median(seconds["unchecked"])}
    return row | {"checked / unchecked": paired(seconds["checked"], seconds["unchecked"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, *case, options.rounds * (8 if "adapter" in name else 1)) for name, case in CASES.items()]
    note = "Batch and meta batch: 128 and 160 features, 64 images each. A run checks 8 of 1000 meta steps."
    save("guard", "A step that checks the feedback.", rows[0], rows, [note])


if __name__ == "__main__":
    main()

"""Cheaper feedback: one step of K, and a look-ahead of the last stage alone. What it costs, and how near it is.

    python bench/feedback_parts.py CACHE --data-root DIR [--students resnet18 shufflenetv2] [--batch 128] [--rounds 5]

Batches are real images of the cache's data set. A student is trained for some steps first. Then the gradient of phi by a
look-ahead of the last stage is compared with that of the whole student (cosine), batch by batch. Steps are timed in rounds,
every variant once a round, and a ratio to FitNet is taken within a round; a step of K is (K - 1) steps without feedback
and one with.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bird_cache.order import batches, shuffled
from bird_pipelines.config import resolve
from bird_pipelines.distilling.data import cache_dataset, load_data
from bird_pipelines.distilling.training import Trainer

EVERY = 4
VARIANTS = {
    "fitnet": {"method": "fitnet"},
    "all": {},
    "last": {"feedback_through": "last"},
    "none": {"feedback_every": 1 << 30},  # a step of bird between two that have feedback
}


def trainers(args, student, method):
    """One trainer a variant, at the first step after the warmup, on the same data."""
    given = {"cache": args.cache, "dataset": cache_dataset(args.cache), "data_root": args.data_root, "student": student}
    given |= {"method": method, "epochs": 2, "warmup": 1, "batch_size": args.batch, "meta_per_cell": args.meta_per_cell}
    given |= {"limit": args.limit, "out": Path(tempfile.gettempdir()) / "never-written", "alpha": 0.5, "mu1": 0.05}
    configs = {name: resolve(given | own) for name, own in VARIANTS.items()}
    data = load_data(configs["all"].source, student)
    return {name: Trainer(config, data) for name, config in configs.items()}


def gradients(trainer, material):
    """phi's gradient of this batch; the student stays as it is."""
    found = []
    learner, move = trainer.learner, trainer.learner.move_gate
    learner.move_gate, learner.descend = found.extend, lambda loss: None
    trainer.learner.model.train()
    trainer.method.number = 0
    trainer.method.step(learner, material.batch, lambda: material.meta, warm=True)
    learner.move_gate = move
    del learner.descend
    return torch.cat([each.flatten() for each in found])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--methods", nargs="+", default=["bird", "bird-offsets"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--meta-per-cell", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=50, help="steps without feedback before the gradients are compared"
    )
    parser.add_argument("--compared", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=20000)
    args = parser.parse_args()
    for student in args.students:
        for method in args.methods:
            each = trainers(args, student, method)
            order = list(batches(shuffled(each["all"].train_rows, 0, 0), args.batch))
            for trainer in each.values():
                trainer.epoch = 1  # warm
            whole, part, plain = each["all"], each["last"], each["none"]
            plain.step = 1  # so that it has no feedback
            for number in range(args.steps):
                plain.one_step(plain.material(number, order[number % (len(order) - 1)]))
            for trainer in (whole, part):
                trainer.learner.model.load_state_dict(plain.learner.model.state_dict())
            cosines = []
            for number in range(args.compared):
                material = whole.material(1000 + number, order[number])
                one, two = gradients(whole, material), gradients(part, material)
                cosines.append(torch.nn.functional.cosine_similarity(one, two, dim=0).item())
            print(student, method, "cosine", " ".join(f"{value:.3f}" for value in cosines), flush=True)
            materials = [whole.material(number, order[number]) for number in range(args.rounds)]
            seconds = {name: [] for name in each}
            for number in range(-1, args.rounds):  # the first round is not counted
                for name, trainer in each.items():
                    trainer.step = 0 if name != "none" else 1
                    began = time.perf_counter()
                    trainer.one_step(materials[number])
                    if number >= 0:
                        seconds[name].append(time.perf_counter() - began)
            ratios = {
                name: [own / fitnet for own, fitnet in zip(seconds[name], seconds["fitnet"], strict=True)]
                for name in each
            }
            for how in ("all", "last"):
                mixed = [((EVERY - 1) * n + f) / EVERY for n, f in zip(ratios["none"], ratios[how], strict=True)]
                ratios[f"{how}, every {EVERY}"] = mixed
            told = ", ".join(
                f"{name} {statistics.median(own):.2f} ({min(own):.2f}..{max(own):.2f})" for name, own in ratios.items()
            )
            rows = len(materials[0].meta.labels)
            print(f"{student} {method} batch {args.batch}, meta {rows}: x fitnet: {told}", flush=True)


if __name__ == "__main__":
    main()

"""Distilling from a cache: against the same student without a teacher, and against a teacher that is run at every step.

    OMP_NUM_THREADS=1 python bench/distill.py [--students resnet18] [--size 32] [--steps 1] [--rounds 7]

(a) The training loop of `bird distill` (order, images, augmentation, features, step) on synthetic images and vectors:
fitnet against baseline, in turn; the ratio, of processor time, is taken within a round. (b) The same fitnet step with its
vectors from the cache, and from a ViT-B/32 with random weights that sees the step's images at 224 px; precomputing (one
forward pass a row) has paid after E epochs: E live = precompute + E cached.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from results import paired, save
from synthetic import run_data

from bird.datasets.base import SampleTable
from bird_cache.order import batches, shuffled
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.training import Trainer

CLASSES, GROUPS, DIM = 10, 2, 512


class DecodedImages:
    """Images as a run holds them after its first epoch: decoded, uint8."""

    def __init__(self, count, size):
        generator = torch.Generator().manual_seed(0)
        self.held = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    def get(self, rows):
        return self.held[torch.from_numpy(rows)]


def data_of(count, size):
    number = np.arange(count)
    ids = np.array([f"{row:06d}" for row in range(count)], dtype=object)
    splits = np.where(number % 10 == 0, "meta", "train").astype(object)
    return run_data(
        SampleTable(ids, number % CLASSES, number // CLASSES % GROUPS, splits, ids),
        class_names=tuple("abcdefghij"),
        group_names=("g", "h"),
        image_size=size,
        images=DecodedImages(count, size),
        features=torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)),
    )


def trainer(method, student, data, batch_size, folder):
    given = {"dataset": "synthetic", "student": student, "method": method, "batch_size": batch_size}
    return Trainer(RunConfig(**given, out=Path(folder) / method), data)


def seconds_of(one, steps, epoch):
    order = shuffled(one.train_rows, 0, epoch)
    one.clock.start()
    began = time.process_time()
    for rows in list(batches(order, one.config.batch_size))[:steps]:
        one.one_step(one.material(one.step, rows))
    return (time.process_time() - began) / steps


def cached(student, data, options, folder):
    """Seconds a step of fitnet and of baseline, in turn."""
    both = {name: trainer(name, student, data, options.batch, folder) for name in ("fitnet", "baseline")}
    both["fitnet"].clock.watch(both["fitnet"].learner)
    found = {name: [] for name in both}
    for number in range(options.rounds + 1):
        names = [*both][:: 1 if number % 2 else -1]  # neither is always the second
        for name in names:
            seconds = seconds_of(both[name], options.steps, number)
            if number:
                found[name].append(seconds)
    shares = both["fitnet"].clock.shares()
    return found, {part: round(100 * share, 1) for part, share in shares.items()}


def vit():
    """ViT-B/32 with random weights, from pixels of any size in [0, 1] to (batch, 512)."""
    from torchvision.models import vit_b_32

    model = vit_b_32(weights=None).eval()
    model.heads = torch.nn.Linear(768, DIM)

    @torch.inference_mode()
    def answer(pixels):
        large = torch.nn.functional.interpolate(pixels, 224, mode="bicubic", antialias=True)
        return model(large)

    return answer


def live(data, options, folder):
    """Seconds a step with cached vectors, and with the teacher run on the step's images."""
    one, teacher, found = trainer("fitnet", "resnet18", data, options.batch, folder), vit(), {}
    stored = one.batch

    def asked(rows, views=None, seen=None):
        batch = stored(rows, views, seen)
        answer = teacher(batch.inputs)
        return type(batch)(batch.inputs, batch.labels, batch.groups, answer.clone())

    for number in range(options.live_rounds):
        for name, source in (("cached", stored), ("live", asked)):
            one.batch = source
            found.setdefault(name, []).append(seconds_of(one, 1, number))
        pixels = stored(one.train_rows[: options.batch]).inputs
        began = time.process_time()
        teacher(pixels)
        found.setdefault("teacher", []).append(time.process_time() - began)
    return {name: values[1:] for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--live-rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    data, rows, notes = data_of(4000, options.size), [], []
    with tempfile.TemporaryDirectory() as folder:
        for student in options.students:
            found, shares = cached(student, data, options, folder)
            rows.append(
                {
                    "what": f"{student} at {options.size} px: fitnet from the cache / no teacher",
                    "ms a step": 1000 * statistics.median(found["fitnet"]),
                    "of the other": 1000 * statistics.median(found["baseline"]),
                    "ratio": paired(found["fitnet"], found["baseline"]),
                }
            )
            notes.append(f"Shares of fitnet's time, {student}, %: {', '.join(f'{k} {v}' for k, v in shares.items())}.")
            sys.stdout.write(f"{rows[-1]}\n")
        found = live(data, options, folder)
    rows.append(
        {
            "what": f"resnet18 at {options.size} px: ViT-B/32 live / from the cache",
            "ms a step": 1000 * statistics.median(found["live"]),
            "of the other": 1000 * statistics.median(found["cached"]),
            "ratio": paired(found["live"], found["cached"]),
        }
    )
    a, b = (statistics.median(found[name]) for name in ("live", "cached"))
    spent = statistics.median(found["teacher"])
    notes.append(
        f"A teacher's forward pass costs {1000 * spent:,.0f} ms a batch of {options.batch}: once a row to precompute, "
        f"once an epoch if it runs live. The cache has paid after {spent / (a - b):.2f} epochs of one run; then, and for "
        "every other method and seed, it is free. Decoding for the precompute, and writing, are not counted."
    )
    save("distill", "Distillation from the cache", ["what", "ms a step", "of the other", "ratio"], rows, notes)


if __name__ == "__main__":
    main()

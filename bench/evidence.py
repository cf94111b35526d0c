"""Every method that an adapter can use, on one cache, several seeds: run folders, and one line a method.

    python bench/evidence.py CACHE OUT [--seeds 5] [--methods bird ...] [--set lambda=0.1 ...] [--against fitnet ...]
        [--split meta]

CIFAR-10S with an ImageNet SqueezeNet as a black box is what docs/LOG.md reports. Resumes; finished runs are only read.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from bird.methods import METHODS
from bird.paired import Predicted, compare, holm
from bird_pipelines.config import resolve
from bird_pipelines.data import cache_dataset
from bird_pipelines.many import distill_many

NOT_ADAPTER = ("at", "bird+at", "bird+fitnet")  # stages of images; another name of bird
KINDS = {"ids": "S", "labels": "int64", "groups": "int64", "predictions": "int64"}
SHAPE = (10, 2)  # CIFAR-10S: classes, groups
COLUMNS = ("auroc", "f1_macro", "mean_deo", "max_deo")


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def read(folder):
    """A finished run on the test split."""
    with np.load(folder / "predictions-test.npz") as file:
        return Predicted(*(file[name].astype(kind) for name, kind in KINDS.items()))


def compare_all(predicted, reference):
    """Each method less the reference: effect, 95 % interval, the interval's p (Holm over the methods)."""
    print(f"\nless {reference}, paired by seed and row, Holm over {len(predicted) - 1} methods")
    others = [name for name in predicted if name != reference]
    found = {name: compare(predicted[name], predicted[reference], *SHAPE) for name in others}
    for metric in ("f1_macro", "mean_deo", "max_deo"):
        p_values = [found[name][metric].p for name in others]
        corrected = [None] * len(others) if None in p_values else holm(p_values)
        for name, p in zip(others, corrected, strict=True):
            low, high = found[name][metric].interval
            said = "too few seeds for p" if p is None else f"p = {p:.3f}"
            print(
                f"{name:22s} {metric:10s} {found[name][metric].effect:+7.2f} [{low:+.2f}, {high:+.2f}]  {said}",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name not in NOT_ADAPTER])
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE of every run")
    parser.add_argument(
        "--against", nargs="*", default=[], help="methods that the others are compared with, by seed and row"
    )
    parser.add_argument("--tag", default="", help="joined to the run folders' names")
    parser.add_argument("--split", default="test", help="meta, where settings are compared that are to be chosen")
    args = parser.parse_args()
    fixed = {name: number(value) for name, value in (each.split("=") for each in args.set)}
    base = {"cache": args.cache, "dataset": cache_dataset(args.cache), "student": "adapter", **fixed}
    print(f"{'method':22s}", *(f"{name:>16s}" for name in COLUMNS), "  seconds a run")
    predicted = {}
    for method in args.methods:
        folders = [args.out / f"{method}{args.tag}-{seed}" for seed in range(args.seeds)]
        runs = distill_many(
            [resolve({**base, "method": method, "seed": seed, "out": out}) for seed, out in enumerate(folders)]
        )
        values = [[run["metrics"][args.split][name] for run in runs] for name in COLUMNS]
        cells = [f"{statistics.mean(v):9.2f} ± {statistics.stdev(v) if len(v) > 1 else 0:4.2f}" for v in values]
        print(f"{method + args.tag:22s}", *cells, f"{statistics.mean(run['seconds'] for run in runs):9.1f}", flush=True)
        predicted[method] = {seed: read(folder) for seed, folder in enumerate(folders)}
    for reference in args.against:
        compare_all(predicted, reference)


if __name__ == "__main__":
    main()

"""Table 3's protocol with a small budget: CIFAR-10S, an image student, a teacher of the same architecture trained first.

    python bench/images.py DATA_ROOT OUT [--student shufflenetv2] [--limit 10000] [--epochs 6] [--seeds 1] [--methods ...]
        [--first-seed N] [--against METHOD]

Runs the commands of the CLI one after the other and resumes. Methods come in the order in which they are worth waiting for;
METHOD@NAME=X,... trains with those options, as in bird@lambda=0.02. Whoever compares several X chooses by the lines of the
meta split.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bird_pipelines.predictions import load_predictions
from bird_pipelines.study.compare import differences

METHODS = [
    "fitnet",
    "bird",
    "domain-independent",
    "bird-plus-no-meta",
    "bird-plus",
    "reweight",
    "baseline",
    "bkd",
    "mfd",
    "ad",
    "at",
    "group-dro",
]
LAYERS = {"at": "attention", "bird+at": "maps"}
SHAPE = (10, 2)  # CIFAR-10S: classes, groups
COLUMNS = ("auroc", "f1_macro", "mean_deo", "max_deo")


def bird(*words):
    """What one command of the CLI answers."""
    command = [str(Path(sys.executable).with_name("bird")), *map(str, words), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--student", default="shufflenetv2")
    for option, value in (("--limit", 10_000), ("--epochs", 6), ("--seeds", 1)):
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--against", help="one of them, that the others are compared with, by seed and row")
    args = parser.parse_args()
    data = ("--data-root", args.data)
    run = (*data, "--student", args.student, "--limit", args.limit, "--epochs", args.epochs)
    teacher, cache = args.out / "teacher", args.out / "cache"
    bird("train", "--dataset", "cifar10s", *run, "--seed", 1000, "--out", teacher)
    layers = ",".join(["penultimate", *(layer for method, layer in LAYERS.items() if method in args.methods)])
    bird(
        "precompute", "--teacher", f"run:{teacher}", "--dataset", "cifar10s", *data, "--layers", layers, "--out", cache
    )
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for seed in seeds:
        for name in args.methods:
            method, _, options = name.partition("@")
            more = [f"--{option}" for option in options.split(",") if option]
            folder = args.out / f"{name}-{seed}"
            bird("distill", "--cache", cache, *run, "--method", method, *more, "--seed", seed, "--out", folder)
            for split in ("meta", "test"):
                show(f"{name}, {split}", seed, json.loads((folder / f"metrics-{split}.json").read_text()))
    if args.against:
        folders = {name: [args.out / f"{name}-{seed}" for seed in seeds] for name in args.methods}
        predicted = {
            name: {seed: load_predictions(folder, "test") for seed, folder in zip(seeds, each, strict=True)}
            for name, each in folders.items()
        }
        print(json.dumps(differences(predicted, args.against, *SHAPE), indent=1))


def show(name, seed, metrics):
    intervals = metrics["intervals"]
    cells = [f"{each} {metrics[each]:.1f} [{', '.join(f'{x:.1f}' for x in intervals[each])}]" for each in COLUMNS]
    print(f"{name:32s} {seed:3d}", *(f"{cell:>28s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

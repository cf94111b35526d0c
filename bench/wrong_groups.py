"""Wrong groups in train: some of the train rows get another group at random, and several methods learn from them.

    python bench/wrong_groups.py CACHE OUT [--rates 0.2 0.4] [--seeds 8]

Meta and test keep their groups. The runs are adapters in stacks; the same command goes on where it stopped.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import numpy as np

from bird_pipelines.config import resolve
from bird_pipelines.distilling.data import cache_dataset, load_data
from bird_pipelines.distilling.groups import with_known_groups
from bird_pipelines.distilling.side_by_side import train_group
from bird_pipelines.distilling.training import outcome

SCORES = ("auroc", "f1_macro", "mean_deo", "max_deo")
GIVEN = {"student": "adapter", "alpha": 0.5, "mu1": 0.05, "warmup": 2}
METHODS = {
    "prior, no feedback": {"method": "bird-offsets-no-meta"},
    "prior, L_o": {"method": "bird-offsets", "mu2": 0.01, "shrink": 30},
    "zero, balanced CE": {"method": "bird-offsets", "mu2": 0.03, "balance": 1, "offsets_from": "zero"},
    "groups of meta alone, L_o": {"method": "bird-offsets", "mu2": 0.01, "shrink": 30, "groups_known": "meta"},
}


def with_wrong_groups(data, rate, seed=0):
    """The same data, with another group, drawn at random, in a share of the train rows."""
    rng, train = np.random.default_rng(seed), data.rows("train")
    wrong = rng.choice(train, round(rate * len(train)), replace=False)
    groups = data.table.groups.copy()
    count = len(data.group_names)
    groups[wrong] = (groups[wrong] + rng.integers(1, count, len(wrong))) % count
    return dataclasses.replace(data, table=dataclasses.replace(data.table, groups=groups))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    for rate in args.rates:
        for name in args.methods:
            given = {"cache": args.cache, "dataset": cache_dataset(args.cache), **GIVEN, **METHODS[name]}
            folder = args.out / f"{name.replace(', ', '-').replace(' ', '-')}-{rate}"
            configs = [resolve({**given, "seed": seed, "out": folder / str(seed)}) for seed in range(args.seeds)]
            data = load_data(configs[0].source, configs[0].student)
            train_group(
                configs,
                with_known_groups(with_wrong_groups(data, rate), configs[0].source.groups_known, configs[0].method),
            )
            scores = [outcome(config)["metrics"]["test"] for config in configs]
            columns = {each: [score[each] for score in scores] for each in SCORES}
            told = (f"{each} {statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for each, v in columns.items())
            print(f"{rate:.0%} wrong, {name}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()

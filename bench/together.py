"""How far a run alone and the same run in a stack of two are apart, step by step: relative distance of all parameters.

python bench/together.py CACHE [--methods bird bird-plus]
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from bird_cache.order import batches, shuffled
from bird_pipelines.config import resolve
from bird_pipelines.distilling.data import cache_dataset
from bird_pipelines.distilling.side_by_side import Source, Stack
from bird_pipelines.distilling.training import Trainer, read

STEPS = (1, 4, 10, 20, 50, 150, 350)


def parameters(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.learner.model.parameters()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("--methods", nargs="+", default=["bird", "bird-no-meta", "bird-plus"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = {"cache": args.cache, "dataset": cache_dataset(args.cache), "student": "adapter", "epochs": 2, "warmup": 1}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        for method in args.methods:
            out = Path(tempfile.gettempdir()) / "together"  # never written
            configs = [resolve({**given, "method": method, "seed": seed, "out": out}) for seed in (0, 1)]
            data = read(configs[0])
            data = dataclasses.replace(data, features=data.features.to(dtype))
            alone, pair = Trainer(configs[0], data), [Trainer(config, data) for config in configs]
            stack, found = Stack(pair, Source(configs[0], data)), []
            for epoch in (0, 1):
                for trainer in (alone, *pair):
                    trainer.epoch = epoch
                orders = [
                    list(batches(shuffled(each.train_rows, each.config.training.seed, epoch), 128)) for each in pair
                ]
                for number, rows in enumerate(zip(*orders, strict=True), 1):
                    if len(rows[0]) < 128:
                        break
                    alone.one_step(alone.material(alone.step, rows[0]))
                    stack.one_step(np.stack(rows))
                    if epoch and number in STEPS:
                        ours, theirs = parameters(alone), parameters(pair[0])
                        found.append((number, f"{((ours - theirs).norm() / ours.norm()).item():.1e}"))
            print(dtype, method, found, flush=True)


if __name__ == "__main__":
    main()

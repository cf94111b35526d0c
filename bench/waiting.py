"""Training with OpenMP's idle threads spinning (the default) or asleep (OMP_WAIT_POLICY=passive), alone and beside another.

    python bench/waiting.py [--rounds 5]

A process a measurement: the policy is read when OpenMP is loaded. Beside: the same training in a second process.
"""

import argparse
import os
import subprocess
import sys
import time

import torch
from results import paired, save
from torch.nn import functional as F

from bird.students import build_student


def train(steps=6, batch=32):
    """Prints samples a second of a ShuffleNet V2 at 32 px, as many threads as cores."""
    student = build_student("shufflenetv2", classes=10, image_size=32, seed=0)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3, fused=True)
    inputs, labels = torch.rand(batch, 3, 32, 32), torch.arange(batch) % 10
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(student(inputs).logits, labels).backward()
        optimizer.step()
    print(steps * batch / (time.perf_counter() - began))


def rate(policy, programs):
    """Samples a second of the first of so many programs at once."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": str(os.cpu_count())} | (
        {} if policy == "default" else {"OMP_WAIT_POLICY": policy}
    )
    command = [sys.executable, "-W", "ignore", __file__, "--train"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(programs)]
    rates = [float(each.communicate()[0]) for each in running]
    return rates[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train()
        return
    rows = []
    for what, programs in (("alone", 1), ("beside another", 2)):
        seen = {policy: [] for policy in ("default", "passive")}
        for _ in range(args.rounds):
            for policy, rates in seen.items():
                rates.append(rate(policy, programs))
        middle = {f"{policy}, samples/s": sorted(rates)[len(rates) // 2] for policy, rates in seen.items()}
        rows.append({"what": what, **middle, "passive / default": paired(seen["passive"], seen["default"])})
    save("waiting", "ShuffleNet V2 at 32 px, one thread a core.", rows[0], rows)


if __name__ == "__main__":
    main()

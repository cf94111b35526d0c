"""What the rules of bird/step/tangents.py are worth in a JVP, in float32 and under bfloat16. Paired, in one process.

python bench/tangents.py [--student resnet18] [--rounds 6]
"""

import argparse
import statistics
import time

import torch
from results import paired, save
from step import make_batch, make_learner
from torch.nn import functional as F

from bird.precision import in_bf16
from bird.step import tangents
from bird.step.passes import in_forward_mode

RULES = dict(tangents.RULES)
WITHOUT = {
    "all rules and the tape": (),
    "all rules, no tape": (),
    "no rule for products": tangents.PRODUCTS,
    "no rule for batch norm": (F.batch_norm,),
    "torch's own rules": tuple(RULES),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {precision: make_learner(options.student, 64).model for precision in ("fp32", "bf16")}
    in_bf16(models["bf16"])
    batch, seconds = make_batch(64, 64, 0), {}
    for number in range(options.rounds + 1):
        for precision, model in models.items():
            theta = dict(model.named_parameters())
            direction = {name: torch.randn_like(value) for name, value in theta.items()}
            began = time.perf_counter()
            with tangents.Tape(model) as tape:
                model(batch.inputs)
            took = {"forward pass": time.perf_counter() - began}
            for name, left_out in WITHOUT.items():
                for func in left_out:
                    tangents.RULES.pop(func)
                began = time.perf_counter()
                bare = tangents.Tape(model, keep=False)
                in_forward_mode(model, direction, batch.inputs, tape if "and the tape" in name else bare)
                took[name] = time.perf_counter() - began
                tangents.RULES.update(RULES)
            for name, value in took.items() if number else ():  # the first round allocates and chooses kernels
                seconds.setdefault((name, precision), []).append(value)
    rows = []
    for name in ("forward pass", *WITHOUT):
        plain, half = seconds[name, "fp32"], seconds[name, "bf16"]
        row = {"what": name, "fp32, ms": 1000 * statistics.median(plain), "bf16, ms": 1000 * statistics.median(half)}
        rows.append(row | {"fp32 / bf16": paired(plain, half)})
    note = f"{options.student} at 64 px, batch 64, one thread, {options.rounds} rounds."
    save("tangents", "A JVP and its rules.", ("what", "fp32, ms", "bf16, ms", "fp32 / bf16"), rows, [note])


if __name__ == "__main__":
    main()

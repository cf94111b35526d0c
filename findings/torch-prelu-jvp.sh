#!/usr/bin/env bash
# torch: forward-mode and reverse-mode derivatives of PReLU where its input is exactly 0. Torch is large: 200 MB where pip finds a
# build for CPUs alone, and more elsewhere.
#
# Guessed before: both take the same side, as they do for relu, leaky_relu, elu, hardtanh and the other activations we compared.
# Came out (torch 2.13.0; by hand 2.14.1, and 2.11.0 on an H200): the backward pass takes the slope, torch.func.jvp takes 1. A
# student whose biases start at 0 is exactly there wherever an image is black. With half of each image black, <u, Jv> is 58.7
# where <J'u, v> is 72.7: a gradient made of Jv is not the student's. With leaky_relu of the same slope, and without black, both
# agree to rounding. Other wrong rules of forward mode are known, as of scatter_reduce and logcumsumexp (pytorch #198017); of
# this one we found no report.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/prelu.py" <<'PY'
import warnings

import torch
from torch import nn
from torch.func import functional_call, jacfwd, jacrev, jvp, vjp
from torch.nn import functional as F

warnings.simplefilter("ignore", FutureWarning)
SLOPE = 0.1
slope, zero = torch.tensor([SLOPE], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
ACTIVATIONS = {
    "prelu": lambda x: F.prelu(x, slope),
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
    "relu": F.relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0),
}
at_zero = {name: (float(jacfwd(act)(zero)), float(jacrev(act)(zero))) for name, act in ACTIVATIONS.items()}
for name, (forward, reverse) in at_zero.items():
    print(f"{name} at 0: forward mode {forward}, reverse mode {reverse}")


def sides(act, black):
    """<u, Jv> and <J'u, v> of a small student whose biases are 0, where this share of each image is black."""
    random = torch.Generator().manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 8, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    weights = {
        name: 0.3 * torch.randn(value.shape, generator=random, dtype=value.dtype) if value.dim() > 1 else torch.zeros_like(value)
        for name, value in student.named_parameters()
    }
    if act is nn.PReLU:
        weights["1.weight"] = slope
    moves = {name: torch.randn(value.shape, generator=random, dtype=value.dtype) for name, value in weights.items() if name[0] != "1"}
    rest = {name: value for name, value in weights.items() if name[0] == "1"}
    images = torch.rand(16, 3, 16, 16, generator=random, dtype=torch.float64)
    images[:, :, : int(16 * black)] = 0

    def answers(moved):
        return functional_call(student, {**rest, **moved}, (images,))

    at = {name: weights[name] for name in moves}
    given, tangent = jvp(answers, (at,), (moves,))
    u = torch.ones_like(given)
    (gradient,) = vjp(answers, at)[1](u)
    return float((u * tangent).sum()), float(sum((gradient[name] * moves[name]).sum() for name in moves))


KINDS = {"prelu": nn.PReLU, "leaky_relu": lambda: nn.LeakyReLU(SLOPE)}
found = {(name, black): sides(act, black) for name, act in KINDS.items() for black in (0.0, 0.5)}
for (name, black), (forward, reverse) in found.items():
    print(f"{name}, {100 * black:.0f} % black: <u, Jv> = {forward:.4f}, <J'u, v> = {reverse:.4f}")
assert at_zero.pop("prelu") == (1.0, SLOPE)
assert all(forward == reverse for forward, reverse in at_zero.values())
for (name, black), (forward, reverse) in found.items():
    assert (abs(forward - reverse) < 1e-9) == ((name, black) != ("prelu", 0.5))
PY
"$folder/venv/bin/python" "$folder/prelu.py"

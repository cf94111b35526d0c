#!/usr/bin/env bash
# fairret: the loss of a mini-batch in which a group has no row of the class. Torch is large: 200 MB where pip finds a build for
# CPUs alone, and more elsewhere.
#
# Guessed before: such a group is left out of that batch, or the loss is NaN.
# Came out (fairret 0.1.3, torch 2.13.0, and 2.14.1 run by hand): its rate counts as 0, so its violation is 1, in silence. A model
# that treats four groups exactly alike (shares .45, .3, .22, .03) has a loss of 0 on all rows; the mean over batches of 32 is .64
# for NormLoss, since 62 % of them lack a positive row of some group. The gradient of the other groups changes, too: with a fourth
# group that is absent it is 33 times smaller for NormLoss(p=2) and 1.9 times for LSELoss; for NormLoss(p=1) it stays. The metric
# LinearFractionalParity says 1.0 for a group that never came.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 fairret==0.1.3 torchmetrics==1.9.0 numpy==2.4.6
cat >"$folder/absent.py" <<'PY'
import torch
from fairret.loss import LSELoss, NormLoss
from fairret.metric import LinearFractionalParity
from fairret.statistic import TruePositiveRate
from torch.nn.functional import one_hot

COUNT, SIZE = 20_000, 32
random = torch.Generator().manual_seed(0)
groups = one_hot(torch.multinomial(torch.tensor([0.45, 0.3, 0.22, 0.03]), COUNT, replacement=True, generator=random), 4).float()
labels = torch.randint(0, 2, (COUNT, 1), generator=random).float()
logits = 3 * labels - 1.5  # alike for all groups
LOSSES = {
    "NormLoss(p=1)": NormLoss(TruePositiveRate()),
    "NormLoss(p=2)": NormLoss(TruePositiveRate(), p=2),
    "LSELoss": LSELoss(TruePositiveRate()),
}
batches = [slice(start, start + SIZE) for start in range(0, COUNT, SIZE)]
absent = [bool((groups[rows] * labels[rows]).sum(0).min() == 0) for rows in batches]
print(f"batches in which a group has no positive row: {100 * sum(absent) / len(batches):.0f} %")
losses = {}
for name, loss in LOSSES.items():
    whole = float(loss(logits, groups, labels))
    losses[name] = sum(float(loss(logits[rows], groups[rows], labels[rows])) for rows in batches) / len(batches)
    print(f"{name}: all rows {whole:.6f}, mean of batches {losses[name]:.3f}")
    assert abs(whole) < 1e-5

scores, present = torch.randn(SIZE, 1, generator=random).requires_grad_(), torch.arange(SIZE) % 3


def gradient(loss, columns):
    """The size of the gradient where groups 0 to 2 are present, and a fourth one has a column or not."""
    value = loss(scores, one_hot(present, columns).float(), torch.ones(SIZE, 1))
    return float(torch.autograd.grad(value, scores)[0].norm())


shrunk = {name: gradient(loss, 3) / gradient(loss, 4) for name, loss in LOSSES.items()}
for name, times in shrunk.items():
    print(f"{name}: with an absent fourth group the gradient is {times:.2f} times smaller")
metric = LinearFractionalParity(TruePositiveRate(), 4)
metric.update(torch.full((SIZE, 1), 0.7), one_hot(present, 4).float(), torch.ones(SIZE, 1))
print(f"LinearFractionalParity of equal rates and an absent group: {float(metric.compute())}")
assert all(mean > 0.2 for mean in losses.values()) and losses["NormLoss(p=1)"] > 0.6
assert abs(shrunk["NormLoss(p=1)"] - 1) < 1e-4 and shrunk["NormLoss(p=2)"] > 10 and shrunk["LSELoss"] > 1.5
assert float(metric.compute()) == 1.0
PY
"$folder/venv/bin/python" "$folder/absent.py"

#!/usr/bin/env bash
# torch.func.vmap(randomness="same") in chunks, as for several students in one batch. Torch is large: 200 MB where pip finds a build
# for CPUs alone, and more elsewhere.
#
# Guessed before: chunk_size changes the memory, not the numbers. "If 'same', the randomness will be the same across batches."
# Came out (torch 2.13.0 on a CPU; 2.11.0 on an H200; 2.14.1 on a CPU by hand): vmap sets back the state of the CPU's own generator
# before each chunk, and no other. On the GPU six samples had one dropout mask, and in chunks of two they had three. On a CPU it
# is so with a generator of one's own (torch.rand(..., generator=g)). Dropout on a CPU, what most tests look at, is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/same.py" <<'PY'
import torch
from torch.func import vmap
from torch.nn.functional import dropout


def masks(draw, device, **chunks):
    """How many different rows come out of six equal ones."""
    torch.manual_seed(0)
    rows = vmap(draw, randomness="same", **chunks)(torch.ones(6, 16, device=device))
    return len({tuple(row) for row in rows.tolist()})


own = torch.Generator()
ways = {
    "cpu, dropout": ("cpu", lambda row: dropout(row, 0.5)),
    "cpu, torch.rand with a generator": ("cpu", lambda row: row * torch.rand(16, generator=own)),
}
if torch.cuda.is_available():
    ways["gpu, dropout"] = ("cuda", lambda row: dropout(row, 0.5))
found = {name: (masks(draw, device), masks(draw, device, chunk_size=2)) for name, (device, draw) in ways.items()}
for name, (whole, chunked) in found.items():
    print(f"{name}: different rows of six: {whole}, in chunks of two: {chunked}")
assert found.pop("cpu, dropout") == (1, 1)
assert all(counts == (1, 3) for counts in found.values())
PY
"$folder/venv/bin/python" "$folder/same.py"

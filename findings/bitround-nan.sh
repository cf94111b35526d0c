#!/usr/bin/env bash
# numcodecs' BitRound, as a filter of a Zarr array of features, and NaN.
#
# Guessed before: NaN stays NaN. The codec rounds the mantissa, and the NaN of numpy (0x7fc00000) comes back as it was.
# Came out (numcodecs 0.16.6, zarr 3.1.6): numpy's NaN stays, another NaN becomes a zero, in silence. The codec adds half a step
# to the bits, and where all bits of the mantissa are set, the sum runs over: 0x7fffffff comes back as -0.0. That is the NaN of
# an NVIDIA GPU: on an H200 (torch 2.11.0) 0/0, inf - inf, a softmax, a convolution and a matrix product all gave 0x7fffffff in
# float32 and 0x7fff in float16. bfloat16 has such a NaN on CPUs, too: torch gives 0xffff for 0/0 there, that is 0xffff0000 in
# float32, and below 7 kept bits it becomes 0.0. A test on a CPU with numpy's NaN sees none of this. The greatest finite numbers
# become inf, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check zarr==3.1.6 numcodecs==0.16.6 numpy==2.4.6
cat >"$folder/bitround.py" <<'PY'
import warnings

import numpy as np
import zarr
from zarr.codecs.numcodecs import BitRound

warnings.simplefilter("ignore")  # zarr: codecs of numcodecs are not in the specification
KINDS = {"float32": np.uint32, "float16": np.uint16}
MADE = {
    ("float32", "numpy's NaN"): 0x7FC00000,
    ("float32", "a GPU's NaN"): 0x7FFFFFFF,
    ("float32", "bfloat16's NaN of torch on a CPU"): 0xFFFF0000,
    ("float32", "the greatest number"): 0x7F7FFFFF,
    ("float16", "numpy's NaN"): 0x7E00,
    ("float16", "a GPU's NaN"): 0x7FFF,
}


def read_back(kind, bits, kept):
    """The number with these bits, written to a Zarr array of one chunk and read again."""
    array = zarr.create_array({}, shape=(4,), chunks=(4,), dtype=kind, filters=[BitRound(keepbits=kept)], fill_value=1)
    array[:] = np.full(4, bits, KINDS[kind]).view(kind)
    (value,) = set(array[:].view(KINDS[kind]).tolist())
    return str(np.array(value, KINDS[kind]).view(kind))


found = {(*of, kept): read_back(of[0], bits, kept) for of, bits in MADE.items() for kept in (5, 7, 9)}
for (kind, name, kept), value in found.items():
    print(f"{kind}, {kept} bits kept, {name} ({MADE[kind, name]:#x}) is read back as {value}")
assert all(found[kind, "numpy's NaN", kept] == "nan" for kind in KINDS for kept in (5, 7, 9))
assert all(found[kind, "a GPU's NaN", kept] == "-0.0" for kind in KINDS for kept in (5, 7, 9))
assert [found["float32", "bfloat16's NaN of torch on a CPU", kept] for kept in (5, 7, 9)] == ["0.0", "nan", "nan"]
assert all(found["float32", "the greatest number", kept] == "inf" for kept in (5, 7, 9))
PY
"$folder/venv/bin/python" "$folder/bitround.py"

#!/usr/bin/env bash
# Hugging Face datasets: rows without a label or group (null in a ClassLabel column), as tensors. Torch is large: 200 MB where pip
# finds a build for CPUs alone, and more elsewhere.
#
# Guessed before: an error, or -1, and the same dtype for every batch.
# Came out (datasets 5.2.0, torch 2.13.0): with_format("torch", dtype=torch.uint8) makes a null class 0, in silence; int8 and int16
# do so, too, and int64 and int32 make it the least integer. The length and the counts of the classes look right: of 60 women, 30
# men and 10 of unknown group, 70 are women. Without a dtype a batch is int64 if it has no null and float32 if it has one, and so
# is each single row. On an H200 (torch 2.11.0) a NaN is 0 as int32, too. A float16 column arrives as float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 torch==2.13.0 numpy==2.4.6
cat >"$folder/null.py" <<'PY'
import warnings

import torch
from datasets import ClassLabel, Dataset, Features, Value

GROUPS = [0] * 60 + [1] * 30 + [None] * 10
kinds = Features({"group": ClassLabel(names=["women", "men"]), "score": Value("float16")})
rows = Dataset.from_dict({"group": GROUPS, "score": [0.5] * 100}, features=kinds)


def counts(dtype):
    values, numbers = rows.select_columns("group").with_format("torch", dtype=dtype)[:]["group"].unique(return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = {str(dtype): counts(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}
    batches = rows.with_format("torch")
    dtypes = [str(batches[place]["group"].dtype) for place in (slice(0, 50), slice(50, 100), 0, 99)]
    score = str(batches[:]["score"].dtype)
print("in the table:", {name: GROUPS.count(name) for name in (0, 1, None)})
for dtype, number in found.items():
    print(f"{dtype}: {number}")
print(f"without a dtype: a batch without null {dtypes[0]}, with null {dtypes[1]}, a row {dtypes[2]}, a row of null {dtypes[3]}")
print("a float16 column:", score)
print("warnings:", [str(one.message) for one in caught])
assert all(found[f"torch.{name}"] == {0: 70, 1: 30} for name in ("uint8", "int8", "int16"))
assert found["torch.int32"] == {-(2**31): 10, 0: 60, 1: 30}
assert found["torch.int64"] == {-(2**63): 10, 0: 60, 1: 30}
assert dtypes == ["torch.int64", "torch.float32", "torch.int64", "torch.float32"]
assert score == "torch.float32"
assert not caught
PY
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" "$folder/null.py"

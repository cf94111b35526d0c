#!/usr/bin/env bash
# onnxruntime: calibration_cache_path of quantize_static, and a second student of the same architecture.
#
# Guessed before (after part of the code was read): the ranges are computed anew, with a warning, where the model is another one, as where smooth_quant differs.
# Came out (onnxruntime 1.32.0): only the method and smooth_quant are compared. The second student gets the ranges of the first;
# its calibration rows are not read, and nothing is said. Its logits are eight times as large, so they are cut off: half of its
# predictions change (48.4 %), where its own ranges change 1.8 %. So each student needs a cache file of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat >"$folder/cache.py" <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

rows = np.random.default_rng(0).normal(size=(1024, 32)).astype(np.float32)
said = []


class Ear(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger().addHandler(Ear())


class Rows(CalibrationDataReader):
    def __init__(self):
        self.asked, self.batches = 0, iter([{"x": rows[:512]}])

    def get_next(self):
        self.asked += 1
        return next(self.batches, None)


def student(name, seed, size):
    random = np.random.default_rng(seed)
    sides = {"w1": (32, 64), "w2": (64, 10)}
    weights = [numpy_helper.from_array((size * random.normal(size=side) / side[0] ** 0.5).astype(np.float32), key) for key, side in sides.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, ["rows", side]) for key, side in (("x", 32), ("logits", 10))]
    graph = helper.make_graph(nodes, "student", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), name)
    return name


def predictions(name):
    return ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0].argmax(1)


def changed(name, **cache):
    """Which share of predictions 8 bits change, how often the calibration rows were asked for, and what was said of them."""
    reader = Rows()
    said.clear()
    quantize_static(name, "int8.onnx", reader, **cache)
    return float((predictions(name) != predictions("int8.onnx")).mean()), reader.asked, [line for line in said if "ache" in line]


first, second = student("first.onnx", 1, 1.0), student("second.onnx", 2, 8**0.5)
found = {
    "the first student writes the cache": changed(first, calibration_cache_path="ranges.json"),
    "the second student reads it": changed(second, calibration_cache_path="ranges.json"),
    "the second student without a cache": changed(second),
}
for name, (share, asked, lines) in found.items():
    print(f"{name}: {100 * share:.1f} % of predictions change, calibration rows asked for {asked} times, said of the cache: {lines}")
assert all(lines == [] for _, _, lines in found.values())
assert found["the second student reads it"][1] == 0
assert found["the second student without a cache"][1] > 0
assert found["the second student reads it"][0] > 0.3 > 0.1 > found["the second student without a cache"][0]
PY
cd "$folder" && "$folder/venv/bin/python" cache.py

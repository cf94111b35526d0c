#!/usr/bin/env bash
# onnxruntime: calibration by entropy against calibration by the least and greatest value, where a few values lie far out.
#
# Guessed before (for another question, whether scales depend on the order of the rows): by a little, less than 1 %.
# Came out (onnxruntime 1.32.0): by nothing, since quantize_static's Entropy gives the scales of MinMax to the bit. It counts in
# 128 bins and looks for the best of all thresholds with at least 128 bins: there is one, the whole range. "The number may
# increase", it prints, but it does so only if data are collected in parts (CalibStridedMinMax, off by default). With more bins,
# by create_calibrator, Entropy cuts the far values off. Here two numbers of 32,768 are 1000 and -1000, and a step of int8 is 7.8:
# all others, within 5 of 0, become 0 or one step. Percentile (99.999 by default) does not cut them off either.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat >"$folder/entropy.py" <<'PY'
import contextlib
import io
import logging

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator

logging.disable(logging.WARNING)
random = np.random.default_rng(0)
rows = random.normal(size=(512, 64)).astype(np.float32)
rows[0, 0], rows[1, 1] = 1000, -1000  # two of 32,768 numbers; all others lie within 5
weights = numpy_helper.from_array(random.normal(size=(64, 8)).astype(np.float32), "weights")
nodes = [helper.make_node("MatMul", ["x", "weights"], ["y"])]
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", 64), ("y", 8))]
graph = helper.make_graph(nodes, "linear", values[:1], values[1:], [weights])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "linear.onnx")


class Rows(CalibrationDataReader):
    def __init__(self, size):
        self.batches = iter([{"x": rows[start : start + size]} for start in range(0, len(rows), size)])

    def get_next(self):
        return next(self.batches, None)


def scale(method, size):
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static("linear.onnx", "int8.onnx", Rows(size), calibrate_method=method)
    return {item.name: numpy_helper.to_array(item) for item in onnx.load("int8.onnx").graph.initializer}["x_scale"].item()


def far_end(bins):
    calibrator = create_calibrator(
        "linear.onnx", calibrate_method=CalibrationMethod.Entropy, extra_options={"num_bins": bins, "num_quantized_bins": 128}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator.collect_data(Rows(64))
        return float(calibrator.compute_data()["x"].range_value[1])


scales = {(method.name, size): scale(method, size) for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy) for size in (1, 512)}
scales["Percentile", 512] = scale(CalibrationMethod.Percentile, 512)
ends = {bins: far_end(bins) for bins in (128, 2048)}
for (method, size), found in scales.items():
    print(f"{method}, batches of {size}: the scale of x is {found:.6f}")
for bins, end in ends.items():
    print(f"Entropy by create_calibrator with {bins} bins: x ends at {end:.1f}")
assert len({found for (method, _), found in scales.items() if method != "Percentile"}) == 1
assert 0 < scales["MinMax", 512] - scales["Percentile", 512] < 0.01
assert abs(ends[128] - 1000) < 1e-3
assert ends[2048] < 200
PY
cd "$folder" && "$folder/venv/bin/python" entropy.py

#!/usr/bin/env bash
# ONNX Resize with antialias=1 on a uint8 picture: beside Pillow, in onnxruntime and in OpenVINO.
#
# Guessed before: onnxruntime gives Pillow's pixels within 1 of 255, with the defaults of the other attributes. OpenVINO, too.
# Came out (onnxruntime 1.32.0, OpenVINO 2026.4.1, Pillow 13.0.0): onnxruntime does with exclude_outside=1 (and cubic_coeff_a
# -0.5). With its default 0 pixels at the edges are up to 11 off. OpenVINO ignores antialias and says nothing: it gives the bits
# that it gives without it, up to 138 of 255 from Pillow on noise (for cubic known: openvino #35893, May 2026, open).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort

sys.modules["openvino_telemetry"] = None  # `import openvino` would write an id and send a message
import openvino
from onnx import TensorProto, checker, helper, numpy_helper
from PIL import Image

picture = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
SIDE = 128


def resize(kind, mode, antialias, outside):
    attributes = {"mode": mode, "antialias": antialias, "exclude_outside": outside, "cubic_coeff_a": -0.5}
    node = helper.make_node("Resize", ["x", "", "", "size"], ["y"], **attributes)
    size = numpy_helper.from_array(np.array([1, 3, SIDE, SIDE]), "size")
    ends = [helper.make_tensor_value_info(name, kind, [1, 3, *sides]) for name, sides in (("x", (218, 178)), ("y", (SIDE, SIDE)))]
    graph = helper.make_graph([node], "resize", ends[:1], ends[1:], [size])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(made)
    return made.SerializeToString()


def in_onnxruntime(model, x):
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def in_openvino(model, x):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(x)[0]


def off(run, kind, mode, antialias, outside):
    """The largest distance from Pillow's pixels: of all, and of those that are not at an edge."""
    x = picture.transpose(2, 0, 1)[None].astype(np.float32 if kind == TensorProto.FLOAT else np.uint8)
    y = np.rint(run(resize(kind, mode, antialias, outside), x)[0].transpose(1, 2, 0)).clip(0, 255)
    pillow = Image.fromarray(picture).resize((SIDE, SIDE), {"linear": Image.BILINEAR, "cubic": Image.BICUBIC}[mode])
    distance = np.abs(y.astype(int) - np.asarray(pillow).astype(int))
    return int(distance.max()), int(distance[2:-2, 2:-2].max())


found = {}
for mode in ("linear", "cubic"):
    for outside in (0, 1):
        found[f"onnxruntime, uint8, {mode}, exclude_outside={outside}"] = off(in_onnxruntime, TensorProto.UINT8, mode, 1, outside)
    for antialias in (0, 1):
        found[f"OpenVINO, float, {mode}, antialias={antialias}"] = off(in_openvino, TensorProto.FLOAT, mode, antialias, antialias)
for name, (all_of_it, inside) in found.items():
    print(f"{name}: at most {all_of_it} of 255 from Pillow; {inside} away from the edges")
for mode in ("linear", "cubic"):
    assert found[f"onnxruntime, uint8, {mode}, exclude_outside=1"][0] <= 1
    assert found[f"onnxruntime, uint8, {mode}, exclude_outside=0"][0] > 3
    assert found[f"OpenVINO, float, {mode}, antialias=1"][0] > 50
x = picture.transpose(2, 0, 1)[None].astype(np.float32)
for mode in ("linear", "cubic"):
    without, with_it = (in_openvino(resize(TensorProto.FLOAT, mode, antialias, 0), x) for antialias in (0, 1))
    assert np.array_equal(without, with_it)
PY

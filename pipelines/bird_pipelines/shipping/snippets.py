"""The usage snippets of a card: they run without this project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["snippet_of"]

PIXELS = '''
import json, sys
import numpy as np
from PIL import Image, ImageOps

about = json.load(open("student.json", encoding="utf-8"))
side = about["input"]["shape"][-1]


def pixels(path):
    """The image as the student reads it, float32 (1, 3, side, side)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":  # gray of 16 bits
        scale = about["input"].get("white_level", 65535) / 255
        image = Image.fromarray((np.asarray(image, np.float64) / scale).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("RGB")
    short = min(image.size)
    if image.size != (side, side):
        width, height = (side if each == short else int(side * each / short) for each in image.size)
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return np.asarray(image, np.float32).transpose(2, 0, 1)[None] / np.float32(255)

'''
RUN = {
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
for path in sys.argv[1:]:
    logits, features = session.run(["logits", "features"], {"image": pixels(path)})
    print(path, about["class_names"][logits[0].argmax()])
""",
    "pt2": """
import torch

program = torch.export.load("student.pt2").module()
for path in sys.argv[1:]:
    logits, features = program(torch.from_numpy(pixels(path)))
    print(path, about["class_names"][logits[0].argmax()])
""",
    "hf": """
import timm, torch

network = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(about["input"][name])[:, None, None] for name in ("mean", "std"))
for path in sys.argv[1:]:
    with torch.inference_mode():
        logits = network((torch.from_numpy(pixels(path)) - mean) / std)
    print(path, about["class_names"][logits[0].argmax()])
""",
    "torch": """
import torch
from safetensors.torch import load_file
NETWORK
network.load_state_dict(load_file("student.safetensors"))
network.eval()
mean, std = (torch.tensor(about["input"][name])[:, None, None] for name in ("mean", "std"))
for path in sys.argv[1:]:
    with torch.inference_mode():
        logits = network((torch.from_numpy(pixels(path)) - mean) / std)ANSWER
    print(path, about["class_names"][logits[0].argmax()])
""",
}
ANSWER = """
        if not torch.is_tensor(logits):  # features and logits
            by_name = logits if isinstance(logits, dict) else getattr(logits, "__dict__", {})
            logits = by_name["logits"] if "logits" in by_name else logits[1]"""
VECTORS = """
import json, sys
import numpy as np

about = json.load(open("student.json", encoding="utf-8"))
vectors = np.load(sys.argv[1], allow_pickle=False).astype(np.float32)  # the teacher's, (rows, dim)
"""
OPENVINO = """
sys.modules["openvino_telemetry"] = None  # `import openvino` would write an id and send a message
import openvino

settings = {"INFERENCE_PRECISION_HINT": about["runtime"]["inference_precision_hint"]}  # what the file was checked in
model = openvino.Core().compile_model("student.onnx", "CPU", settings)
"""
ON_OPENVINO = (
    OPENVINO
    + """for path in sys.argv[1:]:
    logits = model(pixels(path))["logits"]
    print(path, about["class_names"][logits[0].argmax()])
"""
)
VECTORS_ON_OPENVINO = (
    OPENVINO
    + """logits = model(vectors)["logits"]
print([about["class_names"][each] for each in logits.argmax(1)])
"""
)
RUN_VECTORS = {
    "onnx": """
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
logits, features = session.run(["logits", "features"], {"features_of_teacher": vectors})
print([about["class_names"][each] for each in logits.argmax(1)])
""",
    "pt2": """
import torch

logits, features = torch.export.load("student.pt2").module()(torch.from_numpy(vectors))
print([about["class_names"][each] for each in logits.argmax(1)])
""",
}


def snippet_of(about: Mapping[str, Any]) -> str:
    """A whole script, run in the folder of the export; its arguments are image files, or one .npy of vectors."""
    vectors = about["input"]["kind"] == "features"
    if about["runtime"]["name"] == "openvino":
        return VECTORS + VECTORS_ON_OPENVINO if vectors else PIXELS + ON_OPENVINO
    if vectors:
        return VECTORS + RUN_VECTORS[about["to"]]
    if about["to"] != "torch":
        return PIXELS + RUN[about["to"]]
    answer = ANSWER if about["network"]["library"] == "own" else ""
    return PIXELS + RUN["torch"].replace("NETWORK", _network(about["network"])).replace("ANSWER", answer)


def _network(told: Mapping[str, Any]) -> str:
    """The lines that build the network. Of the user's own, whose code is not in the folder, they say what to put there."""
    name, given = told["name"], ", ".join(f"{key}={value}" for key, value in (told["arguments"] or {}).items())
    if told["library"] == "torchvision":
        return f"from torchvision import models\n\nnetwork = models.{name}({given})"
    if told["library"] == "timm":
        return f'import timm\n\nnetwork = timm.create_model("{name}", {given})'
    module = Path(told["file"] or "").stem
    if told["arguments"] is None or not module.isidentifier():
        return f"\nnetwork = ...  # your own module goes here: {name} of {told['file']}, with the same layers"
    beside = f"# {told['file']} is not in this folder: put it beside this script (sha256 {told['sha256']})"
    return f"\n{beside}\nfrom {module} import {name.partition('.')[0]}\n\nnetwork = {name}({given})"

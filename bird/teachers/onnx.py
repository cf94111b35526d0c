"""A black box: an ONNX file that takes pixels and answers with a vector."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import TeacherError
from bird.teachers.base import PENULTIMATE, LayerSpec, Teacher, View, Views

__all__ = ["OnnxTeacher"]

DEFAULT_SIZE = 128  # where neither the graph nor the person says


@final
class OnnxTeacher(Teacher):
    """RGB in [0, 1], float32 (N, 3, H, W), in; the first output of one vector an image, out. The file brings its own
    normalisation. The side is the graph's if that is fixed, else `image_size`, else 128."""

    feature_kind = "penultimate"

    def __init__(self, path: Path, *, device: torch.device, image_size: int | None) -> None:
        if not path.is_file():
            raise self._refuse(path, "no such file", "an ONNX file", "check the path")
        import onnxruntime as ort

        options = ort.SessionOptions()
        # Several threads ask at once (`Teacher.on_cpu`): a pool of as many threads each would spin against the others.
        options.intra_op_num_threads = max(1, torch.get_num_threads() // 16)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = ort.get_available_providers()
        providers = ["CUDAExecutionProvider"] if device.type == "cuda" and "CUDAExecutionProvider" in available else []
        self.on_cpu = not providers
        try:
            self._session: Any = ort.InferenceSession(
                str(path), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class
            raise self._refuse(
                path, f"a file it cannot load ({str(error)[:160]})", "an ONNX model", "check it"
            ) from None
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != 4 or shape[1] not in (3, None) or self._input.type != "tensor(float)":
            raise self._refuse(path, f"an input {self._input.type} {shape}", "float32 (N, 3, H, W)", "export it so")
        height, width = (side if isinstance(side, int) else image_size or DEFAULT_SIZE for side in shape[2:])
        self.name = f"onnx:{path.stem}"
        self.weights_digest = digest_of_onnx(path)
        self._view = View((height, width))
        shapes = self._probe(path, height, width)
        self._output, self.dim = self._pick(path, shapes)
        self.layers = {PENULTIMATE: LayerSpec((self.dim,), self.feature_kind)} | {
            name: LayerSpec(shape[1:], "logits" if name == "logits" else "token" if len(shape) == 2 else "maps")
            for name, shape in shapes.items()
            if name not in (self._output, PENULTIMATE) and len(shape) in (2, 4)
        }
        self.preprocessing = {**self._view.canonical(), "reading": f"output {self._output}"}

    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """See Teacher.preprocess."""
        return self._view(image, box)

    def normalise(self, views: Views) -> Float[Tensor, "batch 3 height width"]:
        """See Teacher.normalise."""
        return self._view.normalise(views)

    def answer(self, views: Views, layers: Sequence[str]) -> dict[str, Tensor]:
        """See Teacher.answer."""
        pixels = self.normalise(views)
        outputs = [self._output if layer == PENULTIMATE else layer for layer in layers]
        try:
            found = self._session.run(outputs, {self._input.name: pixels.numpy()})
        except Exception as error:
            raise TeacherError(
                where=f"teacher {self.name}",
                found=f"a failure in the model ({str(error)[:160]})",
                wanted=f"vectors for a batch of {tuple(pixels.shape)}",
                fix="export it with a dynamic batch axis, or use --batch-size 1",
            ) from None
        return {
            layer: torch.from_numpy(np.asarray(values, np.float32).reshape(len(pixels), *self.layers[layer].shape))
            for layer, values in zip(layers, found, strict=True)
        }

    def _probe(self, path: Path, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs for one blank image."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            answers = self._session.run(None, {self._input.name: np.zeros((1, 3, height, width), np.float32)})
        except Exception as error:  # onnxruntime's errors share no base class
            raise self._refuse(
                path,
                f"a failure on one blank {width} x {height} image ({str(error)[:160]})",
                "one vector an image",
                "give the side it wants with --image-size, or export it with a dynamic batch axis",
            ) from None
        return {name: tuple(answer.shape) for name, answer in zip(names, answers, strict=True)}

    def _pick(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
        """Name and width of the first output that is one vector an image."""
        for name, shape in shapes.items():
            if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
                return name, int(shape[1])
        raise self._refuse(path, f"outputs of shape {shapes}", "one vector an image: (N, d)", "pool inside the graph")

    @staticmethod
    def _refuse(path: Path, found: str, wanted: str, fix: str) -> TeacherError:
        return TeacherError(where=f"--teacher onnx:{path}", found=found, wanted=wanted, fix=fix)


def digest_of_onnx(path: Path) -> str:
    """sha256 of the file, and of the files beside it that hold its large tensors.

    ONNX names those as protobuf pairs ("location", file); a pair found by chance only adds a file that exists.
    """
    model = path.read_bytes()
    total = hashlib.sha256(model)
    beside = set()
    for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]?)([\x01-\x7f])", model, re.DOTALL):
        low, high = entry[1], entry[2][0]  # the name's length, 7 bits a byte, lowest first
        length = (low[0] & 0x7F) + (high << 7) if low else high
        beside.add(model[entry.end() : entry.end() + length])
    for name in sorted(beside):
        file = path.parent / name.decode(errors="replace")
        if file.is_file():
            with file.open("rb") as data:
                total.update(hashlib.file_digest(data, "sha256").digest())
    return f"sha256:{total.hexdigest()}"

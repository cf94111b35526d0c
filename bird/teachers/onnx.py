"""A black box: an ONNX file that takes pixels and answers with a vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import TeacherError
from bird.teachers.base import PENULTIMATE, FeatureKind, LayerSpec, Teacher, View, Views
from bird.teachers.batch_independence import Company, company
from bird.teachers.claims import PixelScale, kind_of, names_class_scores
from bird.teachers.graphs import choose_output, class_counts, digest_of_onnx, vectors_of

__all__ = ["OnnxTeacher"]

DEFAULT_SIZE = 128  # where neither the graph nor the person says
ALONE = "one image at a time"


@final
class OnnxTeacher(Teacher):
    """RGB, float32 (N, 3, H, W), in; one vector an image, out.

    A graph does not say how it wants its pixels: they are in [0, 1] unless `scale` says otherwise. The side is the graph's
    if that is fixed, else `image_size`, else 128. The vector is the output `output`, else the only one that is a vector and
    no class scores. `kind` is what it is said to be; for logits the class scores are taken.

    A batch of fixed size is filled up with copies. At load the graph is asked about the same images twice, and in other
    company: where that changes its answers (dynamic quantisation scales by the whole batch), it is asked one image at a
    time; where it answers differently to the same question, it is refused.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: torch.device,
        image_size: int | None = None,
        output: str | None = None,
        kind: FeatureKind | None = None,
        scale: PixelScale | None = None,
    ) -> None:
        """Raises TeacherError for a file that is no such graph, UsageError for options that do not fit it."""
        scale = scale or PixelScale()
        self.name, self._where = f"onnx:{path.stem}", f"--teacher onnx:{path}"
        if not path.is_file():
            raise self._refuse("a folder" if path.is_dir() else "no such file", "an ONNX file", "check the path")
        self._open(path, device)
        batch, _, *sides = self._input.shape
        self._batch: int | None = batch if isinstance(batch, int) else None
        height, width = (side if isinstance(side, int) else image_size or DEFAULT_SIZE for side in sides)
        mean, std = scale.of_unit()
        self._view, self._alone = View((height, width), mean=mean, std=std), False
        self.weights_digest = digest_of_onnx(path)
        shapes = self._probe(height, width)
        counts = class_counts(self._session.get_modelmeta())
        scores = [name for name, dim in vectors_of(shapes).items() if names_class_scores(name) or dim in counts]
        self._output = choose_output(self._where, shapes, scores, output=output, kind=kind)
        self.dim = vectors_of(shapes)[self._output]
        self.layers = {PENULTIMATE: LayerSpec((self.dim,), "penultimate")}
        found = self._keep_company(height, width)
        self.feature_kind = kind_of(found.vectors.numpy(), kind, "penultimate", self._refuse)
        self.layers = {PENULTIMATE: LayerSpec((self.dim,), self.feature_kind)} | {
            name: LayerSpec(shape[1:], "logits" if name in scores else "token" if len(shape) == 2 else "maps")
            for name, shape in shapes.items()
            if name not in (self._output, PENULTIMATE) and len(shape) in (2, 4)
        }
        self.preprocessing = {
            **self._view.canonical(),
            **scale.canonical(),
            "reading": f"output {self._output}",
            **({"asked": ALONE} if self._alone else {}),
        }
        self.notes = {
            "assumed": f"{scale}, the whole image resized to {width} x {height}; the graph does not say what it wants: "
            "--range, --mean, --std and (where the graph leaves it open) --image-size do",
            "vector": f"output {self._output}, {self.dim} numbers, taken as {self.feature_kind}",
            **(
                {"asked": f"{ALONE}: among other images its answers differ by {found.worst:.1%}"} if self._alone else {}
            ),
        }

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
        pixels = self.normalise(views).numpy()
        outputs = [self._output if layer == PENULTIMATE else layer for layer in layers]
        each = 1 if self._alone else self._batch or len(pixels)
        parts = [self._run(outputs, pixels[start : start + each]) for start in range(0, len(pixels), each)]
        return {
            layer: torch.from_numpy(_joined(values).reshape(len(pixels), *self.layers[layer].shape))
            for layer, values in zip(layers, zip(*parts, strict=True), strict=True)
        }

    def _run(self, outputs: Sequence[str], pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """One call of the graph: each output for these images, which are no more than it takes."""
        count = len(pixels)
        if self._batch is not None and count < self._batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self._batch - count, axis=0)])
        try:
            found = [
                np.asarray(values, np.float32) for values in self._session.run(outputs, {self._input.name: pixels})
            ]
        except Exception as error:  # onnxruntime's errors share no base class
            raise self._refuse(
                f"a failure in the model ({str(error)[:160]})",
                f"vectors for a batch of {pixels.shape}",
                "export it with a dynamic batch axis",
            ) from None
        if wrong := next((values.shape for values in found if values.shape[:1] != (len(pixels),)), None):
            raise self._refuse(
                f"an answer of shape {wrong} for {len(pixels)} images",
                "one row an image",
                "export it with a dynamic batch axis",
            )
        return [values[:count] for values in found]

    def _open(self, path: Path, device: torch.device) -> None:
        """Start the session. Raises TeacherError for a file that is no graph of images."""
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
            raise self._refuse(f"a file it cannot load ({str(error)[:160]})", "an ONNX model", "check it") from None
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != 4 or shape[1] not in (3, None) or self._input.type != "tensor(float)":
            raise self._refuse(f"an input {self._input.type} {shape}", "float32 (N, 3, H, W)", "export it so")

    def _probe(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs for blank images: one, or as many as the graph takes."""
        names = [output.name for output in self._session.get_outputs()]
        count = self._batch or 1
        try:
            answers = self._session.run(None, {self._input.name: np.zeros((count, 3, height, width), np.float32)})
        except Exception as error:  # onnxruntime's errors share no base class
            raise self._refuse(
                f"a failure on {count} blank {width} x {height} images ({str(error)[:160]})",
                "one vector an image",
                "give the side it wants with --image-size, or export it with a dynamic batch axis",
            ) from None
        return {name: tuple(answer.shape) for name, answer in zip(names, answers, strict=True)}

    def _keep_company(self, height: int, width: int) -> Company:
        """Find out how the graph may be asked, and that its answers follow from the image alone. Raises TeacherError."""
        ask = partial(company, self.features, height, width)
        try:
            found = ask()
        except TeacherError:
            if self._batch is not None:
                raise
            self._alone = True  # its inner shapes are those of one image
            found = ask()
        if found.repeats and found.matters:
            if (self._batch or 1) > 1:
                raise self._refuse(
                    f"answers that depend on the other images of a call (they differ by {found.worst:.1%})",
                    f"a graph that takes one image a call: this one takes {self._batch}",
                    "export it for one image, or with a dynamic batch axis",
                )
            self._alone = True
            found = ask()._replace(mates=found.mates, alone=found.alone)
        if not found.repeats:
            raise self._refuse(
                f"two answers to one question (they differ by {found.again:.1%})",
                "a function of the image",
                "export it in evaluation mode, without anything random",
            )
        return found

    def _refuse(self, found: str, wanted: str, fix: str) -> TeacherError:
        return TeacherError(where=self._where, found=found, wanted=wanted, fix=fix)


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows of all parts; of one, without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

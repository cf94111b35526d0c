"""What every teacher gives: a view of an image, and a vector for it. Frozen, in evaluation mode, without gradients."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bird.errors import TeacherError, UsageError

__all__ = ["FeatureKind", "Json", "Teacher", "TorchTeacher", "View", "digest_of_state"]

Json = str | int | float | bool | list[Any] | dict[str, Any] | None
FeatureKind = Literal["penultimate", "projection"]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(ABC):
    """A frozen feature extractor.

    `name` is what it was asked for, without local paths; `weights_digest` hashes its weights' values; `preprocessing` is
    everything that shapes its pixels, in canonical form. The last two enter a cache's fingerprint.
    """

    name: str
    dim: int
    feature_kind: FeatureKind
    weights_digest: str
    preprocessing: Mapping[str, Json]

    @abstractmethod
    def preprocess(self, image: NDArray[np.uint8]) -> Float[Tensor, "3 height width"]:
        """The teacher's view of an RGB image (height, width, 3). Called from several threads at once."""

    @abstractmethod
    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Raw (never normalised) vectors of a batch of views, float32 on the CPU. Raises TeacherError."""


@dataclasses.dataclass(frozen=True)
class View:
    """Resize, centre crop, scale to [0, 1], normalise: the deterministic view of nearly every image model.

    `resize` is a side for the short edge, or (height, width) to reach exactly; `resizer` "pillow" resamples as PIL does
    (CLIP, FLAVA and torchvision's published weights were evaluated so), "tensor" as torch with antialiasing.
    """

    resize: int | tuple[int, int]
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resizer: Literal["pillow", "tensor"] = "tensor"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(self, image: NDArray[np.uint8]) -> Float[Tensor, "3 height width"]:
        """The view of an RGB image (height, width, 3)."""
        from torchvision.transforms.v2 import InterpolationMode  # seconds to import: not for `bird list`
        from torchvision.transforms.v2 import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        mode = InterpolationMode(self.interpolation)
        if self.resizer == "pillow":
            resized = F.resize(Image.fromarray(image), size, interpolation=mode)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        else:
            tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
            pixels = F.resize(tensor, size, interpolation=mode, antialias=True)
        if self.crop is not None:
            pixels = F.center_crop(pixels, [self.crop, self.crop])
        unit = pixels.float().div_(255.0)
        if self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0):
            return unit
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return unit.sub_(mean).div_(std)

    def canonical(self) -> dict[str, Json]:
        """As JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@final
class TorchTeacher(Teacher):
    """A torch module, the view it takes, and how its vector is read."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        view: View,
        *,
        kind: FeatureKind,
        device: torch.device,
        precision: str,
        read: Callable[[Any], Tensor] = lambda output: output,
        reading: str = "output",
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(
                where="--precision",
                found=repr(precision),
                wanted=f"one of {', '.join(PRECISIONS)}",
                fix="choose one",
            )
        self.name, self.feature_kind = name, kind
        self.weights_digest = digest_of_state(module.state_dict())
        self.preprocessing = {**view.canonical(), "reading": reading}
        self._view, self._read, self._device, self._dtype = view, read, device, PRECISIONS[precision]
        self._module = module.eval().requires_grad_(False).to(device)
        side = view.crop or (view.resize if isinstance(view.resize, int) else view.resize[0])
        try:
            self.dim = self.features(torch.zeros(1, 3, side, side)).shape[1]
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise TeacherError(
                where=f"teacher {name}",
                found=f"a failure on one blank {side} x {side} image ({(str(error) or repr(error)).splitlines()[0][:160]})",
                wanted="a model of images alone, that takes this size and answers with a vector",
                fix="choose another model, or another --image-size",
            ) from error

    def preprocess(self, image: NDArray[np.uint8]) -> Float[Tensor, "3 height width"]:
        """See Teacher.preprocess."""
        return self._view(image)

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """See Teacher.features."""
        cast = nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)
        with torch.inference_mode(), cast:
            vectors = self._read(self._module(pixels.to(self._device, non_blocking=True)))
        if vectors.ndim != 2:
            raise TeacherError(
                where=f"teacher {self.name}",
                found=f"an answer of shape {tuple(vectors.shape)}",
                wanted="one vector an image",
                fix="choose a model with a pooled output",
            )
        return vectors.float().cpu()


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, sorted by name: the same weights in two file formats agree."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"

"""What every teacher gives: a view of an image, and a vector for it. Frozen, in evaluation mode, without gradients."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bird.devices import fetch, send
from bird.errors import TeacherError, unknown_name
from bird.teachers.inference import hasten
from bird.teachers.layers import FeatureKind, LayerSpec, Tap
from bird.views import cut

__all__ = ["FeatureKind", "Json", "LayerSpec", "Teacher", "TorchTeacher", "View", "digest_of_state"]

Json = str | int | float | bool | list[Any] | dict[str, Any] | None
Views = UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
PENULTIMATE = "penultimate"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(ABC):
    """A frozen feature extractor.

    A view is uint8 until it is where the teacher computes: a quarter of the memory to copy, and one normalisation a batch.

    `name` is what it was asked for, without local paths; `weights_digest` hashes its weights' values; `preprocessing` is
    everything that shapes its pixels, in canonical form. The last two enter a cache's fingerprint.
    `layers` is what it can be asked for: "penultimate" always, the others as `bird.teachers.layers` describes them.
    `on_cpu`: it computes where images are decoded, too, so that several threads had better answer at once. Both methods
    below are called from several threads.
    `notes` says in words what a reader wants to know of it: assumptions, where the weights came from.
    """

    name: str
    dim: int
    feature_kind: FeatureKind
    weights_digest: str
    preprocessing: Mapping[str, Json]
    layers: Mapping[str, LayerSpec]
    on_cpu: bool
    notes: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """The teacher's view of an RGB image (height, width, 3), or of a box of it (`bird.views`)."""

    @abstractmethod
    def normalise(self, views: Views) -> Float[Tensor, "batch 3 height width"]:
        """What the network takes of a batch of views, on the views' device; float views are taken as they are."""

    @abstractmethod
    def answer(self, views: Views, layers: Sequence[str]) -> dict[str, Tensor]:
        """Each of `layers` for a batch of views, (batch, *shape), raw (never normalised), float32 on the CPU; one forward
        pass for all of them. Raises TeacherError."""

    def features(self, views: Views) -> Float[Tensor, "batch dim"]:
        """The penultimate vectors alone."""
        return self.answer(views, (PENULTIMATE,))[PENULTIMATE]


@dataclasses.dataclass(frozen=True)
class View:
    """Resize, centre crop (`view(image)`), then scale to [0, 1] and normalise (`view.normalise`): the deterministic view of
    nearly every image model.

    `resize` is a side for the short edge, or (height, width) to reach exactly; `resizer` "pillow" resamples as PIL does
    (CLIP, FLAVA and torchvision's published weights were evaluated so), "tensor" as torch with antialiasing.
    """

    resize: int | tuple[int, int]
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resizer: Literal["pillow", "tensor"] = "tensor"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the view of a square, in pixels."""
        if self.crop is not None:
            return self.crop, self.crop
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    def __call__(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """The view of an RGB image (height, width, 3). Of a box of it, all is seen: resized, not cropped again."""
        from torchvision.transforms.v2 import InterpolationMode  # seconds to import: not for `bird list`
        from torchvision.transforms.v2 import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if box is not None and box.any():
            image, size = cut(image, box).permute(1, 2, 0).numpy(), list(self.sides)
        mode = InterpolationMode(self.interpolation)
        seen: Any
        if self.resizer == "pillow":
            seen = F.resize(Image.fromarray(image), size, interpolation=mode)
        else:
            tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
            seen = F.resize(tensor, size, interpolation=mode, antialias=True)
        if self.crop is not None:
            seen = F.center_crop(seen, [self.crop, self.crop])
        return seen if isinstance(seen, Tensor) else torch.from_numpy(np.array(seen)).permute(2, 0, 1)

    def normalise(self, views: Views) -> Float[Tensor, "batch 3 height width"]:
        """(x / 255 - mean) / std of each channel, on the views' device; float views are left as they are."""
        if views.is_floating_point():
            return views
        out = torch.empty(views.shape, device=views.device)
        plain = self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)
        mean, std = (torch.tensor(values, device=views.device)[:, None, None] for values in (self.mean, self.std))
        # On the CPU image by image: one fits in a core's cache, a batch does not.
        for given, unit in zip(views, out, strict=True) if views.is_cpu else [(views, out)]:
            unit.copy_(given).div_(255.0)
            if not plain:
                unit.sub_(mean).div_(std)
        return out

    def canonical(self) -> dict[str, Json]:
        """As JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@final
class TorchTeacher(Teacher):
    """A torch module, the view it takes, and where its layers are tapped."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        view: View,
        *,
        taps: Mapping[str, Tap],
        device: torch.device,
        precision: str,
        reading: str = "output",
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("--precision", precision, PRECISIONS)
        self.name, self.feature_kind = name, taps[PENULTIMATE].kind
        self.weights_digest = digest_of_state(module.state_dict())
        self.preprocessing = {**view.canonical(), "reading": reading}
        self._view, self._taps, self._device, self._dtype = view, taps, device, PRECISIONS[precision]
        self._module = module.eval().requires_grad_(False).to(device)
        self.on_cpu = device.type == "cpu"
        self._launching = threading.Lock()
        self._asked = threading.local()  # what this thread's forward pass is to hear, and has heard
        for layer, tap in taps.items():
            part = self._module.get_submodule(tap.path)
            if tap.of == "input":
                part.register_forward_pre_hook(partial(self._hear_input, layer))
            else:
                part.register_forward_hook(partial(self._hear_output, layer))
        height, width = view.sides
        try:
            blank = self.answer(torch.zeros(1, 3, height, width, dtype=torch.uint8), tuple(taps))
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            said = (str(error) or repr(error)).splitlines()[0][:160]
            raise TeacherError(
                where=f"teacher {name}",
                found=f"a failure on one blank {height} x {width} image ({said})",
                wanted="a model of images alone, that takes this size and answers with a vector",
                fix="choose another model, or another --image-size",
            ) from error
        self.layers = {layer: LayerSpec(tuple(blank[layer].shape[1:]), tap.kind) for layer, tap in taps.items()}
        (self.dim,) = self.layers[PENULTIMATE].shape
        if self.on_cpu:
            noise = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
            hasten(self._module, partial(self._exact, noise), self._more_than_cls)

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
        if self.on_cpu:
            heard = self._hear(self.normalise(views), layers, self._dtype)
            self._check(heard, len(views), layers)
            return {layer: heard[layer].float().contiguous() for layer in layers}
        with self._launching:  # one thread fills the queue of the GPU; it waits for its answer beside the next one
            heard = self._hear(self.normalise(send(views, self._device)), layers, self._dtype)
            self._check(heard, len(views), layers)
            answers = {layer: fetch(heard[layer].float().contiguous()) for layer in layers}
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()
        return answers

    def _check(self, heard: Mapping[str, Tensor], count: int, layers: Sequence[str]) -> None:
        """Raise TeacherError unless every layer has one array an image."""
        for layer in layers:
            shape = tuple(heard[layer].shape) if layer in heard else ()
            if shape[:1] != (count,) or (layer == PENULTIMATE and len(shape) != 2):
                raise TeacherError(
                    where=f"teacher {self.name}, layer {layer}",
                    found=f"an answer of shape {shape}",
                    wanted="one vector an image" if layer == PENULTIMATE else "one array an image",
                    fix="choose a model with a pooled output" if layer == PENULTIMATE else "leave this layer out",
                )

    def _hear(self, pixels: Tensor, layers: Sequence[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """One forward pass over what the network takes, and what the taps of `layers` heard."""
        cast = nullcontext() if dtype is None else torch.autocast(self._device.type, dtype)
        self._asked.layers, self._asked.heard = layers, {}
        with torch.inference_mode(), cast:
            self._module(pixels)
        heard, self._asked.layers, self._asked.heard = self._asked.heard, (), {}
        return heard  # type: ignore[no-any-return]

    def _exact(self, pixels: Tensor) -> dict[str, Tensor]:
        """All that can be asked, in full precision: every layer, and the vectors alone."""
        alone = self._hear(pixels, (PENULTIMATE,), None)[PENULTIMATE]
        return {**self._hear(pixels, tuple(self._taps), None), "alone": alone}

    def _more_than_cls(self) -> bool:
        """Whether this thread's forward pass is to give what other tokens than a ViT's first one say."""
        return any(layer not in (PENULTIMATE, "cls") for layer in self._asked.layers)

    def _hear_input(self, layer: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer in getattr(self._asked, "layers", ()):
            self._asked.heard[layer] = self._taps[layer].read(inputs[0])

    def _hear_output(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if layer in getattr(self._asked, "layers", ()):
            self._asked.heard[layer] = self._taps[layer].read(output)


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, sorted by name: the same weights in two file formats agree."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"

"""What every teacher gives: a view of an image, and a vector for it. Frozen, in evaluation mode, without gradients."""

from __future__ import annotations

import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from bird.devices import fetch, send
from bird.errors import TeacherError, UsageError, unknown_name
from bird.teachers.claims import PixelScale
from bird.teachers.files import first_line
from bird.teachers.inference import hasten
from bird.teachers.layers import FeatureKind, LayerSpec, Tap
from bird.teachers.views import Json, View, Viewer, Views
from bird.weights import digest_of_state

__all__ = [
    "FeatureKind",
    "Json",
    "LayerSpec",
    "Options",
    "Teacher",
    "TorchTeacher",
    "View",
    "Views",
    "digest_of_state",
]

PENULTIMATE = "penultimate"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(ABC):
    """A frozen feature extractor.

    Our views are uint8 until they are where the teacher computes: a quarter of the memory to copy, and one normalisation a
    batch. A library's own processor gives floats.

    `name` is what it was asked for, without local paths; `weights_digest` hashes its weights' values; `config` is the
    architecture that they fill; `preprocessing` is everything that shapes its pixels, in canonical form, and how the vector
    is read. The last three enter a cache's fingerprint. `notes` do not: what was compared with its library, which versions.
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
    config: Mapping[str, Json] = MappingProxyType({})
    notes: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "channels height width"]:
        """The teacher's view of an RGB image (height, width, 3), or of a box of it (`bird.stored_views`)."""

    @abstractmethod
    def normalise(self, views: Views) -> Float[Tensor, "batch channels height width"]:
        """What the network takes of a batch of views, on the views' device; float views are taken as they are."""

    @abstractmethod
    def answer(self, views: Views, layers: Sequence[str]) -> dict[str, Tensor]:
        """Each of `layers` for a batch of views, (batch, *shape), raw (never normalised), float32 on the CPU; one forward
        pass for all of them. Raises TeacherError."""

    def features(self, views: Views) -> Float[Tensor, "batch dim"]:
        """The penultimate vectors alone."""
        return self.answer(views, (PENULTIMATE,))[PENULTIMATE]


@final
@dataclasses.dataclass(frozen=True)
class Options:
    """What the person asked for beside the teacher's name."""

    weights: Path | None
    device: torch.device
    precision: str
    image_size: int | None
    kind: FeatureKind | None = None
    output: str | None = None
    scale: PixelScale | None = None

    def without_size(self, name: str, whose: str) -> None:
        """Raise UsageError for an --image-size, where it is `whose` to say."""
        if self.image_size is not None:
            raise UsageError(
                where="--image-size",
                found=str(self.image_size),
                wanted=f"none for {name}: the size is {whose}",
                fix="leave --image-size out",
            )


@final
class TorchTeacher(Teacher):
    """A torch module, the view it takes, and where its layers are tapped."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        view: Viewer,
        *,
        taps: Mapping[str, Tap],
        device: torch.device,
        precision: str,
        reading: str = "output",
        config: Mapping[str, Json] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("--precision", precision, PRECISIONS)
        self.name, self.feature_kind = name, taps[PENULTIMATE].kind
        self.weights_digest, self.config = digest_of_state(module.state_dict()), config or {}
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
        noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        pair = torch.stack([view(image) for image in (noise, np.ascontiguousarray(noise[:, ::-1]))])
        try:
            first = self.answer(pair[:1], tuple(taps))
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
            raise TeacherError(
                where=f"teacher {name}",
                found=f"a failure on one image, seen as {' x '.join(map(str, pair.shape[1:]))} ({first_line(error)})",
                wanted="a model of images alone that takes this view and answers with a vector",
                fix="take weights, config and processor of one model; or say --image-size where the teacher leaves it open",
            ) from error
        self.layers = {layer: LayerSpec(tuple(first[layer].shape[1:]), tap.kind) for layer, tap in taps.items()}
        (self.dim,) = self.layers[PENULTIMATE].shape
        if self.on_cpu:
            hasten(self._module, partial(self._exact, self.normalise(pair)), self._more_than_cls)

    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "channels height width"]:
        """See Teacher.preprocess."""
        return self._view(image, box)

    def normalise(self, views: Views) -> Float[Tensor, "batch channels height width"]:
        """See Teacher.normalise."""
        return self._view.normalise(views)

    def in_full(self, views: Views, layers: Sequence[str]) -> dict[str, Tensor]:
        """As `answer`, in full precision whatever the teacher computes in: what is compared with its library."""
        heard = self._hear(self.normalise(views.to(self._device)), layers, None)
        return {layer: heard[layer].float().cpu() for layer in layers}

    def answer(self, views: Views, layers: Sequence[str]) -> dict[str, Tensor]:
        """See Teacher.answer."""
        if self._device.type == "cpu":
            heard = self._hear(self.normalise(views), layers, self._dtype)
            self._check(heard, len(views), layers)
            return {layer: heard[layer].float().contiguous() for layer in layers}
        with self._launching:  # one thread fills the queue of the GPU; it waits for its answer beside the next one
            heard = self._hear(self.normalise(send(views, self._device)), layers, self._dtype)
            self._check(heard, len(views), layers)
            answers = {layer: fetch(heard[layer].float().contiguous()) for layer in layers}
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch is untyped there
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
        return heard  # type: ignore[no-any-return]  # torch is untyped there

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

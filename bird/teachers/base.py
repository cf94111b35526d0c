"""What every teacher gives: a view of an image, and a vector for it. Frozen, in evaluation mode, without gradients."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bird.errors import TeacherError, UsageError
from bird.views import cut

__all__ = ["FeatureKind", "Json", "LayerSpec", "Teacher", "TorchTeacher", "View", "digest_of_state"]

Json = str | int | float | bool | list[Any] | dict[str, Any] | None
FeatureKind = Literal["penultimate", "projection", "projection_l2", "logits", "attention", "maps", "token"]
PENULTIMATE = "penultimate"
STAGE = re.compile(r"(layer|stage|block)\d+")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What a layer gives for one view: its shape, and what kind of vector or map it is."""

    shape: tuple[int, ...]
    kind: FeatureKind


class Teacher(ABC):
    """A frozen feature extractor.

    `name` is what it was asked for, without local paths; `weights_digest` hashes its weights' values; `preprocessing` is
    everything that shapes its pixels, in canonical form. The last two enter a cache's fingerprint.
    `layers` is what it can be asked for: "penultimate" always; of a CNN "attention.STAGE" (sum of squares over channels,
    (H, W)) and "maps.STAGE" (C, H, W); of a ViT "cls" and "pooled" (the mean patch token), after the last norm and before
    any projection; "logits" where it has a classifier.
    """

    name: str
    dim: int
    feature_kind: FeatureKind
    weights_digest: str
    preprocessing: Mapping[str, Json]
    layers: Mapping[str, LayerSpec]

    @abstractmethod
    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The teacher's view of an RGB image (height, width, 3), or of a box of it (`bird.views`). Called from several
        threads at once."""

    @abstractmethod
    def answer(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[str]) -> dict[str, Tensor]:
        """Each of `layers` for a batch of views, (batch, *shape), raw (never normalised), float32 on the CPU; one forward
        pass for all of them. Raises TeacherError."""

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The penultimate vectors alone."""
        return self.answer(pixels, (PENULTIMATE,))[PENULTIMATE]


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

    def __call__(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """The view of an RGB image (height, width, 3). Of a box of it, all is seen: resized, not cropped again."""
        from torchvision.transforms.v2 import InterpolationMode  # seconds to import: not for `bird list`
        from torchvision.transforms.v2 import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if box is not None and box.any():
            image = cut(image, box).permute(1, 2, 0).numpy()
            size = [self.crop, self.crop] if self.crop is not None else (size * 2)[:2]
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
        tokens: str | None = None,
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        """`read` takes the vector from the module's output, `logits` its logits; `tokens` is the path of the submodule
        ("" for the whole) whose output are the tokens after the last norm."""
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
        self._logits, self._tokens = logits, tokens
        self._module = module.eval().requires_grad_(False).to(device)
        side = view.crop or (view.resize if isinstance(view.resize, int) else view.resize[0])
        try:
            self._stages: dict[str, str] = {}
            blank = torch.zeros(1, 3, side, side)
            self.dim = self.answer(blank, (PENULTIMATE,))[PENULTIMATE].shape[1]
            self.layers = self._find_layers(blank)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise TeacherError(
                where=f"teacher {name}",
                found=f"a failure on one blank {side} x {side} image ({(str(error) or repr(error)).splitlines()[0][:160]})",
                wanted="a model of images alone, that takes this size and answers with a vector",
                fix="choose another model, or another --image-size",
            ) from error

    def preprocess(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> Float[Tensor, "3 height width"]:
        """See Teacher.preprocess."""
        return self._view(image, box)

    def answer(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[str]) -> dict[str, Tensor]:
        """See Teacher.answer."""
        names = {name.partition(".")[2] for name in layers if "." in name}
        wanted = {stage: self._stages[stage] for stage in names}
        if self._tokens is not None and {"cls", "pooled"} & {*layers}:
            wanted["tokens"] = self._tokens
        output, seen = self._forward(pixels, wanted)
        vectors = self._read(output)
        if vectors.ndim != 2:
            raise TeacherError(
                where=f"teacher {self.name}",
                found=f"an answer of shape {tuple(vectors.shape)}",
                wanted="one vector an image",
                fix="choose a model with a pooled output",
            )
        answers = {}
        for layer in layers:
            kind, _, stage = layer.partition(".")
            if layer == PENULTIMATE:
                answers[layer] = vectors
            elif layer == "logits":
                assert self._logits is not None
                answers[layer] = self._logits(output)
            elif stage:
                answers[layer] = READERS[kind](seen[stage].float())
            else:
                answers[layer] = READERS[kind](_tokens_of(seen["tokens"]))
        return {layer: tensor.float().cpu() for layer, tensor in answers.items()}

    def _forward(self, pixels: Tensor, watched: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
        """The module's output, and those of the submodules at the watched paths by name."""
        seen: dict[str, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                seen[name] = output

            return hook

        hooks = [self._module.get_submodule(path).register_forward_hook(keep(name)) for name, path in watched.items()]
        cast = nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)
        try:
            with torch.inference_mode(), cast:
                return self._module(pixels.to(self._device, non_blocking=True)), seen
        finally:
            for hook in hooks:
                hook.remove()

    def _find_layers(self, blank: Tensor) -> dict[str, LayerSpec]:
        """What this module can be asked for, found by one blank image."""
        paths = _stage_paths(self._module)
        output, seen = self._forward(blank, paths | ({} if self._tokens is None else {"tokens": self._tokens}))
        tokens = seen.pop("tokens", None)
        layers = {PENULTIMATE: LayerSpec((self.dim,), self.feature_kind)}
        for stage, found in seen.items():
            if isinstance(found, Tensor) and found.ndim == 4:
                self._stages[stage] = paths[stage]
                layers[f"attention.{stage}"] = LayerSpec(tuple(found.shape[2:]), "attention")
                layers[f"maps.{stage}"] = LayerSpec(tuple(found.shape[1:]), "maps")
        if tokens is not None and (tokens := _tokens_of(tokens)) is not None and tokens.ndim == 3:
            layers |= {name: LayerSpec((tokens.shape[2],), "token") for name in ("cls", "pooled")}
        if self._logits is not None:
            layers["logits"] = LayerSpec(tuple(self._logits(output).shape[1:]), "logits")
        return layers


READERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda maps: maps.square().sum(1),
    "maps": lambda maps: maps,
    "cls": lambda tokens: tokens[:, 0],
    "pooled": lambda tokens: tokens[:, 1:].mean(1),
}


def _tokens_of(output: Any) -> Any:
    return getattr(output, "last_hidden_state", output)


def _stage_paths(module: nn.Module) -> dict[str, str]:
    """The residual stages of a CNN by their last name: layer1, stage2, block3 ...; none inside another."""
    found: dict[str, str] = {}
    for path, _ in module.named_modules():
        parts = path.split(".")
        if STAGE.fullmatch(parts[-1]) and not any(STAGE.fullmatch(part) for part in parts[:-1]):
            found.setdefault(parts[-1], path)
    return found


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, sorted by name: the same weights in two file formats agree."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"

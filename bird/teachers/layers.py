"""The layers that a teacher can give beside its vector: what they are called and where they are tapped.

| layer | of | shape an image |
|---|---|---|
| penultimate | every teacher | (d,) |
| maps.STAGE | CNNs: the output of a residual stage | (channels, height, width) |
| attention.STAGE | CNNs: the sum of its squares over the channels | (height, width) |
| cls, pooled | ViTs, after the last norm, before a projection: the CLS token, the mean of the patch tokens | (width,) |
| projection | image towers of transformers: the vector in the space that images and texts share | (width,) |
| logits | classifiers with a head | (classes,) |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from torch import Tensor, nn

__all__ = ["FeatureKind", "LayerSpec", "Tap", "stage_taps", "token_taps"]

FeatureKind = Literal["penultimate", "projection", "projection_l2", "logits", "attention", "maps", "token"]

STAGES: Mapping[str, Mapping[str, str]] = {  # class -> stage -> submodule
    "ResNet": {f"layer{i}": f"layer{i}" for i in range(1, 5)},
    "ModifiedResNet": {f"layer{i}": f"layer{i}" for i in range(1, 5)},
    "ShuffleNetV2": {f"stage{i}": f"stage{i}" for i in range(2, 5)},
    "RegNet": {f"block{i}": f"trunk_output.block{i}" for i in range(1, 5)},
    "TinyResNet": {f"layer{i}": f"layer{i}" for i in range(1, 4)},
    "TinyConvNet": {f"stage{i}": f"stage{i}" for i in range(1, 4)},
    "ConvNeXt": {f"stage{i}": f"features.{2 * i - 1}" for i in range(1, 5)},
}


@final
@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What a layer holds: its shape an image, and its kind."""

    shape: tuple[int, ...]
    kind: FeatureKind


@final
@dataclasses.dataclass(frozen=True)
class Tap:
    """Where a layer is read: the submodule at `path` ("" is the whole module), its output or its input, and how."""

    kind: FeatureKind
    path: str = ""
    read: Callable[[Any], Tensor] = lambda value: value
    of: Literal["output", "input"] = "output"


def stage_taps(backbone: nn.Module, prefix: str = "") -> dict[str, Tap]:
    """attention.* and maps.* of a CNN that sits at `prefix` of its teacher; none for an architecture without stages."""
    taps: dict[str, Tap] = {}
    for stage, path in STAGES.get(type(backbone).__name__, {}).items():
        taps[f"attention.{stage}"] = Tap("attention", prefix + path, _attention)
        taps[f"maps.{stage}"] = Tap("maps", prefix + path)
    return taps


def token_taps(path: str, tokens: Callable[[Any], Tensor]) -> dict[str, Tap]:
    """cls and pooled, where `tokens` reads (batch, 1 + patches, width) from the output of `path`."""
    return {
        "cls": Tap("token", path, lambda output: tokens(output)[:, 0]),
        "pooled": Tap("token", path, lambda output: tokens(output)[:, 1:].mean(1)),
    }


def _attention(maps: Tensor) -> Tensor:
    return maps.float().square().sum(1)  # half precision would overflow

"""Networks small enough to train in seconds: a ViT, ResNets and a ConvNet that stand for large ones in demos and tests.

They are no models of the paper; what carries their name is marked as a demo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["TINY", "TINY_STAGES", "TinyConvNet", "TinyResNet", "TinyViT", "build_tiny"]

TINY: Mapping[str, str] = {
    "tiny-vit": "a 2-layer ViT for demos, patches of 1/8 of the side, 64 features",
    "tiny-resnet": "a ResNet of 3 stages of one block for demos, 64 features",
    "tiny-resnet-deep": "a ResNet of 3 stages of two blocks for demos, 64 features",
    "tiny-convnet": "3 depthwise-separable stages for demos, 96 features",
}
TINY_STAGES: Mapping[str, tuple[str, ...]] = {
    "tiny-vit": (),
    "tiny-resnet": ("layer1", "layer2", "layer3"),
    "tiny-resnet-deep": ("layer1", "layer2", "layer3"),
    "tiny-convnet": ("stage1", "stage2", "stage3"),
}
"""submodules whose outputs are the maps of the residual (or other) stages"""
Maps = Float[Tensor, "batch channels height width"]


@final
class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a perceptron, both around shortcuts (Dosovitskiy et al. 2021). torch's own layer takes
    another path, with other rounding, where no gradient is wanted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """The tokens after the block."""
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        tokens = tokens + self.out((weights @ v).transpose(1, 2).flatten(2))
        return tokens + self.perceptron(self.norm2(tokens))  # type: ignore[no-any-return]  # a module's answer is Any


@final
class TinyViT(nn.Module):
    """64 patches -> 2 pre-norm transformer layers -> the mean token, normed (width 64)."""

    def __init__(self, image_size: int, width: int = 64) -> None:
        super().__init__()
        patch = max(1, image_size // 8)
        side = image_size // patch
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.layers = nn.Sequential(TransformerBlock(width, 4), TransformerBlock(width, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Features of a batch."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        features: Tensor = self.norm(self.layers(tokens)).mean(1)
        return features


@final
class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut: nn.Module = nn.Identity()
        if (inside, stride) != (outside, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Maps) -> Maps:
        """The block's maps."""
        return torch.relu(self.body(x) + self.shortcut(x))


@final
class TinyResNet(nn.Module):
    """A stem of stride 2, then 3 stages of 16, 32 and 64 channels of `depth` blocks, pooled."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = self._stage(16, 16, 1, depth)
        self.layer2 = self._stage(16, 32, 2, depth)
        self.layer3 = self._stage(32, 64, 2, depth)

    @staticmethod
    def _stage(inside: int, outside: int, stride: int, depth: int) -> nn.Sequential:
        rest = [Block(outside, outside, 1) for _ in range(depth - 1)]
        return nn.Sequential(Block(inside, outside, stride), *rest)

    def forward(self, x: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Features of a batch."""
        return self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3))  # type: ignore[no-any-return]  # a module's answer is Any


@final
class TinyConvNet(nn.Module):
    """3 stages, each a strided 3x3 convolution and a depthwise-separable one, pooled (24, 48, 96 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = self._stage(3, 24), self._stage(24, 48), self._stage(48, 96)

    @staticmethod
    def _stage(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, groups=outside, bias=False),
            nn.Conv2d(outside, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        )

    def forward(self, x: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Features of a batch."""
        return self.stage3(self.stage2(self.stage1(x))).mean((2, 3))  # type: ignore[no-any-return]  # a module's answer is Any


def build_tiny(name: str, image_size: int, feature_dim: int) -> tuple[nn.Module, int]:
    """The backbone of that name and the width of its features; `feature_dim` is not used."""
    if name == "tiny-vit":
        return TinyViT(image_size), 64
    if name == "tiny-convnet":
        return TinyConvNet(), 96
    return TinyResNet(2 if name == "tiny-resnet-deep" else 1), 64

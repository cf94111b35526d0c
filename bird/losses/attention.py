"""Attention transfer: where in the image two networks respond (Zagoruyko and Komodakis 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "attention_loss"]


def attention(maps: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch height width"]:
    """The mean over the channels of the squared maps: where a stage responds (section 3.1, with p = 2)."""
    return maps.square().mean(-3)


def attention_loss(
    student: Sequence[Float[Tensor, "*models batch _ _"]], teacher: Sequence[Float[Tensor, "*models batch _ _"]]
) -> Float[Tensor, "*models"]:
    """Sum over the stages of the mean of (A_S / |A_S| - A_T / |A_T|)^2 over samples and places; no unit.

    `student` and `teacher` are attention maps, one a stage, from the shallowest; norms are L2, over one map. Since maps are
    normalised, a sum over the channels in place of their mean gives the same value. Differs from eq. 2 of the paper as
    the authors' own code does: the mean of squared differences, not a norm of the difference.
    Ours: networks with different numbers of stages are paired from the deepest, and where a stage's maps differ in size both
    are averaged down to the smaller height and the smaller width (enlarging would invent detail). Raises ValueError for a
    network without a stage.
    """
    pairs = list(zip(reversed(student), reversed(teacher), strict=False))
    if not pairs:
        raise ValueError("attention_loss needs at least one stage of each network")
    gaps = [_unit(a) - _unit(b) for a, b in (_alike(*pair) for pair in pairs)]
    return sum((gap.square().mean((-2, -1)) for gap in gaps[1:]), gaps[0].square().mean((-2, -1)))


def _unit(maps: Tensor) -> Tensor:
    """Each map as a vector of length 1; a map of zeros stays zero."""
    flat = maps.flatten(-2)
    return flat * flat.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()


def _alike(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(one.shape[-2], two.shape[-2]), min(one.shape[-1], two.shape[-1]))
    return _pooled(one, size), _pooled(two, size)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.adaptive_avg_pool2d(maps.flatten(0, -3), size).view(*maps.shape[:-2], *size)

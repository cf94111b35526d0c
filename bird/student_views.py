"""Pixels on their way to a student: one deterministic view for evaluation, one random view for training.

A random view is a small array of numbers (`draw_views`), drawn from a generator and applied afterwards
(`apply_views`): stored parameters, not a seed, are what a view can be replayed from.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from bird.devices import send

__all__ = ["apply_views", "center_view", "crop_at_once", "draw_views", "mirror_as", "unit_range"]

PADDING = 4  # pixels a side before the random crop, at 32 pixels; scaled with the image (He et al. 2016, section 4.2)


def center_view(image: NDArray[np.uint8], size: int) -> UInt8[Tensor, "3 size size"]:
    """The deterministic view: short side resized to `size` (bilinear, antialiased), centre crop. `image` is HWC RGB."""
    from torchvision.transforms.v2 import functional as F  # seconds to import, and an adapter never needs it

    # from_numpy wants a writable array; decoders hand out read-only views
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if pixels.shape[1:] != (size, size):
        pixels = F.center_crop(F.resize(pixels, [size], antialias=True), [size, size])
    return pixels.contiguous()


def draw_views(rng: np.random.Generator, count: int, size: int, flip: bool) -> NDArray[np.int64]:
    """Parameters of `count` random views, shape (count, 3): crop top, crop left (pixels of the padded image), mirrored."""
    reach = 2 * _padding(size) + 1
    views = np.stack([rng.integers(0, reach, count), rng.integers(0, reach, count), rng.integers(0, 2, count)], axis=1)
    views[:, 2] *= int(flip)
    return views


def apply_views(
    pixels: UInt8[Tensor, "batch 3 size size"], views: NDArray[np.int64]
) -> UInt8[Tensor, "batch 3 size size"]:
    """The views (batch, 3) that `draw_views` described: zero padding, crop at (top, left), mirror; where the pixels are."""
    padded = pad(pixels, [_padding(pixels.shape[-1])] * 4)
    return (_crop_one_by_one if pixels.is_cpu else crop_at_once)(padded, views, pixels.shape[-1])


def _crop_one_by_one(padded: Tensor, views: NDArray[np.int64], size: int) -> Tensor:
    out = torch.empty((*padded.shape[:2], size, size), dtype=padded.dtype)
    for image, whole, (top, left, mirrored) in zip(out, padded, views.tolist(), strict=True):
        crop = whole[:, top : top + size, left : left + size]
        image.copy_(crop.flip(-1) if mirrored else crop)
    return out


def crop_at_once(padded: Tensor, views: NDArray[np.int64], size: int) -> Tensor:
    """The same by a handful of operations on the whole batch, as a GPU wants it: it gathers the rows of the crops, runs
    of memory each. (A core copies them faster one by one.)"""
    count, channels, side, _ = padded.shape
    first = torch.arange(count * channels).view(count, channels, 1) * side**2  # where in memory a channel begins
    top, left = (torch.from_numpy(views[:, column]).view(count, 1, 1) for column in (0, 1))
    rows = send((first + (top + torch.arange(size)) * side + left).flatten(), padded.device)
    out = padded.view(-1).unfold(0, size, 1).index_select(0, rows).view(count, channels, size, size)
    if len(mirrored := np.flatnonzero(views[:, 2])):
        which = send(torch.from_numpy(mirrored), padded.device)
        out.index_copy_(0, which, out.index_select(0, which).flip(-1))
    return out


def mirror_as(maps: Float[Tensor, "batch *channels height width"], views: NDArray[np.int64]) -> Tensor:
    """Spatial maps of the deterministic view, mirrored where the random view, one of (batch, 3), is. Its shift, an eighth of
    the side at most, is left as it is: less than a place of the deeper stages."""
    mirrored = torch.from_numpy(views[:, 2] > 0).to(maps.device).view(-1, *[1] * (maps.ndim - 1))
    return torch.where(mirrored, maps.flip(-1), maps)


def unit_range(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0..255 -> [0, 1], what every student takes."""
    return pixels.float().div_(255.0)


def _padding(size: int) -> int:
    return max(1, size * PADDING // 32)

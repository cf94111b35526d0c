"""Random views that a teacher and a student can see alike: stored numbers, replayed for both.

A box is five integers: top, left, height, width (pixels of the decoded source image; it may reach beyond the image, where
zeros are), and mirrored (0 or 1). Five zeros are the deterministic view. What is stored is the box, not a random seed, so
that a library's next version changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import DataError
from bird.images import MAX_PIXELS
from bird.student_views import center_view

__all__ = ["BOX", "cut", "draw_boxes", "view_of", "view_policy"]

BOX = 5
SHIFT = 8  # a box is shifted by up to its side / 8 each way, as the crop after padding in He et al. 2016, section 4.2


def view_policy(count: int, flip: bool) -> str | dict[str, Any]:
    """What a cache's fingerprint says of its views: "none", or how its `count` random views were drawn."""
    if count == 0:
        return "none"
    return {"name": "shifted square", "version": 1, "count": count, "shift": f"side / {SHIFT}", "flip": flip}


def draw_boxes(digest: str, count: int, height: int, width: int, flip: bool) -> NDArray[np.int32]:
    """`count` + 1 boxes (count + 1, 5) for an image of that size: the deterministic view, then random ones: the largest
    centred square, shifted and, with `flip`, mirrored half of the time. A pure function of the arguments; `digest` is
    the sample's."""
    side = min(height, width)
    reach = max(1, side // SHIFT)
    seed = np.random.SeedSequence(int.from_bytes(digest.encode(), "little"))
    words = np.random.Philox(seed).random_raw(3 * count).reshape(count, 3)
    boxes = np.zeros((count + 1, BOX), np.int32)
    boxes[1:, 0] = (height - side) // 2 - reach + (words[:, 0] % np.uint64(2 * reach + 1)).astype(np.int64)
    boxes[1:, 1] = (width - side) // 2 - reach + (words[:, 1] % np.uint64(2 * reach + 1)).astype(np.int64)
    boxes[1:, 2:4] = side
    boxes[1:, 4] = (words[:, 2] % np.uint64(2)).astype(np.int64) * int(flip)
    return boxes


def cut(image: NDArray[np.uint8], box: NDArray[np.int32]) -> UInt8[Tensor, "3 height width"]:
    """The pixels of a box of an RGB image (height, width, 3), zeros beyond its edges, mirrored where the box says so.

    Raises DataError for a box that is empty, too large, or entirely beyond the image.
    """
    from torchvision.transforms.v2 import functional as F  # seconds to import

    top, left, height, width, mirrored = box.tolist()
    meets = -height < top < image.shape[0] and -width < left < image.shape[1]
    if height < 1 or width < 1 or height * width > MAX_PIXELS or not meets or mirrored not in (0, 1):
        raise DataError(
            where="a stored view",
            found=f"top {top}, left {left}, height {height}, width {width}, mirrored {mirrored}",
            wanted=f"a box that meets an image of {image.shape[0]} x {image.shape[1]} pixels",
            fix="the views belong to other images, or the cache is damaged: run `bird cache verify`",
        )
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    found = F.crop(pixels, top, left, height, width)
    found = F.horizontal_flip(found) if mirrored else found
    return torch.as_tensor(found).contiguous()


def view_of(image: NDArray[np.uint8], box: NDArray[np.int32], size: int) -> UInt8[Tensor, "3 size size"]:
    """What a student sees of a box: cut out and resized (bilinear, antialiased); the deterministic view for five zeros."""
    from torchvision.transforms.v2 import functional as F

    if not box.any():
        return center_view(image, size)
    found: Tensor = cut(image, box)
    if found.shape[1:] != (size, size):
        found = F.resize(found, [size, size], antialias=True)
    return found

"""Check that a teacher's vector depends on the image alone: not on chance, and not on the other images of its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["Company", "company", "keep_company", "sample_views"]

NOISE = 0.01  # what kernels of half precision, or for another batch size, may add: a cosine of .99995
EXACT = 1e-5  # what stays between two batches of one size: the same kernels over the same numbers


@final
class Company(NamedTuple):
    """The vectors of some pictures, and how far answers about the same pictures lie apart, as a share of their
    length, at worst: asked twice (`again`), among other pictures at the same places of a batch as large (`mates`), and
    asked one by one (`alone`)."""

    vectors: Float[Tensor, "pictures dim"]
    again: float
    mates: float
    alone: float

    @property
    def repeats(self) -> bool:
        """Whether the same question gets the same answer."""
        return self.again <= NOISE

    @property
    def worst(self) -> float:
        """By how much another company changes an answer."""
        return max(self.mates, self.alone)

    @property
    def matters(self) -> bool:
        """Whether answers depend on what else is in the batch."""
        return self.mates > max(EXACT, 3 * self.again) or self.alone > NOISE


def company(ask: Callable[[Tensor], Tensor], height: int, width: int) -> Company:
    """Ask about four sample pictures, in several companies.

    `ask` takes uint8 views (batch, 3, height, width) and answers with vectors (batch, dim). What a network that looks at
    its whole batch would be moved by is in the other company: black, white, and all between. A scale that follows the
    whole batch (dynamic quantisation) is seen so, and batch statistics, and random masks.
    """
    views = sample_views(height, width)
    others = views.clone()
    others[1], others[3] = 0, 255
    others[3, :, ::2] = 0
    return keep_company(ask, views, others)


def keep_company(ask: Callable[[Tensor], Tensor], views: Tensor, others: Tensor) -> Company:
    """Ask about `views` (batch, ...) twice, about `others`, in which every second one is replaced, and about the first half
    one by one."""
    first, second, mixed = ask(views), ask(views), ask(others)
    alone = torch.cat([ask(views[row : row + 1]) for row in range(len(views) // 2)])
    return Company(first, _apart(first, second), _apart(first[::2], mixed[::2]), _apart(first[: len(alone)], alone))


def sample_views(height: int, width: int) -> UInt8[Tensor, "4 3 height width"]:
    """Four pictures of moderate contrast: waves, each of its own colour and direction."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phases = torch.arange(12).reshape(4, 3, 1, 1)
    waves = torch.sin(7.0 * rows * (1 + phases % 4) + 9.0 * columns * (1 + phases % 3) + phases)
    return (128 + 60 * waves).to(torch.uint8)


def _apart(first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]) -> float:
    """The largest distance of two rows, as a share of the first one's length; infinite for what is no number."""
    length = torch.linalg.vector_norm(first.double(), dim=1).clamp(min=1e-30)
    share = torch.linalg.vector_norm(first.double() - second.double(), dim=1) / length
    return float(torch.nan_to_num(share, nan=torch.inf).max())

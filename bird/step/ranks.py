"""One student on several processes ("ranks"): what they tell each other in a step, so that all of them take the step of one
process on all rows.

Each rank holds the whole student and some rows of each batch. A loss that is a mean over rows is the sum over the ranks of
share x (the rank's own mean), share = own rows / all rows; L_o is a function of the cells' sums and counts. So sums of
vectors are all that is needed:

| what is summed | then every rank has |
|---|---|
| share dL_in/dtheta | theta', the same everywhere |
| sums and counts of the cells' cross-entropy on the meta batch | the value of L_o; its gradient stays that of the own rows |
| dL_o/dtheta' | v; Jv is then of the own rows |
| the slope of phi | the same step of phi |
| sums and counts of the cells on the train batch, where L_o is in the loss | L_o there |
| the gradient of L_j | the same step of theta |

All sums are taken outside forward mode: a dual tensor that is summed keeps the tangent of its own rank alone, and nothing
says so. A mean over ranks of each rank's own feedback is something else: a largest gap over cells is no mean over rows.
A vector has one fixed layout, since the order of a sum's terms may depend on its length. What is not a number is found by
sums, too: the maximum over ranks loses a NaN.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from bird.step.passes import dense

__all__ = ["ALONE", "Ranks", "Reduce"]

Reduce = Callable[[Tensor], Tensor]
"""A vector -> its sum over all ranks; it may be summed in place. All ranks call it in the same order, with equal lengths."""


@final
class Ranks:
    """All ranks, as one of them sees them. `reduce` is None in a single process: then nothing is summed."""

    def __init__(self, reduce: Reduce | None = None) -> None:
        self.reduce = reduce
        self.share = 1.0
        """of the rows of the present train batch, those of this rank; 0: its rows are another's, so that it has any"""

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.reduce is None

    def sum(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each tensor's sum over the ranks, in one vector, of the widest type among them and float32 at least."""
        if self.reduce is None:
            return tuple(tensors)
        dtype = torch.float32
        for each in tensors:
            dtype = torch.promote_types(dtype, each.dtype)
        flat = self.reduce(torch.cat([each.detach().reshape(-1).to(dtype) for each in tensors]))
        pieces = torch.split(flat, [each.numel() for each in tensors])
        return tuple(piece.view_as(each).to(each.dtype) for piece, each in zip(pieces, tensors, strict=True))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks, whose gradient is that of this rank's own values."""
        if self.reduce is None:
            return values
        found: Tensor = _Total.apply(values, self.reduce)
        return found

    def total_of_rows(self, values: Tensor) -> Tensor:
        """`total` of what was computed from the train batch: a rank without rows of its own adds 0."""
        return self.total(values if self.share else values * 0)

    def part(self, mean: Tensor) -> Tensor:
        """This rank's part of a mean over the train rows of all ranks, from the mean over its own."""
        return mean if self.share == 1.0 else self.share * mean

    def count(self, rows: int, like: Tensor) -> None:
        """Learn the share from how many train rows each rank has. Raises ValueError where none has any."""
        if self.reduce is None:
            return
        (every,) = self.sum([torch.tensor([rows], dtype=torch.float64, device=like.device)])
        if every.item() == 0:
            raise ValueError("a batch without rows")
        self.share = rows / every.item()

    def any(self, found: bool, like: Tensor) -> bool:
        """Whether it was found on any rank."""
        if self.reduce is None:
            return found
        (every,) = self.sum([torch.tensor([float(found)], device=like.device)])
        return every.item() > 0

    def agree(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all ranks have the same bytes here (by a checksum of 20 bits)."""
        checksum, tensors = 0, [*tensors]
        for each in tensors:
            checksum = zlib.crc32(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
        if self.reduce is None:
            return True
        own = checksum & 0xFFFFF  # its square and the sums of them are exact in double precision
        (sums,) = self.sum([torch.tensor([1, own, own**2], dtype=torch.float64, device=tensors[0].device)])
        ranks, first, second = map(int, sums.tolist())
        return ranks * second == first**2  # equality in Cauchy and Schwarz: all are equal

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the `.grad` of each parameter by its sum over the ranks; None where no rank has one."""
        if self.reduce is None:
            return
        learned = [each for each in parameters if each.requires_grad]
        own = [dense(each.grad) if each.grad is not None else torch.zeros_like(each) for each in learned]
        there = torch.tensor([float(each.grad is not None) for each in learned], device=own[0].device)
        *sums, there = self.sum([*own, there])
        for parameter, gradient, some in zip(learned, sums, there.tolist(), strict=True):
            parameter.grad = gradient if some else None


ALONE = Ranks()
"""One process."""


@final
class _Total(torch.autograd.Function):
    """`Ranks.total`. Without a rule for forward mode, on purpose: there it raises."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, reduce: Reduce) -> Tensor:
        return reduce(values.detach().reshape(-1).clone()).view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None

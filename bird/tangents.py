"""Forward-mode differentiation of batch norm in closed form, where torch's own rule takes a dozen passes over memory.

With x^ = (x - mean) / std over the batch, y = g x^ + b moves along (dx, dg, db) by

    dy = g / std (dx - mean(dx) - x^ mean(x^ dx)) + x^ dg + db

The first term is a symmetric matrix times dx, so that it is what batch norm's backward pass gives for dx; the others are
batch norm in evaluation mode with dg and db as weight and bias. Each is one call of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FastTangents"]


@final
class FastTangents(TorchFunctionMode):
    """Within it batch norm in training takes the short way in forward mode. Running statistics are not updated."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The rule for F.batch_norm; everything else is left as it is."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm, with the tangent of its dual arguments."""
    (x, dx), (g, dg), (b, db) = (parts(each) for each in (input, weight, bias))
    if not training or dx is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y, mean, inverse_std = torch.native_batch_norm(x, g, b, None, None, True, 0.0, eps)
    dy: Tensor = torch.ops.aten.native_batch_norm_backward(
        dx, x, g, None, None, mean, inverse_std, True, eps, [True, False, False]
    )[0]
    if dg is not None:
        dy += F.batch_norm(x, mean, inverse_std.pow(-2), dg, db, training=False, eps=0.0)
    elif db is not None:
        dy += db.view(-1, *[1] * (x.ndim - 2))
    return forward_ad.make_dual(y, dy)  # type: ignore[no-any-return,no-untyped-call]


def parts(value: Tensor | None) -> tuple[Any, Any]:
    """Value and tangent, None where there is none."""
    return (None, None) if value is None else tuple(forward_ad.unpack_dual(value))  # type: ignore[no-untyped-call]

"""Forward-mode differentiation of a student at a place that it has just been: what is known is not computed again.

A convolution or a linear layer y = w * x + b moves along (dx, dw, db) by

    dy = w * dx + (dw * x + db)

torch's own rule computes y as well. A `Tape` has kept it from the forward pass before, at no cost: batch norm keeps it for
its backward pass anyway. And batch norm, y = g x^ + b with x^ = (x - mean) / std over the batch, moves by

    dy = g / std (dx - mean(dx) - x^ mean(x^ dx)) + x^ dg + db

where torch's rule takes a dozen passes over memory. The first term is a symmetric matrix times dx, so that it is what batch
norm's backward pass gives for dx; the others are batch norm in evaluation mode with dg and db as weight and bias. Each is
one call of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FastTangents", "Tape"]

PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""What is linear in its input and affine in its weight and bias."""


@final
class Tape(TorchFunctionMode):
    """Keeps what convolutions and linear layers give within it, in their order, for a JVP at the same parameters and
    inputs (`FastTangents`), and the state of the random numbers at its begin, for students that draw."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[int, Tensor, int]] = []
        self.random = torch.get_rng_state()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note a product: of which weight, its value, and the version of that, which tells if it was overwritten."""
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS and len(args) > 1:
            self.products.append((args[1].data_ptr(), result.detach(), result._version))
        return result


@final
class FastTangents(TorchFunctionMode):
    """Within it the rules above hold, with the values on `tape` where they are of the same weight in the same order and
    have not been overwritten. Batch norm in training updates no running statistics."""

    def __init__(self, tape: Tape | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = iter(tape.products if tape is not None else ())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The rules for products and F.batch_norm; everything else is left as it is."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        if func in PRODUCTS and len(args) > 1:
            return product(func, next(self.products, None), *args, **kwargs)
        return func(*args, **kwargs)


def product(
    func: Callable[..., Tensor],
    kept: tuple[int, Tensor, int] | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *how: Any,
    **options: Any,
) -> Tensor:
    """`func` (one of PRODUCTS) with the tangent of its dual arguments; its value is the `kept` one, if that is it."""
    (x, dx), (w, dw), (b, db) = (parts(each) for each in (input, weight, bias))
    if dx is None and dw is None:
        return func(input, weight, bias, *how, **options)
    terms = [] if dx is None else [func(dx, w, None, *how, **options)]
    if dw is not None:
        terms.append(func(x, dw, db, *how, **options))
    elif db is not None:
        terms.append(db.view(-1, *[1] * (0 if func is F.linear else w.ndim - 2)))
    dy = terms[0] if len(terms) == 1 else terms[0].add_(terms[1])
    if kept is None or kept[0] != w.data_ptr() or kept[1]._version != kept[2] or kept[1].shape != dy.shape:
        return dual(func(x, w, b, *how, **options), dy)
    return dual(kept[1], dy)


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
    return dual(y, dy)


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """Both as one tensor of forward mode."""
    return forward_ad.make_dual(value, tangent)  # type: ignore[no-any-return,no-untyped-call]


def parts(value: Tensor | None) -> tuple[Any, Any]:
    """Value and tangent, None where there is none."""
    return (None, None) if value is None else tuple(forward_ad.unpack_dual(value))  # type: ignore[no-untyped-call]

"""Forward-mode differentiation of a student at a place that it has just been: what is known is not computed again.

A convolution or a linear layer y = w * x + b moves along (dx, dw, db) by

    dy = w * dx + (dw * x + db)

and batch norm y = g x^ + b, with x^ = (x - mean) / std over the n values of a channel, by

    dy = g / std (dx - mean(dx) - x^ mean(x^ dx)) + x^ dg + db
       = g / std dx + x^ (dg - g / std sum(x^ dx) / n) + (db - g / std sum(dx) / n)

that is two sums, which batch norm's backward kernel gives as the gradients of weight and bias, one batch norm in evaluation
mode, and one product. torch's own rules take a dozen passes over memory for the latter and compute y again for all; a `Tape`
has kept y, mean and std from the forward pass before, at no cost: autograd keeps them, too.

A tangent that is missing is not a zero. torch itself passes over two things in silence, and here they are seen: an operator
of another library without a forward rule (NotImplementedError), and `torch.no_grad` inside the student, which forward
mode does not know (no tangent goes through it, as no gradient does).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Chances", "FastTangents", "Tape", "native_recurrence", "same_chances"]

PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""What is linear in its input and affine in its weight and bias."""
KEPT = (*PRODUCTS, F.batch_norm, F.max_pool2d)
"""What a tape keeps."""
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
ATTENTION = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}
"""Attention, and which argument says how much of it is dropped."""


@final
class Chances(NamedTuple):
    """The states of torch's random numbers, of all devices that are in use."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> Chances:
        """As they are."""
        return cls(torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in _gpus()])


@final
class Kept(NamedTuple):
    """What one call gave: its value, which later calls may overwrite, and what else its rule can use."""

    func: Callable[..., Any]
    weight: int | None  # its address
    value: Tensor
    version: int
    more: tuple[Tensor, ...] = ()

    def intact(self) -> bool:
        """Whether `value` is still what the call gave."""
        return self.value._version == self.version


class _Mode(TorchFunctionMode):
    """Sees all calls of torch, but those in compiled code."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What stands in the place of a call."""
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What stands in the place of a call in eager code."""


@final
class Tape(_Mode):
    """Keeps of the forward pass within it what a second pass at the same parameters and inputs can use: what calls with a
    rule gave, in their order (`FastTangents`; not with `keep` off); the student's buffers and the state of the random
    numbers at its begin, for students that move the former and draw; and how finely it was computed."""

    def __init__(self, student: nn.Module | None = None, *, keep: bool = True) -> None:
        super().__init__()
        self.keep, self.calls = keep, list[Kept]()
        self.dtypes: set[torch.dtype] = set()
        self.chances = Chances.now()
        self.buffers = {} if student is None else {name: value.clone() for name, value in student.named_buffers()}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call `func` in the form that tells all that autograd will keep, and keep it."""
        if self.keep and func in KEPT and not kwargs.get("return_indices"):
            kwargs = {name: value for name, value in kwargs.items() if name != "return_indices"}
            result, *more = TELLING[func](*args, **kwargs) if func in TELLING else (func(*args, **kwargs),)
            self.calls.append(Kept(func, _weight(args, kwargs), result.detach(), result._version, tuple(more)))
        elif func in ATTENTION and _drops(func, args, kwargs):
            # Fused kernels draw in ways of their own, which no pass that has tangents can repeat.
            with sdpa_kernel(SDPBackend.MATH):
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.dtypes.add(result.dtype)
        return result

    @contextmanager
    def again(self, student: nn.Module) -> Iterator[None]:
        """For the same pass once more: within it `student` has the buffers of then, and torch draws what it drew then."""
        with torch.no_grad():
            for name, value in student.named_buffers():
                value.copy_(self.buffers[name])
        with same_chances(self.chances), Tape(keep=False):
            yield


@final
class FastTangents(_Mode):
    """Within it the rules above hold, with what is on `tape` where the calls are the same in the same order. Batch norm in
    training updates no running statistics."""

    def __init__(self, tape: Tape | None = None) -> None:
        super().__init__()
        self.tape = Tape(keep=False) if tape is None else tape
        self.calls = iter(self.tape.calls)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call `func` by its rule, if it has one. Raises NotImplementedError for an operator that torch does not know, if it
        loses the tangent."""
        if not torch.is_grad_enabled():
            args, kwargs = tree_map_only(Tensor, lambda each: parts(each)[0], (args, kwargs))
            return func(*args, **kwargs)
        if func in RECURRENT:
            with native_recurrence():
                return func(*args, **kwargs)
        known = func in KEPT and not kwargs.get("return_indices")
        result = self.by_rule(func, args, kwargs) if known else func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.tape.dtypes.add(result.dtype)
        foreign = isinstance(func, OpOverload | OpOverloadPacket) and func.__module__ != "torch._ops.aten"
        if foreign and _moves((args, kwargs)) and not _moves(result):
            raise NotImplementedError(f"the operator {func} has no forward rule")
        return result

    def by_rule(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What its rule gives, with the next kept call if it is this one."""
        kwargs = {name: value for name, value in kwargs.items() if name != "return_indices"}
        kept = next(self.calls, None)
        if kept is not None and (kept.func is not func or kept.weight != _weight(args, kwargs)):
            kept = None
        if kept is not None and kept.intact() and not _moves((args, kwargs)):
            return kept.value
        return RULES[func](func, kept, *args, **kwargs) if func in RULES else cast(Tensor, func(*args, **kwargs))


def product(
    func: Callable[..., Tensor],
    kept: Kept | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *how: Any,
    **options: Any,
) -> Tensor:
    """One of PRODUCTS with the tangent of its dual arguments."""
    (x, dx), (w, dw), (b, db) = (parts(each) for each in (input, weight, bias))
    if dx is None and dw is None:
        return func(input, weight, bias, *how, **options)
    terms = [] if dx is None else [func(dx, w, None, *how, **options)]
    if dw is not None:
        terms.append(func(x, dw, db, *how, **options))
    elif db is not None:
        terms.append(db.view(-1, *[1] * (0 if func is F.linear else w.ndim - 2)))
    dy = terms[0] if len(terms) == 1 else terms[0].add_(terms[1])
    return dual(kept.value if kept is not None and kept.intact() else func(x, w, b, *how, **options), dy)


def batch_norm(
    func: Callable[..., Tensor],
    kept: Kept | None,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm with the tangent of its dual arguments."""
    (x, dx), (g, dg), (b, db) = (parts(each) for each in (input, weight, bias))
    if dx is None or not training:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if kept is None or not kept.more:
        y, mean, inverse = torch.native_batch_norm(x, g, b, None, None, True, 0.0, eps)
    else:
        mean, inverse = kept.more
        y = kept.value if kept.intact() else F.batch_norm(x, mean, inverse.pow(-2).sub_(eps), g, b, eps=eps)
    _, along, total = torch.ops.aten.native_batch_norm_backward(
        dx, x, g, None, None, mean, inverse, True, eps, [False, True, True]
    )
    scale = inverse if g is None else g * inverse
    share = scale * (x.shape[1] / x.numel())
    slope, shift = -share * along, -share * total
    slope, shift = slope if dg is None else slope + dg, shift if db is None else shift + db
    dy = F.batch_norm(x, mean, inverse.pow(-2).sub_(eps), slope, shift, eps=eps)  # torch 2.11 wants an eps > 0
    return dual(y, dy.addcmul_(dx, scale.view(-1, *[1] * (x.ndim - 2)).to(dx.dtype)))


def max_pool(func: Callable[..., Tensor], kept: Kept | None, input: Tensor, *how: Any, **options: Any) -> Tensor:
    """F.max_pool2d: the tangent is read where the largest values are."""
    _, dx = parts(input)
    if dx is None or kept is None or not kept.intact():  # torch's own rule
        return func(input, *how, **options)
    return dual(kept.value, dx.flatten(-2).gather(-1, kept.more[0].flatten(-2)).view_as(kept.value))


RULES: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(PRODUCTS, product),
    F.batch_norm: batch_norm,
    F.max_pool2d: max_pool,
}


def batch_norm_and_moments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """F.batch_norm, and on the CPU in training mean and 1 / std of the batch."""
    if training and input.is_cpu and input.numel() > input.shape[1]:
        return torch.native_batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    return (F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps),)


def max_pool_and_places(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """F.max_pool2d, and where in each plane the largest values are."""
    return F.max_pool2d(*args, return_indices=True, **kwargs)


TELLING: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    F.batch_norm: batch_norm_and_moments,
    F.max_pool2d: max_pool_and_places,
}
"""What gives a call's value with what else autograd keeps of it."""


@contextmanager
def same_chances(chances: Chances | None) -> Iterator[None]:
    """Within it torch draws what it drew from there on, such as dropout's masks; after it, what it would have drawn
    without it."""
    with torch.random.fork_rng(devices=_gpus()):
        if chances is not None:
            torch.set_rng_state(chances.cpu)
            for device, state in zip(_gpus(), chances.cuda, strict=False):  # none, if CUDA began after `now`
                torch.cuda.set_rng_state(state, device)
        yield


def _gpus() -> range:
    """The CUDA devices, if the process uses any."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch is untyped there
    return range(torch.cuda.device_count() if in_use else 0)


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """Both as one tensor of forward mode."""
    return forward_ad.make_dual(value, tangent)  # type: ignore[no-any-return,no-untyped-call]  # torch is untyped there


def parts(value: Tensor | None) -> tuple[Any, Any]:
    """Value and tangent, None where there is none."""
    return (None, None) if value is None else tuple(forward_ad.unpack_dual(value))  # type: ignore[no-untyped-call]  # torch is untyped there


@contextmanager
def native_recurrence() -> Iterator[None]:
    """Within it LSTM and its like are computed by torch itself: oneDNN's and cuDNN's have no forward rule."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [each.enabled for each in libraries]
    for each in libraries:
        each.enabled = False
    try:
        yield
    finally:
        for each, enabled in zip(libraries, before, strict=True):
            each.enabled = enabled


def _drops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of attention drops some of it."""
    place = ATTENTION[func]
    return bool(kwargs.get("dropout_p", args[place] if len(args) > place else 0.0))


def _moves(values: Any) -> bool:
    """Whether any tensor among them has a tangent."""
    return any(isinstance(each, Tensor) and parts(each)[1] is not None for each in tree_leaves(values))


def _weight(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Where the weight of a layer lies, as torch.nn passes it: that tells one layer from another."""
    given = kwargs.get("weight", args[1] if len(args) > 1 else None)
    return given.data_ptr() if isinstance(given, Tensor) else None

"""Methods of your own: a `Method`, or a distance that BIRD is put around.

A distance is a plain function of (student features, teacher features), both (batch, d), that returns a scalar or one value a
sample; or a function of (h, gated, batch), as `bird.BirdStep` takes it; or a `bird.methods.distances.Distance`. The
teacher's features are standardised and gated, the student's are mapped to the teacher's width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bird.errors import UsageError
from bird.methods.base import Hyperparameters, Method
from bird.methods.birds import Bird
from bird.methods.distances import Distance
from bird.own import Part, find, is_reference, wrong_part
from bird.weights import first_line

__all__ = ["AROUND", "made_by", "own_method"]

AROUND = "bird+"
WANTED = "a subclass of bird.methods.Method, a Distance, or a function of (student features, teacher features)"


def own_method(given: object, known: Collection[str]) -> Part:
    """The user's method: a part whose value makes a `Method` of (hyper, groups). `bird+REFERENCE` puts BIRD around a
    distance, and so does a distance without it. Raises UsageError for what is neither, and as `bird.own.find` does."""
    around = isinstance(given, str) and given.startswith(AROUND)
    if isinstance(given, str) and not around:
        name, _, loss = given.partition("+")
        if name in known and is_reference(loss):
            wanted, fix = f"{AROUND}{loss}: only {AROUND} takes a loss of your own", f"did you mean {AROUND}{loss}?"
            raise UsageError(where="--method", found=given, wanted=wanted, fix=fix)
    named = given.removeprefix(AROUND) if isinstance(given, str) else given
    part = find("method", named.loss if isinstance(named, Distance) else named, known)
    value: Any = named if isinstance(named, Distance) else part.value
    if inspect.isclass(value):
        if around or not issubclass(value, Method):
            raise wrong_part(
                part, "a Distance, or a function of (student features, teacher features)" if around else WANTED
            )
        return part
    if isinstance(value, Distance):
        distance = value
    elif callable(value) and _binds(value, 3) and not _binds(value, 2):
        distance = Distance(value)
    elif callable(value):
        _require_loss(part, value)
        distance = Distance(partial(_of_features, value))
    else:
        raise wrong_part(part, WANTED)
    return replace(part, value=partial(Bird, distance=distance), attribute=f"{AROUND}{part.attribute}")


def made_by(part: Part, hyper: Hyperparameters, groups: int) -> Method:
    """The method that the part makes. Raises UsageError where it fails."""
    try:
        made: object = part.value(hyper, groups)
    except Exception as error:  # whatever a stranger's code does
        raise UsageError(
            where=part.where,
            found=f"a failure when it was called with (hyper, groups) ({type(error).__name__}: {first_line(error)})",
            wanted="a Method",
            fix="see where with --debug",
        ) from error
    assert isinstance(made, Method)
    return made


def _binds(value: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments."""
    try:
        inspect.signature(value).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _of_features(loss: Callable[[Tensor, Tensor], Tensor], h: Any, gated: Tensor, batch: object) -> Tensor:
    return loss(h.features, gated).mean()


def _require_loss(part: Part, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Raise UsageError unless the function makes, of features (4, 3), a scalar or 4 values that follow from both."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=generator).requires_grad_() for _ in range(2))
    try:
        value: Any = loss(student, teacher)
        found = f"an answer of type {type(value).__name__}"
        if isinstance(value, Tensor):
            found = f"an answer of shape {tuple(value.shape)}, {value.dtype}"
        right = isinstance(value, Tensor) and value.is_floating_point() and value.shape in ((), (4,))
        if right and None in torch.autograd.grad(value.sum(), (student, teacher), allow_unused=True):
            found, right = "a loss that does not follow from both features", False
        elif right and not bool(value.isfinite().all()):
            found, right = "a loss that is NaN or infinite, of features drawn at random", False
    except Exception as error:  # whatever a stranger's code does
        found, right = f"a failure on features (4, 3) and (4, 3) ({type(error).__name__}: {first_line(error)})", False
    if not right:
        raise UsageError(
            where=part.where,
            found=found,
            wanted="a loss of (student features, teacher features), both (batch, dim): a scalar or (batch,), "
            "differentiable in both",
            fix="such as: return (student - teacher).square().mean(1)",
        )

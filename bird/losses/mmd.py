"""Maximum mean discrepancy between the teacher's features of a class and the student's of each group of it
(Jung et al. 2021, "Fair feature distillation for visual recognition")."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_mmd"]

SMALLEST = 1e-12  # of a squared distance: below lies only rounding


def class_mmd(
    student: Float[Tensor, "*models batch dim"],
    teacher: Float[Tensor, "*models batch dim"],
    labels: Int[Tensor, "*models batch"],
    protected: Int[Tensor, "*models batch"],
    classes: int,
    groups: int,
) -> Float[Tensor, "*models"]:
    """Sum over classes c and groups g of MMD^2(T_c, S_cg), each in [0, 2] (the biased estimator, as in the authors' code).

    T_c are the teacher's features of class c, all groups; S_cg the student's of class c and group g; `protected` holds
    the group of each sample. The kernel is exp(-d^2 / (2 s^2)) with s^2 the mean squared distance between teacher and
    student over the whole batch, taken as a constant. Cells absent from the batch contribute 0.
    A gradient reaches `teacher` if it asks for one (a gate may have made it); detach what is fixed.
    """
    of_class = _shares(labels, classes, student.dtype)
    of_cell = _shares(labels * groups + protected, classes * groups, student.dtype)
    class_of_cell = of_class.repeat_interleave(groups, -2)
    of_teacher, of_student = gram(teacher), gram(student)
    across = _squared_distances(of_teacher, teacher @ student.mT, of_student)
    width = 2 * across.detach().mean((-2, -1), keepdim=True)
    among_teachers = _squared_distances(of_teacher, of_teacher, of_teacher)
    among_students = _squared_distances(of_student, of_student, of_student)
    teachers = _mean(class_of_cell, torch.exp(-among_teachers / width), class_of_cell)
    students = _mean(of_cell, torch.exp(-among_students / width), of_cell)
    between = _mean(class_of_cell, torch.exp(-across / width), of_cell)
    present = of_cell.sum(-1) > 0
    return torch.where(present, teachers + students - 2 * between, 0.0).sum(-1)


def _shares(kind: Tensor, kinds: int, dtype: torch.dtype) -> Float[Tensor, "*models kinds batch"]:
    """Weights that average over the samples of each kind: 1 / count at its samples; all 0 for an absent one."""
    member = F.one_hot(kind, kinds).mT.to(dtype)
    return member / member.sum(-1, keepdim=True).clamp(min=1)


def _mean(
    rows: Float[Tensor, "*models kinds one"],
    kernel: Float[Tensor, "*models one two"],
    columns: Float[Tensor, "*models kinds two"],
) -> Float[Tensor, "*models kinds"]:
    return ((rows @ kernel) * columns).sum(-1)


def _squared_distances(
    one: Float[Tensor, "*models rows rows"],
    between: Float[Tensor, "*models rows columns"],
    two: Float[Tensor, "*models columns columns"],
) -> Float[Tensor, "*models rows columns"]:
    """|x_i|^2 + |y_j|^2 - 2 <x_i, y_j>, all three read off the inner products x x^T, x y^T, y y^T: no further pass over
    the features."""
    squares = one.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) + two.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return (squares - 2 * between).clamp(min=SMALLEST)


def gram(features: Float[Tensor, "*models rows dim"]) -> Float[Tensor, "*models rows rows"]:
    """x x^T."""
    products: Tensor = _Gram.apply(features)
    return products


@final
class _Gram(torch.autograd.Function):
    """`gram`, whose gradient is one product, (g + g^T) x. Autograd makes two of it: g x and g^T x."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        products: Tensor = features @ features.mT
        ctx.save_for_backward(features.to(products.dtype))  # under autocast the products are in bfloat16
        return products

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (g,), (features,) = gradients, ctx.saved_tensors
        gradient: Tensor = (g + g.mT) @ features
        return gradient

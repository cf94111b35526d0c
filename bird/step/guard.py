"""A check that Jv is right, for students that nobody here has seen.

For any u the tangent and the gradient of one student must agree:

    < u, Jv > = < J^T u, v >

With u = dL_in/dh a step has both sides already: J^T u is the gradient of the look-ahead, and the left side is what the
feedback differentiates by phi. So a check is two sums (a stack needs the gradient of a look-ahead besides). What fails it:
an operator whose tangent is missing or wrong, and a student that has no answer of its own. The first check also asks the
student for its answer again: random numbers that are not torch's, and state that is not in a buffer, give another one.

Rounding parts the two sides, too. If each product u_i Jv_i were wrong by its own size, with a sign by chance, the sides
would be apart by about the root of the sum of their squares, and that is the unit here. docs/decisions/0011 tells how far
correct and wrong students were apart.

Over ranks (bird.step.ranks) u and Jv are of each rank's own rows, J^T u and v of all: the left side and the unit are summed
over the ranks, so that all of them decide alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bird.errors import StudentError
from bird.step.passes import WAYS, Output, Parameters, repeat
from bird.step.ranks import ALONE, Ranks
from bird.step.tangents import Tape

__all__ = ["Guard", "refuse_wrapped"]

ROW = 8
HALF = {torch.bfloat16, torch.float16}
WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}


@final
class Sides(NamedTuple):
    """What the two sides are made of, but for Jv: u, J^T u and v; and how many dimensions of models lead."""

    u: Sequence[Tensor]
    gradient: Parameters
    v: Parameters
    models: int
    ranks: Ranks = ALONE


@final
class Guard:
    """Finds a way to Jv that is right for one student, and checks now and then that it still is.

    Of `every` so many meta steps the first eight are checked (0: none). Each decides by itself, or, where the student
    computes too coarsely for that (bfloat16, TF32) or has a way of its own (a stack), the eight together.
    """

    def __init__(self, every: int = 1000) -> None:
        self.every, self.steps, self.way = every, 0, 0
        self.first = False
        """whether this meta step is the first of the eight: the student is asked for its answer again"""
        self.squares: list[Tensor] = []
        self.reasons: list[str] = []
        self.apart: float | None = None
        """how far apart the sides were when last something was decided, in the unit above"""

    def due(self) -> bool:
        """Whether this meta step is checked; to be asked once a step."""
        self.steps += 1
        self.first = self.every > 0 and (self.steps - 1) % self.every == 0
        return self.every > 0 and (self.steps - 1) % self.every < ROW

    def tangent(
        self,
        student: nn.Module,
        v: Parameters,
        inputs: Tensor,
        output: Output,
        tape: Tape,
        sides: Sides | None,
    ) -> Output:
        """Jv, along v, of `output`, which is `student(inputs)`; with `sides` it is checked. Where a way does not go or is
        wrong, the next is taken, from then on, which is said once. Raises StudentError if none is left. Ranks decide
        together where there are `sides`; between two checks one may go on alone, since every way is exact."""
        ranks = ALONE if sides is None else sides.ranks
        if sides is not None and self.first:
            refuse_unrepeatable(student, inputs, output, tape, ranks)
        while True:
            way, jv, reason = WAYS[self.way], None, "it failed on another rank"
            try:
                jv = way(student, v, inputs, tape)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
            failed = ranks.any(jv is None, inputs)
            if jv is not None and not failed:
                if sides is None or self.agrees(sides, jv, tape):
                    return jv
                refuse_unrepeatable(student, inputs, output, tape, ranks)
                reason = "it disagrees with the student's gradient"
            self.reasons.append(f"{way.__name__.replace('_', ' ')}: {reason}")
            self._go_on(student)

    def agrees(self, sides: Sides, jv: Output, tape: Tape) -> bool:
        """Whether < u, Jv > = < J^T u, v >, as far as is known."""
        tolerance, count = tolerance_of(tape.dtypes, jv[0].device)
        apart = distance_apart(sides, jv)
        if apart is None:  # a step without feedback says nothing: the next one is asked
            self.steps -= 1
            return True
        self.squares.append(apart.square())
        if len(self.squares) < count:
            return True
        self.apart = torch.stack(self.squares).mean(0).sqrt().max().item()
        self.squares.clear()
        return self.apart <= tolerance

    def require(self, student: nn.Module, sides: Sides, jv: Output, tape: Tape) -> None:
        """Raise StudentError if the Jv that a student gave itself is wrong. The eight checks decide together, by the one in
        the middle: such a student has made its own way to theta', and where rounding puts a ReLU on the other side of its
        corner, one step is off (3e-3 was seen in float32). What is wrong is off in most."""
        apart = distance_apart(sides, jv)
        if apart is None:  # as in `agrees`
            self.steps -= 1
            return
        self.squares.append(apart.square())
        if len(self.squares) < ROW:
            return
        self.apart = torch.stack(self.squares).median(0).values.sqrt().max().item()
        self.squares.clear()
        if self.apart > tolerance_of(tape.dtypes, jv[0].device)[0]:
            raise StudentError(
                where=name_of(student),
                found="a `sensitivity` that disagrees with its gradient",
                wanted="the derivative of its answer along dL_o/dtheta'",
                fix="mend its `sensitivity`, or take it away: the usual way is exact",
            )

    def _go_on(self, student: nn.Module) -> None:
        """To the next way."""
        self.squares.clear()
        if self.way + 1 == len(WAYS):
            raise StudentError(
                where=name_of(student),
                found="no exact derivative along a direction (" + "; ".join(self.reasons) + ")",
                wanted="one, for the gate's feedback",
                fix="replace what is named, or give it a forward rule (torch.autograd.Function.jvp); where it is rounding "
                "alone, BirdStep(check=0) goes on; or train without a meta batch",
            )
        self.way += 1
        warnings.warn(
            f"{name_of(student)}: the gate's feedback is taken by double backward from now on, which is exact, and slower "
            f"({self.reasons[-1]})",
            stacklevel=2,
        )


def distance_apart(sides: Sides, jv: Output) -> Tensor | None:
    """How far < u, Jv > and < J^T u, v > are apart, in the unit above, one value a model; None if all of it is 0 or the
    gradient is no number."""
    products = [u * t for u, t in zip(sides.u, jv, strict=True)]
    left = sum(_total(each, sides.models) for each in products)
    squares = sum(_total(each.square(), sides.models) for each in products)
    left, squares = sides.ranks.sum([left, squares])
    unit = squares.sqrt()
    right = sum(_total(gradient * sides.v[name], sides.models) for name, gradient in sides.gradient.items())
    gap = (left - right).abs()
    known = right.isfinite() & ~((gap == 0) & (unit == 0))
    if not known.any():
        return None
    return torch.where(known, (gap / unit).nan_to_num(nan=torch.inf, posinf=torch.inf), 0.0)


def _total(values: Tensor, models: int) -> Any:
    """The sum a model, in double precision."""
    return values.reshape(*values.shape[:models], -1).sum(-1, dtype=torch.float64)


def tolerance_of(dtypes: set[torch.dtype], device: torch.device) -> tuple[float, int]:
    """How far apart the sides may be where such types are computed with, and how many steps decide."""
    if dtypes & HALF or torch.get_float32_matmul_precision() != "highest":
        return 0.5, ROW
    if torch.float32 in dtypes:
        return (0.1, ROW) if device.type == "cuda" else (1e-3, 1)  # TF32 is usual there
    return 1e-5, 1


def repeated_within(dtypes: set[torch.dtype], device: torch.device) -> float:
    """How much of an answer's length the same answer may be away, a second time."""
    if dtypes & HALF:
        return 0.05
    if torch.float32 in dtypes:
        return 1e-2 if device.type == "cuda" or torch.get_float32_matmul_precision() != "highest" else 1e-4
    return 1e-8


def refuse_unrepeatable(student: nn.Module, inputs: Tensor, output: Output, tape: Tape, ranks: Ranks = ALONE) -> None:
    """Raise StudentError if the student's answer on the same inputs, with the same weights, buffers and random numbers of
    torch, is another one on any rank: so Jv cannot be taken at the place of the forward pass."""
    again, bound = repeat(student, inputs, tape), repeated_within(tape.dtypes, inputs.device)
    pairs = [(one, two.detach()) for one, two in zip(again, output, strict=True)]
    another = any(bool((one - two).norm() > bound * two.norm()) for one, two in pairs)  # NaN is not its business
    if not ranks.any(another, inputs):
        return
    raise StudentError(
        where=name_of(student),
        found="another answer on the same inputs, weights, buffers and random numbers of torch",
        wanted="the same one, since the feedback sees the student a second time",
        fix="draw with torch instead of random or numpy, keep state in buffers, and let compiled code draw as eager code "
        "does (torch._inductor.config.fallback_random); or train without a meta batch",
    )


def refuse_wrapped(student: nn.Module) -> None:
    """Raise StudentError for a student that is spread over processes or devices: each would learn a gate of its own."""
    types = {type(module) for module in student.modules()} | {type(value) for value in student.parameters()}
    kinds = {kind.__name__ for each in types for kind in each.__mro__}
    if found := sorted(kinds & (WRAPPERS | {"DTensor"})):
        raise StudentError(
            where=name_of(student),
            found=found[0],
            wanted="a student in one process, on one device",
            fix="pass the module inside it, and say how ranks sum up: BirdStep(..., reduce=...), as the page Scaling "
            "shows; or use torchrun with `bird distill`",
        )


def name_of(student: nn.Module) -> str:
    """How messages call it: by the class that somebody wrote."""
    for wrapped in ("student", "_orig_mod"):  # of ours; of torch.compile
        student = getattr(student, wrapped, student)
    return type(student).__name__

"""Check what the user claims about a teacher against what the teacher does. An option that it cannot honour is refused,
not ignored."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird.errors import BirdError, UsageError
from bird.teachers.layers import FeatureKind

__all__ = ["PixelScale", "kind_of", "names_class_scores", "require_kind", "require_side", "require_takers"]

CLASS_SCORES = {"logit", "logits", "score", "scores", "prob", "probs", "probability", "probabilities", "softmax"}
CLASS_SCORES |= {"classes", "classifier", "classification", "prediction", "predictions", "preds"}
UNIT = 1e-3  # of a length, or of a sum, that is 1
Refuse = Callable[[str, str, str], BirdError]


@final
@dataclasses.dataclass(frozen=True)
class PixelScale:
    """What a network takes of 8-bit pixels: x / 255 stretched to low ... high, less `mean`, by `std`; the last two are in
    units of the stretched values, a channel each.

    Raises UsageError for values that belong to another range (a mean of 0.485 goes with 0 ... 1, one of 123.7 with
    0 ... 255).
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        span = self.high - self.low
        bounds = f"{self.low:g} to {self.high:g}"
        if not span > 0:
            raise _wrong("--range", f"{self.low:g},{self.high:g}", "LOW,HIGH with LOW below HIGH", "write it so")
        plain = (0.0, 0.0, 0.0)
        small = self.high > 2 and max(self.mean) <= 1
        if self.mean != plain and (small or not all(self.low <= value <= self.high for value in self.mean)):
            raise _wrong(
                "--mean", _text(self.mean), f"a mean in units of {bounds}", "give all in the same units, or --range"
            )
        if self.std != (1.0, 1.0, 1.0) and not all(0.01 * span <= value <= span for value in self.std):
            raise _wrong(
                "--std", _text(self.std), f"deviations in units of {bounds}", "give all in the same units, or --range"
            )

    def of_unit(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation that do the same to pixels in 0 ... 1 (`bird.teachers.base.View`)."""
        span = self.high - self.low
        return tuple((value - self.low) / span for value in self.mean), tuple(value / span for value in self.std)

    def canonical(self) -> dict[str, Any]:
        """As JSON values, as given; the usual range is left out."""
        given: dict[str, Any] = {"mean": [*map(float, self.mean)], "std": [*map(float, self.std)]}
        return given if (self.low, self.high) == (0.0, 1.0) else {**given, "range": [float(self.low), float(self.high)]}

    def __str__(self) -> str:
        said = f"RGB in [{self.low:g}, {self.high:g}]"
        if self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0):
            said += f" less mean {_text(self.mean)}, by std {_text(self.std)}"
        return said


def require_takers(teacher: str, asked: Mapping[str, object], takes: Collection[str]) -> None:
    """Raise UsageError for the first option of `asked` (None: not asked) that a teacher of this kind has no use for."""
    for name, value in asked.items():
        if value is None or name in takes:
            continue
        heeded = ", ".join(_flag(option) for option in sorted(takes))
        raise _wrong(
            f"{_flag(name)} with --teacher {teacher}",
            repr(value) if isinstance(value, int | float | str) else str(value),
            f"an option that this teacher heeds: {heeded or 'it has none'}",
            "leave it out",
        )


def require_side(teacher: str, sides: tuple[int, int], asked: int | None) -> None:
    """Raise UsageError where a loaded teacher's view (height, width) is not the square that was asked for (None: none)."""
    if asked is not None and sides != (asked, asked):
        raise _wrong(
            f"--image-size with --teacher {teacher}",
            str(asked),
            f"nothing else than {sides[0]} x {sides[1]}: the model fixes the size of its images",
            "leave it out",
        )


def require_kind(teacher: str, kind: FeatureKind, asked: FeatureKind | None) -> None:
    """Raise UsageError where a loaded teacher's vectors are of another kind than was asked for (None: any)."""
    if asked is not None and asked != kind:
        raise _wrong(
            f"--kind with --teacher {teacher}",
            asked,
            f"{kind}: that is what its vectors are",
            "leave it out; what else a teacher has is named by --layers",
        )


def names_class_scores(name: str) -> bool:
    """Whether an output of this name holds a number for each class, as logits do."""
    words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    return bool(words & CLASS_SCORES)


def kind_of(
    vectors: NDArray[np.float32], claimed: FeatureKind | None, usual: FeatureKind, refuse: Refuse
) -> FeatureKind:
    """The kind of the vectors (n, d): the claimed kind if the vectors do not contradict it, else `usual` (and
    projection_l2 where all have length 1). `refuse` makes the error from what was found, what was wanted and the remedy.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit = bool(np.allclose(lengths, 1.0, atol=UNIT))
    if vectors.shape[1] > 1 and (vectors >= 0).all() and np.allclose(vectors.sum(1, dtype=np.float64), 1.0, atol=UNIT):
        found = "probabilities: none is below 0, and those of an image add up to 1"
        raise refuse(found, "features, or logits", "take them from before the last softmax")
    if unit and claimed in ("penultimate", "projection"):
        raise refuse("vectors that all have length 1", f"raw {claimed} vectors", "say --kind projection_l2")
    if claimed == "projection_l2" and not unit:
        found = f"vectors of length {lengths.min():.4g} to {lengths.max():.4g}"
        raise refuse(found, "vectors of length 1", "say --kind projection, or leave it out")
    return claimed or ("projection_l2" if unit else usual)


def _wrong(where: str, found: str, wanted: str, fix: str) -> UsageError:
    return UsageError(where=where, found=found, wanted=wanted, fix=fix)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)

"""What can go wrong in the science, as one tree. `exit_code` is what a command line returns for it.

    BirdError                     1   anything of ours
    ├── UsageError                2   an unknown name or an impossible setting
    │   └── StudentError          2   a student that BIRD's step cannot handle
    ├── DataError                 2   a data set that is missing, malformed or too damaged
    │   ├── ImageError            2   one image that cannot be decoded (recorded and counted, rarely fatal)
    │   └── EmptyCellError        2   a (class, group) cell without samples where a metric needs one
    ├── TeacherError              4   a teacher that cannot be loaded or answers with nonsense
    │   └── MissingWeightsError   4   weights that are not on this machine and cannot be downloaded
    ├── RunError                  1   a run that is damaged or failed
    │   └── WrongRunError         2   a folder that is no run, or not the one that is asked for
    ├── DivergedError             1   a student that training made answer with NaN or infinite numbers
    ├── HubError                  1   a hub of models that does not answer, or that refuses what was sent
    ├── LostRankError             1   another process of the same training run that ended or does not answer
    └── OutOfMemoryError          1   the work does not fit into the memory of the device

The cache has a tree of its own (`bird_cache.errors`): the two packages do not import each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any, final

__all__ = [
    "BirdError",
    "DataError",
    "DivergedError",
    "EmptyCellError",
    "HubError",
    "ImageError",
    "LostRankError",
    "MissingWeightsError",
    "OutOfMemoryError",
    "RunError",
    "StudentError",
    "TeacherError",
    "UsageError",
    "WrongRunError",
    "nearest",
    "unknown_name",
]


class BirdError(Exception):
    """An error that says where it happened, what was found, what was wanted, and what to do about it."""

    exit_code = 1

    def __init__(self, *, where: str, found: str, wanted: str, fix: str) -> None:
        super().__init__(f"{where}: found {found}; wanted {wanted}; {fix}")
        self.where, self.found, self.wanted, self.fix = where, found, wanted, fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a call with keywords: Exception by itself would pass the message alone, which cannot be loaded."""
        fields = {"where": self.where, "found": self.found, "wanted": self.wanted, "fix": self.fix}
        return partial(type(self), **fields), (), self.__dict__


class UsageError(BirdError):
    """An unknown name or an impossible setting."""

    exit_code = 2


@final
class StudentError(UsageError):
    """A student that BIRD's step cannot be put around: its answer, its derivatives or its wrapping."""


class DataError(BirdError):
    """A data set that is missing, malformed or too damaged."""

    exit_code = 2


@final
class ImageError(DataError):
    """One image that cannot be decoded."""


@final
class EmptyCellError(DataError):
    """A (class, group) cell without samples where a metric needs at least one."""


class TeacherError(BirdError):
    """A teacher that cannot be loaded, or whose answers are unusable."""

    exit_code = 4


@final
class MissingWeightsError(TeacherError):
    """Weights that are neither on this machine nor to be had from where they are published."""


class RunError(BirdError):
    """A run that is damaged, or that failed."""


@final
class WrongRunError(RunError):
    """A folder that is no run, or not the run that is asked for: unfinished, of another configuration or kind."""

    exit_code = 2


@final
class DivergedError(BirdError):
    """A student that training made answer with NaN or infinite numbers."""


@final
class HubError(BirdError):
    """A hub of models that does not answer, or that refuses what was sent."""


@final
class LostRankError(BirdError):
    """Another process of the same training run that ended, or does not answer. Its own error says why."""


@final
class OutOfMemoryError(BirdError):
    """A device, or the machine itself, whose memory does not hold the work."""


def unknown_name(
    where: str, found: object, known: Iterable[str], fix: str = "choose one of these", *, wanted: str | None = None
) -> UsageError:
    """The error for a name that is none of `known`: `wanted` (by default all of them), and what was probably meant."""
    names = list(known)
    close = nearest(str(found), names)
    return UsageError(
        where=where,
        found=repr(found),
        wanted=wanted or f"one of {', '.join(names)}",
        fix=f"did you mean {' or '.join(close)}?" if close else fix,
    )


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The names in `known` that `name` is probably a slip for, the nearest first, at most `most`: same letters but for the
    case, few letters apart, or a name that it begins."""
    plain = {each.casefold(): each for each in known}
    typed = name.casefold()
    close = difflib.get_close_matches(typed, plain, n=most + 2)
    close.sort(key=lambda each: sorted(each) != sorted(typed))  # two letters in the wrong order come first
    close = close or sorted(each for each in plain if len(typed) >= 3 and each.startswith(typed))
    return [plain[each] for each in close[:most]]

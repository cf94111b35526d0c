"""What can go wrong in the science, as one tree. `exit_code` is what a command line returns for it.

    BirdError                     1   anything of ours
    ├── UsageError                2   an unknown name or an impossible setting
    ├── DataError                 2   a data set that is missing, malformed or too damaged
    │   ├── ImageError            2   one image that cannot be decoded (recorded and counted, rarely fatal)
    │   └── EmptyCellError        2   a (class, group) cell without samples where a metric needs one
    ├── TeacherError              4   a teacher that cannot be loaded or answers with nonsense
    │   └── MissingWeightsError   4   weights that are neither here nor to be had
    └── RunError                  1   a run folder that is damaged, unfinished or belongs to another configuration

The cache has a tree of its own (`bird_cache.errors`): the two packages do not import each other.
"""

__all__ = [
    "BirdError",
    "DataError",
    "EmptyCellError",
    "ImageError",
    "MissingWeightsError",
    "RunError",
    "TeacherError",
    "UsageError",
]


class BirdError(Exception):
    """An error that says where it happened, what was found, what was wanted, and what to do about it."""

    exit_code = 1

    def __init__(self, *, where: str, found: str, wanted: str, fix: str) -> None:
        super().__init__(f"{where}: found {found}; wanted {wanted}; {fix}")
        self.where, self.found, self.wanted, self.fix = where, found, wanted, fix


class UsageError(BirdError):
    """An unknown name or an impossible setting."""

    exit_code = 2


class DataError(BirdError):
    """A data set that is missing, malformed or too damaged."""

    exit_code = 2


class ImageError(DataError):
    """One image that cannot be decoded."""


class EmptyCellError(DataError):
    """A (class, group) cell without samples where a metric needs at least one."""


class TeacherError(BirdError):
    """A teacher that cannot be loaded, or whose answers are unusable."""

    exit_code = 4


class MissingWeightsError(TeacherError):
    """Weights that are neither on this machine nor to be had from where they are published."""


class RunError(BirdError):
    """A run folder that is damaged, unfinished or belongs to another configuration."""

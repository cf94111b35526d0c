"""`bird list`: what there is to choose from, in one line each."""

from __future__ import annotations

from bird.errors import unknown_name

__all__ = ["catalogue"]


def catalogue(what: str) -> dict[str, str]:
    """Name -> description of the teachers, students, methods or datasets. Raises UsageError for anything else."""
    lists = {"teachers": _teachers, "students": _students, "methods": _methods, "datasets": _datasets}
    if what not in lists:
        raise unknown_name("bird list", what, lists)
    return lists[what]()


def _teachers() -> dict[str, str]:
    from bird.teachers import TEACHERS

    return {name: f"{kind.description}; weights: {kind.weights}" for name, kind in TEACHERS.items()}


def _students() -> dict[str, str]:
    from bird.students import STUDENTS

    return {name: kind.description for name, kind in STUDENTS.items()}


def _methods() -> dict[str, str]:
    from bird.methods import DESCRIPTIONS

    return dict(DESCRIPTIONS)


def _datasets() -> dict[str, str]:
    from bird.datasets import DATASETS

    return {
        name: f"{kind.description}. --data-root: {kind.layout}. settings: "
        + ", ".join(f"{setting}={default!r}" for setting, default in kind.defaults.items())
        for name, kind in DATASETS.items()
    }

"""`bird list`: what there is to choose from, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bird.errors import unknown_name

if TYPE_CHECKING:
    from bird.teachers import Teacher

__all__ = ["catalogue", "describe_teacher", "one_teacher"]


def catalogue(what: str, name: str | None = None) -> dict[str, str]:
    """Name -> description of the teachers, students, methods or datasets, or of one of them. Raises UsageError for anything
    else."""
    lists = {"teachers": _teachers, "students": _students, "methods": _methods, "datasets": _datasets}
    if what not in lists:
        raise unknown_name("bird list", what, lists)
    found = lists[what]()
    if name is None:
        return found
    if name not in found:
        raise unknown_name(f"bird list {what}", name, found)
    return {name: found[name]}


def one_teacher(name: str, weights: Path | None, image_size: int | None, device: str) -> dict[str, Any]:
    """`bird list teachers NAME`: the teacher is loaded, and compared with its own library."""
    from bird.teachers import load_teacher

    return describe_teacher(load_teacher(name, weights=weights, image_size=image_size, device=device))


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Which vector a teacher gives: its reading and layers, how it sees, what was compared with its own library."""
    layers = ", ".join(
        f"{name} {'x'.join(map(str, spec.shape))} ({spec.kind})" for name, spec in teacher.layers.items()
    )
    return {
        "teacher": teacher.name,
        "dim": teacher.dim,
        "kind": teacher.feature_kind,
        "reading": teacher.preprocessing.get("reading", ""),
        "layers": layers,
        **teacher.notes,
        "weights": teacher.weights_digest,
    }


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

"""`bird list`: what there is to choose from, in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bird.errors import unknown_name
from bird.own import Kind, registered

KINDS: Mapping[str, Kind] = {
    "teachers": "teacher",
    "students": "student",
    "methods": "method",
    "datasets": "dataset",
}

__all__ = ["catalogue", "one_teacher"]


def catalogue(what: str, name: str | None = None) -> dict[str, str]:
    """Name -> description of the teachers, students, methods or datasets, or of one of them, with what installed packages
    have registered. Raises UsageError for anything else."""
    lists = {"teachers": _teachers, "students": _students, "methods": _methods, "datasets": _datasets}
    if what not in lists:
        raise unknown_name("bird list", what, lists)
    found = {**lists[what](), **registered(KINDS[what])}
    if name is None:
        return found
    if name not in found:
        raise unknown_name(f"bird list {what}", name, found)
    return {name: found[name]}


def one_teacher(name: str, weights: Path | None, image_size: int | None, device: str) -> dict[str, Any]:
    """`bird list teachers NAME`: the teacher is loaded, and compared with its own library."""
    from bird.teachers import load_teacher, own_part
    from bird_pipelines.precomputing.teacher import describe_teacher

    part = own_part(name)
    given: dict[str, Any] = {"weights": weights, "image_size": image_size, "device": device, "part": part}
    return describe_teacher(load_teacher(name if part is None else part.label, **given))


def _teachers() -> dict[str, str]:
    from bird.teachers import TEACHERS

    return {name: f"{kind.description}; weights: {kind.weights}" for name, kind in TEACHERS.items()}


def _students() -> dict[str, str]:
    from bird.students import STUDENTS

    described = {name: kind.description for name, kind in STUDENTS.items()}
    return {**described, "timm:": "a network of timm, timm:NAME, with a fresh last layer"}


def _methods() -> dict[str, str]:
    from bird.methods import DESCRIPTIONS

    return dict(DESCRIPTIONS)


def _datasets() -> dict[str, str]:
    from bird.datasets import DATASETS

    built_in = {
        name: f"{kind.description}. --data-root: {kind.layout}. settings: "
        + ", ".join(f"{setting}={default!r}" for setting, default in kind.defaults.items())
        for name, kind in DATASETS.items()
    }
    own = {
        "file.py:NAME, package.module:NAME": "a data set of your own, in code; settings: those that it takes by name"
    }
    return built_in | own

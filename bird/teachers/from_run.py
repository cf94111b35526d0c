"""A student of ours as a teacher: `run:DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bird.errors import TeacherError
from bird.student_views import center_view
from bird.students import Student, load_student
from bird.teachers.base import PENULTIMATE, Options, Teacher
from bird.teachers.layers import Tap, stage_taps
from bird.teachers.proof import Reference, prove
from bird.teachers.views import View

__all__ = ["own_run"]


def own_run(name: str, spec: str, options: Options) -> Teacher:
    """`DIR` of `bird train`: that student's penultimate features. Raises TeacherError for a student of the user's
    own, for an unfinished run, and for a student that reads no images."""
    about = _described(Path(spec))
    if about.get("own"):
        raise TeacherError(
            where=f"--teacher run:{spec}",
            found=f"a student of the user's own, {about.get('architecture')}",
            wanted="a student of this project or of timm: no code is imported because a run names it",
            fix="export it (`bird export RUN OUT --student FILE.py:NAME`), and take onnx:OUT/student.onnx",
        )
    try:
        student: Student = load_student(Path(spec))
    except Exception as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(
            where=f"--teacher run:{spec}",
            found=str(getattr(error, "found", error)),
            wanted="a finished run of `bird train`",
            fix="run `bird train --out` to its end first",
        ) from error
    if student.input != "image":
        raise TeacherError(
            where=f"--teacher run:{spec}",
            found=f"a student that reads {student.input}",
            wanted="a student that reads images",
            fix="train one with `bird train`",
        )
    size = student.image_size
    reference = Reference(
        processor="the view that students are evaluated on",
        see=lambda photo: center_view(np.array(photo), size).float() / 255.0,
        say=lambda pixels: {PENULTIMATE: student(pixels).features, "logits": student(pixels).logits},
        rules={},
        libraries=("torch", "torchvision"),
    )
    return prove(
        f"run:{student.architecture}",
        student,
        View(size, size),
        reference,
        taps={
            PENULTIMATE: Tap("penultimate", read=_features),
            "logits": Tap("logits", read=_logits),
            **stage_taps(student.backbone, "backbone."),
        },
        options=options,
        reading="features",
        config={"architecture": student.architecture},
    )


def _described(folder: Path) -> dict[str, Any]:
    """student.json, or nothing: what is wrong with the folder is said where it is loaded."""
    try:
        found = json.loads((folder / "student.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _features(output: Any) -> Tensor:
    return output.features  # type: ignore[no-any-return]  # a module's answer is Any


def _logits(output: Any) -> Tensor:
    return output.logits  # type: ignore[no-any-return]  # a module's answer is Any

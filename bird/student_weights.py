"""Weights that a student starts from: a file, or those that its library publishes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bird.errors import MissingWeightsError, UsageError
from bird.student_bodies import TIMM, timm_body
from bird.students import TORCHVISION, Student
from bird.weights import digest_of_state, first_line, offline_if_unreachable, read_tensors

__all__ = ["PRETRAINED", "file_digest", "start"]

PRETRAINED = "pretrained"
COUNTERS = "num_batches_tracked"  # which files of older versions lack
STEM = "conv1.weight"  # of our ResNets, which is another one for small images
SHOWN = 3


def file_digest(init: str) -> str:
    """What identifies the weights that `--init` names: "pretrained", or the sha256 of the file. Raises UsageError."""
    if init == PRETRAINED:
        return PRETRAINED
    try:
        return hashlib.sha256(Path(init).read_bytes()).hexdigest()
    except OSError as error:
        raise _refuse(init, error.strerror or str(error)) from None


def start(student: Student, init: str) -> dict[str, Any]:
    """Put the weights of `init` into a fresh student: "pretrained", or a file of tensors (safetensors, or .pth without a
    pickle), under the network's own names or those of a run's student.safetensors. A last layer of another shape is left
    as drawn. Returns what run.json says: where the weights are from, their digest, and what was left as drawn.

    Raises UsageError for a student that takes none and for weights that do not fit, MissingWeightsError where they cannot be
    had.
    """
    where = f"--student {student.architecture} --init {init}"
    if student.input == "features":
        raise _refuse_student(where, "an adapter, which starts from the identity")
    if init == PRETRAINED:
        state, source = _published(student, where)
    else:
        state, source = read_tensors(Path(init), lambda found: _refuse(init, found)), Path(init).name
    left = _fill(student, state, where)
    return {"from": source, "weights": digest_of_state(state), "left_as_drawn": left}


def _published(student: Student, where: str) -> tuple[dict[str, Tensor], str]:
    """The weights that the student's library publishes, and what it calls them."""
    name = student.architecture
    if name.startswith(TIMM):
        offline_if_unreachable()
        try:
            module = timm_body(name, student.classes, student.image_size, pretrained=True).module
        except UsageError:
            raise
        except Exception as error:  # the hub's client has many ways to fail
            raise _missing(where, f"timm's weights of {name.removeprefix(TIMM)}", error) from error
        tag: Any = getattr(module, "pretrained_cfg", {})
        return dict(module.state_dict()), f"timm {tag.get('architecture')}.{tag.get('tag')}".rstrip(".")
    if name not in TORCHVISION:
        raise _refuse_student(where, "a student that no library publishes weights of")
    from torchvision import models

    weights: Any = models.get_model_weights(TORCHVISION[name]).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True), f"torchvision {weights}"
    except Exception as error:  # urllib's, or a damaged download
        raise _missing(where, f"torchvision's {weights}: {weights.url}", error) from error


def _fill(student: Student, state: Mapping[str, Tensor], where: str) -> list[str]:
    """Load a state dict; returns the names, in it, of what has another shape and may. Raises UsageError."""
    own = {name: value for name, value in student.state_dict().items() if name not in ("mean", "std")}
    head = f"{student.head_name}." if student.head_name else "head."
    plain = {name: f"{head}{name[5:]}" if name.startswith("head.") else name.removeprefix("backbone.") for name in own}
    both = ({name: name for name in own}, plain)
    names = max(both, key=lambda each: len({*each.values()} & {*state}))  # ours, or the network's
    theirs = {name: state[told] for name, told in names.items() if told in state}
    other = [name for name, value in theirs.items() if value.shape != own[name].shape]
    lasts = {name for name in other if name.startswith("head.") or own[name].shape[:1] == (student.classes,)}
    small = {name for name in other if name == f"backbone.{STEM}" and student.architecture in TORCHVISION}
    absent = [names[name] for name in own if name not in theirs and not name.startswith("head.")]
    missing = [name for name in absent if not name.endswith(COUNTERS)]
    extra = [name for name in state if name not in names.values() and name not in ("mean", "std")]
    extra = [name for name in extra if not name.startswith((head, "head."))]
    wrong = [names[name] for name in other if name not in lasts | small]
    if missing or extra or wrong:
        parts = {"missing": missing, "unexpected": extra, "of another shape": wrong}
        raise UsageError(
            where=where,
            found="weights that do not fit: "
            + "; ".join(f"{len(keys)} {what} ({', '.join(keys[:SHOWN])})" for what, keys in parts.items() if keys),
            wanted="all weights of this network but for the last layer",
            fix="take the weights of the same architecture",
        )
    with torch.no_grad():
        student.load_state_dict({**student.state_dict(), **{n: v for n, v in theirs.items() if n not in other}})
    undrawn = [names[name] for name in own if name.startswith("head.") and name not in theirs]
    return sorted([*undrawn, *(names[name] for name in other)])


def _missing(where: str, wanted: str, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        where=where,
        found=f"no weights here, and none could be downloaded ({type(error).__name__}: {first_line(error)})",
        wanted=wanted,
        fix="fetch them on a machine with a network and give them with --init FILE",
    )


def _refuse(init: str, found: str) -> UsageError:
    fix = "load it where you trust it and save model.state_dict() with safetensors"
    if not Path(init).is_file():
        found, fix = "no such file", "check the path"
    return UsageError(
        where=f"--init {init}",
        found=found,
        wanted="pretrained, or a file of tensors: .safetensors, or a .pth state dict that holds nothing but tensors",
        fix=fix,
    )


def _refuse_student(where: str, found: str) -> UsageError:
    return UsageError(
        where=where,
        found=found,
        wanted="a file of its weights, or a student of torchvision or timm",
        fix="leave --init out, or give --init FILE",
    )

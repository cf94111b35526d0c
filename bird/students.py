"""Students: small networks that return their penultimate features together with the logits.

| name | input | penultimate | from |
|---|---|---|---|
| resnet18, resnet34 | pixels | 512 | He et al. 2016, from scratch |
| shufflenetv2 | pixels | 1024 | Ma et al. 2018, width 1.0, from scratch |
| tiny-vit, tiny-resnet, tiny-resnet-deep, tiny-convnet | pixels | 64 to 96 | `bird.tiny`: for demos and tests |
| timm:NAME | pixels | as timm says | a network of timm, with a fresh last layer (`bird.student_bodies`) |
| your own | pixels | as it answers | a module of your own (`bird.student_bodies`) |
| adapter | the teacher's features | the teacher's dimension | Linear(d, d) from the identity -> ReLU -> Linear(d, C) |

`adapter` is the student of the paper's Tables 1 and 4, where the student is the foundation model itself: the encoder is
frozen, only the layers after it are trained, and no image is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bird.errors import RunError, UsageError, WrongRunError, unknown_name
from bird.own import Part
from bird.student_bodies import IMAGENET_MEAN, IMAGENET_STD, TIMM, Body, own_body, own_student, timm_body
from bird.student_networks import (
    SMALL_IMAGE,
    STUDENTS,
    StagedOutput,
    Student,
    StudentKind,
    StudentOutput,
    input_of,
    last_stage,
    require_stages,
)

__all__ = [
    "STUDENTS",
    "StagedOutput",
    "Student",
    "StudentKind",
    "StudentOutput",
    "build_student",
    "input_of",
    "input_recipe",
    "last_stage",
    "load_student",
    "named_student",
    "plain_weights",
    "require_stages",
    "student_files",
    "torchvision_name",
]

STUDENT_FILES = ("student.safetensors", "student.json")
TORCHVISION = {"resnet18": "resnet18", "resnet34": "resnet34", "shufflenetv2": "shufflenet_v2_x1_0"}
OUR_NAMES = "bird.students: backbone.*, head.*, mean, std"


def build_student(
    architecture: str,
    *,
    classes: int,
    image_size: int = 0,
    feature_mean: Float[Tensor, dim] | None = None,
    feature_std: Float[Tensor, dim] | None = None,
    seed: int | None = None,
    heads: int = 1,
    part: Part | None = None,
) -> Student:
    """A fresh student. Image students need `image_size`; the adapter needs the train split's feature mean and standard
    deviation, both of shape (d,). `seed` fixes the initial weights without touching the global random state. `heads` > 1
    gives one head a group, whose logits are summed. With `part` the student is the user's own, and `architecture` its label.

    Raises UsageError for an unknown architecture, and for a part that is no student (`bird.student_bodies`); ValueError
    for an adapter without a mean and a standard deviation.
    """
    if architecture not in STUDENTS and part is None and not architecture.startswith(TIMM):
        raise unknown_name("--student", architecture, STUDENTS, "see `bird list students`")
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        if part is not None:
            return _of_body(architecture, own_body(part, classes, image_size), classes, image_size, heads, part)
        if architecture not in STUDENTS:
            return _of_body(architecture, timm_body(architecture, classes, image_size), classes, image_size, heads)
        kind = STUDENTS[architecture]
        if kind.input == "features":
            if feature_mean is None or feature_std is None:
                raise ValueError("an adapter needs feature_mean and feature_std")
            mean, std = feature_mean.float(), feature_std.float()
        else:
            mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        backbone, dim = kind.backbone(image_size, mean.shape[0])
        return Student(architecture, backbone, dim, classes, image_size, mean, std, heads)


def _of_body(
    architecture: str, body: Body, classes: int, image_size: int, heads: int, part: Part | None = None
) -> Student:
    """A student around a network that is not ours."""
    if heads > 1 and body.head is None:
        raise UsageError(
            where=f"--student {architecture}",
            found="a module that makes its logits by itself",
            wanted="one that ends in an nn.Linear, in whose place one head a group is put",
            fix="return logits alone, from a last nn.Linear; or use another method",
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (body.mean, body.std))
    head = None if heads > 1 else body.head or nn.Identity()
    student = Student(
        *(architecture, body.module, body.dim, classes, image_size, mean, std, heads),
        head=head,
        head_name=body.head_name,
        stages=body.stages,
    )
    student.own = None if part is None else {**part.record(), "called_with": body.called_with}
    return student


def torchvision_name(student: Student) -> str | None:
    """The function of torchvision.models that builds this very network (its `fc` is our head, and the normalisation of the
    pixels stands before it). None for a student that is none of torchvision's: another architecture, the stem for small
    images, several heads."""
    plain = student.image_size >= SMALL_IMAGE and student.heads == 1
    return TORCHVISION.get(student.architecture) if plain else None


def plain_weights(student: Student) -> dict[str, Tensor]:
    """The state dict of the network itself, in its own names: torchvision's (`torchvision_name`), timm's, or a module
    of the user's own. The normalisation is not in it."""
    state = student.state_dict()
    weights = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return weights | {f"{student.head_name}.{name}": value for name, value in student.head.state_dict().items()}


def _our_weights(plain: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a `Student` from `plain_weights` and what student.json says of its input."""
    state = {f"head.{name[3:]}" if name.startswith("fc.") else f"backbone.{name}": plain[name] for name in plain}
    return state | {name: torch.tensor(about["input"][name])[:, None, None] for name in ("mean", "std")}


def student_files(
    student: Student,
    cache_fingerprint: str | None = None,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    white_level: int | None = None,
) -> dict[str, bytes]:
    """A student as the two files that `load_student` reads: safetensors weights (under torchvision's names where
    `torchvision_name` knows the network), and JSON with their sha256, what it reads (`input_recipe`), the names of its
    classes in the order of its logits, the names of the groups it was judged by, and, where it was distilled from a cache,
    that cache's fingerprint."""
    name = torchvision_name(student)
    state = student.state_dict() if name is None else plain_weights(student)
    weights = save_tensors({name: value.detach().cpu().contiguous() for name, value in state.items()})
    about = {
        "format": "bird-student-2",
        **student.describe(),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "weights": OUR_NAMES if name is None else f"torchvision.models.{name}, which reads (pixels - mean) / std",
        "cache_fingerprint": cache_fingerprint,
        "class_names": None if class_names is None else [*class_names],
        "group_names": None if group_names is None else [*group_names],
        "input": input_recipe(student, white_level),
        "outputs": {"features": ["batch", student.dim], "logits": ["batch", student.classes]},
        **({} if student.own is None else {"own": dict(student.own)}),
    }
    return {"student.safetensors": weights, "student.json": json.dumps(about, indent=1).encode()}


def input_recipe(student: Student, white_level: int | None = None) -> dict[str, Any]:
    """The input of a student, for use outside this project: how pixels are made of a file (`bird.images.decode_image`,
    `bird.student_views.center_view`, `unit_range`), or that it reads features. `white_level` is the data set's, where it has
    one of its own: the value of a 16-bit gray pixel that becomes 255."""
    if student.input == "features":
        return {"kind": "features", "shape": ["batch", student.mean.shape[0]], "normalisation": "inside the student"}
    side = student.image_size
    return {
        "kind": "image",
        "shape": ["batch", 3, side, side],
        "decode": "RGB of 8 bits, turned as EXIF says, transparency over black",
        **({} if white_level is None else {"white_level": white_level}),
        "resize": f"short side to {side} pixels, bilinear with antialias (torchvision)",
        "crop": f"the {side} x {side} pixels in the centre",
        "range": "0 to 1: values of 0 to 255 divided by 255",
        "normalisation": "inside the student",
        "mean": student.mean.flatten().tolist(),
        "std": student.std.flatten().tolist(),
    }


def load_student(folder: Path, part: Part | None = None) -> Student:
    """The student of a run folder, in evaluation mode. Executes nothing that the folder names: safetensors and JSON only.
    `part` is the module of a student that was the user's own: it must be the same. Files that were written before weights
    had torchvision's names are read, too.

    Raises WrongRunError if a file is missing, RunError if one is damaged (sha256) or does not fit its description,
    UsageError for a student of the user's own without that part, or with another one.
    """

    def broken(found: str, kind: type[RunError] = RunError) -> RunError:
        return kind(
            where=f"run {folder}",
            found=found,
            wanted=f"a finished run with {' and '.join(STUDENT_FILES)}",
            fix="run the command that made it again: it resumes",
        )

    try:
        weights, about = ((folder / name).read_bytes() for name in STUDENT_FILES)
    except OSError as error:
        kind = WrongRunError if isinstance(error, FileNotFoundError) else RunError
        raise broken(f"{error.strerror}: {error.filename}", kind) from None
    try:
        described: dict[str, Any] = json.loads(about)
        if hashlib.sha256(weights).hexdigest() != described["sha256"]:
            raise broken("student.safetensors with another sha256 than student.json records")
    except (ValueError, KeyError, TypeError) as error:
        raise broken(f"files that do not fit together ({error})") from error
    own_part = _same_part(folder, described, part)
    try:
        state = load_tensors(weights)
        if "mean" not in state:
            state = _our_weights(state, described)
        student = build_student(
            described["architecture"],
            classes=described["classes"],
            image_size=described["image_size"],
            feature_mean=state["mean"],
            feature_std=state["std"],
            heads=described.get("heads", 1),
            part=own_part,
        )
        student.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError, UsageError) as error:
        raise broken(f"files that do not fit together ({error})") from error
    return student.eval().requires_grad_(False)


def named_student(folder: Path, given: object = None) -> Student:
    """The student of a run folder, where `given` is what --student says: nothing, the run's own built-in name, or a module
    of the user's own. Raises as `load_student` and `bird.own.find` do, and UsageError for another built-in name."""
    if not isinstance(given, str) or not (given in STUDENTS or given.startswith(TIMM)):
        return load_student(folder, None if given is None else own_student(given, [*STUDENTS, TIMM]))
    try:
        described = json.loads((folder / STUDENT_FILES[1]).read_bytes())
    except (OSError, ValueError):
        return load_student(folder)  # which says what is wrong with the file
    if described.get("architecture") == given:
        return load_student(folder)
    own = described.get("own")
    raise UsageError(
        where=f"--student, run {folder}",
        found=given,
        wanted=f"the run's student, which is {described.get('architecture')}",
        fix="leave it out" if own is None else f"give {own['file'] or 'FILE.py'}:{own['attribute']}",
    )


def _same_part(folder: Path, described: Mapping[str, Any], part: Part | None) -> Part | None:
    """The user's own module, if the student in `folder` is one. Raises UsageError where it is missing or another one."""
    own = described.get("own")
    if own is None:
        if part is None:
            return None
        found, wanted, fix = part.label, f"the run's student, which is {described['architecture']}", "leave it out"
        raise UsageError(where=f"--student, run {folder}", found=found, wanted=wanted, fix=fix)
    if part is not None and part.same(own):
        return part
    reference = f"{own['file'] or 'FILE.py'}:{own['attribute']}"
    if part is None:
        fix = f"give it as --student {reference}; no code is imported because a run names it"
    elif part.attribute != own["attribute"]:
        fix = f"give {reference}"
        fix += "" if part.sha256 == own["sha256"] else ", from the source file as it was when the run was trained"
    else:
        fix = "bring back the source file as it was when the run was trained"
    raise UsageError(
        where=f"--student, run {folder}",
        found="nothing" if part is None else f"{part.attribute} of {part.file} (sha256 {part.sha256})",
        wanted=f"the student of that run again: {own['attribute']} of {own['file']} (sha256 {own['sha256']})",
        fix=fix,
    )

"""Students: small networks that return their penultimate features together with the logits.

| name | input | penultimate | from |
|---|---|---|---|
| resnet18, resnet34 | pixels | 512 | He et al. 2016, from scratch |
| shufflenetv2 | pixels | 1024 | Ma et al. 2018, width 1.0, from scratch |
| tiny-vit, tiny-resnet, tiny-resnet-deep, tiny-convnet | pixels | 64 to 96 | `bird.tiny`: for demos and tests |
| adapter | the teacher's features | the teacher's dimension | Linear(d, d) from the identity -> ReLU -> Linear(d, C) |

`adapter` stands for the rows of the paper whose student is the foundation model itself (Tables 1 and 4): the
encoder stays frozen, only what comes after it learns, and no image is ever read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bird.errors import RunError, UsageError
from bird.tiny import TINY, build_tiny

__all__ = ["STUDENTS", "Student", "StudentOutput", "build_student", "load_student", "student_files"]

STUDENT_FILES = ("student.safetensors", "student.json")
SMALL_IMAGE = 64  # below this many pixels a side: 3x3 stem of stride 1 and no max-pool, as is usual for CIFAR
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StudentOutput(NamedTuple):
    """What a student answers: penultimate features h_S (what is distilled) and class logits z."""

    features: Float[Tensor, "*models batch dim"]
    logits: Float[Tensor, "*models batch classes"]


class Student(nn.Module):
    """A backbone and a linear head, with the input's normalisation inside.

    Image students take float pixels in [0, 1], (batch, 3, size, size); the adapter takes raw teacher features (batch, d).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str,
        backbone: nn.Module,
        dim: int,
        classes: int,
        image_size: int,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        super().__init__()
        self.architecture, self.dim, self.classes, self.image_size = architecture, dim, classes, image_size
        self.input = STUDENTS[architecture].input
        self.backbone, self.head = backbone, nn.Linear(dim, classes)
        # A purely linear adapter would have no h_S to distil; the CNNs' pooled features are rectified already.
        self.activation = nn.ReLU() if self.input == "features" else nn.Identity()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Float[Tensor, batch * shape]) -> StudentOutput:
        """Features and logits of a batch."""
        features = self.backbone((x - self.mean) / self.std)
        return StudentOutput(features, self.head(self.activation(features)))

    def describe(self) -> dict[str, str | int]:
        """What `build_student` needs to build the same shape again."""
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "classes": self.classes,
            "image_size": self.image_size,
        }


class StudentKind(NamedTuple):
    """An entry of STUDENTS: what it reads ("image" or "features"), a line of text, and how to build its backbone."""

    input: str
    description: str
    backbone: Callable[[int, int], tuple[nn.Module, int]]  # (image size, feature dim) -> (module, its output dim)


def _resnet(name: str) -> Callable[[int, int], tuple[nn.Module, int]]:
    def build(image_size: int, feature_dim: int) -> tuple[nn.Module, int]:
        from torchvision import models

        net = {"resnet18": models.resnet18, "resnet34": models.resnet34}[name](weights=None)
        if image_size < SMALL_IMAGE:
            net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        dim = net.fc.in_features
        net.fc = nn.Identity()
        return net, dim

    return build


def _shufflenet(image_size: int, feature_dim: int) -> tuple[nn.Module, int]:
    from torchvision import models

    net = models.shufflenet_v2_x1_0(weights=None)
    if image_size < SMALL_IMAGE:
        net.conv1[0].stride = (1, 1)
        net.maxpool = nn.Identity()
    dim = net.fc.in_features
    net.fc = nn.Identity()
    return net, dim


def _adapter(image_size: int, feature_dim: int) -> tuple[nn.Module, int]:
    layer = nn.Linear(feature_dim, feature_dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer, feature_dim


STUDENTS: Mapping[str, StudentKind] = {
    "resnet18": StudentKind("image", "ResNet-18 from scratch, 512 features", _resnet("resnet18")),
    "resnet34": StudentKind("image", "ResNet-34 from scratch, 512 features", _resnet("resnet34")),
    "shufflenetv2": StudentKind("image", "ShuffleNet V2 x1.0 from scratch, 1024 features", _shufflenet),
    **{name: StudentKind("image", described, partial(build_tiny, name)) for name, described in TINY.items()},
    "adapter": StudentKind(
        "features",
        "a identity-initialised linear adapter and head on cached features; reads no image",
        _adapter,
    ),
}


def build_student(
    architecture: str,
    *,
    classes: int,
    image_size: int = 0,
    feature_mean: Float[Tensor, dim] | None = None,
    feature_std: Float[Tensor, dim] | None = None,
    seed: int | None = None,
) -> Student:
    """A fresh student. Image students need `image_size`; the adapter needs the train split's feature mean and standard
    deviation, both of shape (d,). `seed` fixes the initial weights without touching the global random state.

    Raises UsageError for an unknown architecture.
    """
    if architecture not in STUDENTS:
        raise UsageError(
            where="--student",
            found=repr(architecture),
            wanted=f"one of {', '.join(STUDENTS)}",
            fix="see `bird list students`",
        )
    kind = STUDENTS[architecture]
    if kind.input == "features":
        if feature_mean is None or feature_std is None:
            raise ValueError("an adapter needs feature_mean and feature_std")
        mean, std = feature_mean.float(), feature_std.float()
    else:
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        backbone, dim = kind.backbone(image_size, mean.shape[0])
        return Student(architecture, backbone, dim, classes, image_size, mean, std)


def student_files(student: Student, cache_fingerprint: str | None = None) -> dict[str, bytes]:
    """A student as the two files that `load_student` reads: safetensors weights, and JSON with their sha256 and, where it
    was distilled from a cache, that cache's fingerprint."""
    weights = save_tensors({name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()})
    about = {
        "format": "bird-student-1",
        **student.describe(),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "cache_fingerprint": cache_fingerprint,
    }
    return {"student.safetensors": weights, "student.json": json.dumps(about, indent=1).encode()}


def load_student(folder: Path) -> Student:
    """The student of a run folder, in evaluation mode. Executes nothing: safetensors and JSON only.

    Raises RunError if a file is missing, damaged (sha256) or does not fit its description.
    """

    def broken(found: str) -> RunError:
        return RunError(
            where=f"run {folder}",
            found=found,
            wanted=f"a finished run with {' and '.join(STUDENT_FILES)}",
            fix="run the command that made it again: it resumes",
        )

    try:
        weights, about = ((folder / name).read_bytes() for name in STUDENT_FILES)
    except OSError as error:
        raise broken(f"{error.strerror}: {error.filename}") from None
    try:
        described: dict[str, Any] = json.loads(about)
        if hashlib.sha256(weights).hexdigest() != described["sha256"]:
            raise broken("student.safetensors with another sha256 than student.json records")
        state = load_tensors(weights)
        student = build_student(
            described["architecture"],
            classes=described["classes"],
            image_size=described["image_size"],
            feature_mean=state["mean"],
            feature_std=state["std"],
        )
        student.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError, UsageError) as error:
        raise broken(f"files that do not fit together ({error})") from error
    return student.eval().requires_grad_(False)

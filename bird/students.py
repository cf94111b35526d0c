"""Students: small networks that return their penultimate features together with the logits.

| name | input | penultimate | from |
|---|---|---|---|
| resnet18, resnet34 | pixels | 512 | He et al. 2016, from scratch |
| shufflenetv2 | pixels | 1024 | Ma et al. 2018, width 1.0, from scratch |
| tiny-vit, tiny-resnet, tiny-resnet-deep, tiny-convnet | pixels | 64 to 96 | `bird.tiny`: for demos and tests |
| adapter | the teacher's features | the teacher's dimension | Linear(d, d) from the identity -> ReLU -> Linear(d, C) |

`adapter` is the student of the paper's Tables 1 and 4, where the student is the foundation model itself: the encoder is
frozen, only the layers after it are trained, and no image is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bird.errors import RunError, UsageError, unknown_name
from bird.tiny import TINY, TINY_STAGES, build_tiny

__all__ = [
    "STUDENTS",
    "StagedOutput",
    "Student",
    "StudentOutput",
    "build_student",
    "input_recipe",
    "load_student",
    "plain_weights",
    "require_stages",
    "student_files",
    "torchvision_name",
]

STUDENT_FILES = ("student.safetensors", "student.json")
SMALL_IMAGE = 64  # below this many pixels a side: 3x3 stem of stride 1 and no max-pool, as is usual for CIFAR
TORCHVISION = {"resnet18": "resnet18", "resnet34": "resnet34", "shufflenetv2": "shufflenet_v2_x1_0"}
OUR_NAMES = "bird.students: backbone.*, head.*, mean, std"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StudentOutput(NamedTuple):
    """The output of a student: penultimate features h_S (what is distilled) and class logits z."""

    features: Float[Tensor, "*models batch dim"]
    logits: Float[Tensor, "*models batch classes"]


class StagedOutput(tuple[Tensor, ...]):
    """A student's answer with the maps of its residual stages, a flat tuple (features, logits, map, map, ...), so that
    whatever goes through an answer's tensors one by one (bird.step.feedback) goes through the maps, too."""

    __slots__ = ()

    def __new__(cls, features: Tensor, logits: Tensor, *stages: Tensor) -> StagedOutput:
        """`stages` are (batch, channels, height, width), from the shallowest."""
        return super().__new__(cls, (features, logits, *stages))

    @property
    def features(self) -> Float[Tensor, "batch dim"]:
        """Penultimate features h_S."""
        return self[0]

    @property
    def logits(self) -> Float[Tensor, "batch classes"]:
        """Class logits z."""
        return self[1]

    @property
    def stages(self) -> tuple[Float[Tensor, "batch _ _ _"], ...]:
        """One map a stage, from the shallowest."""
        return self[2:]


class Student(nn.Module):
    """A backbone and a linear head, with the input's normalisation inside.

    Image students take float pixels in [0, 1], (batch, 3, size, size); the adapter takes raw teacher features (batch, d).
    With several `heads` the logits are the sum of theirs (the domain-independent student of Wang et al. 2020:
    one head a group while it learns; no group is asked for afterwards).
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
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.architecture, self.dim, self.classes, self.image_size = architecture, dim, classes, image_size
        self.heads, self.input = heads, STUDENTS[architecture].input
        self.backbone, self.head = backbone, nn.Linear(dim, heads * classes)
        # A purely linear adapter would have no h_S to distil; the CNNs' pooled features are rectified already.
        self.activation = nn.ReLU() if self.input == "features" else nn.Identity()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Float[Tensor, batch * shape]) -> StudentOutput:
        """Features and logits of a batch."""
        features = self.backbone((x - self.mean) / self.std).to(x.dtype)  # under autocast, too, logits follow from them
        logits = self.head(self.activation(features))
        return StudentOutput(features, logits if self.heads == 1 else self._split(logits).sum(-2))

    def by_head(self, x: Float[Tensor, batch * shape]) -> Float[Tensor, "batch heads classes"]:
        """The logits of each head by itself."""
        return self._split(self.head(self.activation(self.backbone((x - self.mean) / self.std))))

    def staged(self, x: Float[Tensor, batch * shape]) -> StagedOutput:
        """Features, logits, and the output of each residual stage. Raises UsageError for a student without stages."""
        maps: list[Tensor] = []
        paths = require_stages(self.architecture)
        hooks = [
            self.backbone.get_submodule(path).register_forward_hook(lambda _, __, output: maps.append(output))
            for path in paths
        ]
        try:
            output = self.forward(x)
        finally:
            for hook in hooks:
                hook.remove()
        return StagedOutput(*output, *maps)

    def _split(self, logits: Tensor) -> Tensor:
        return logits.view(*logits.shape[:-1], self.heads, self.classes)

    def describe(self) -> dict[str, str | int]:
        """What `build_student` needs to build the same shape again."""
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "classes": self.classes,
            "image_size": self.image_size,
            "heads": self.heads,
        }


class StudentKind(NamedTuple):
    """An entry of STUDENTS: what it reads ("image" or "features"), a line of text, how to build its backbone, and where
    in it the residual stages end."""

    input: str
    description: str
    backbone: Callable[[int, int], tuple[nn.Module, int]]  # (image size, feature dim) -> (module, its output dim)
    stages: tuple[str, ...] = ()


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


RESNET, SHUFFLENET = ("layer1", "layer2", "layer3", "layer4"), ("stage2", "stage3", "stage4")

STUDENTS: Mapping[str, StudentKind] = {
    "resnet18": StudentKind("image", "ResNet-18 from scratch, 512 features", _resnet("resnet18"), RESNET),
    "resnet34": StudentKind("image", "ResNet-34 from scratch, 512 features", _resnet("resnet34"), RESNET),
    "shufflenetv2": StudentKind("image", "ShuffleNet V2 x1.0 from scratch, 1024 features", _shufflenet, SHUFFLENET),
    **{
        name: StudentKind("image", described, partial(build_tiny, name), TINY_STAGES[name])
        for name, described in TINY.items()
    },
    "adapter": StudentKind(
        "features",
        "a linear adapter that starts as the identity, and a head, on cached features; reads no image",
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
    heads: int = 1,
) -> Student:
    """A fresh student. Image students need `image_size`; the adapter needs the train split's feature mean and standard
    deviation, both of shape (d,). `seed` fixes the initial weights without touching the global random state. `heads` > 1
    gives one head a group, whose logits are summed.

    Raises UsageError for an unknown architecture.
    """
    if architecture not in STUDENTS:
        raise unknown_name("--student", architecture, STUDENTS, "see `bird list students`")
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
        return Student(architecture, backbone, dim, classes, image_size, mean, std, heads)


def require_stages(architecture: str) -> tuple[str, ...]:
    """Where in the backbone its residual stages end, from the shallowest. Raises UsageError for a student without."""
    if not STUDENTS[architecture].stages:
        raise UsageError(
            where=f"--student {architecture}",
            found="a student of vectors, without spatial maps",
            wanted=f"one with residual stages ({', '.join(name for name, kind in STUDENTS.items() if kind.stages)})",
            fix="attention transfer compares where in the image two networks respond: take an image student, "
            "or a method of features (fitnet, mfd, bird, bird+mfd)",
        )
    return STUDENTS[architecture].stages


def last_stage(architecture: str) -> str:
    """Where in the backbone its last residual stage is. Raises UsageError for a student without stages."""
    stages = STUDENTS[architecture].stages
    if not stages:
        raise UsageError(
            where="--feedback-through last",
            found=f"--student {architecture}, which has no stages",
            wanted=f"one with residual stages ({', '.join(name for name, kind in STUDENTS.items() if kind.stages)})",
            fix="leave it out: the feedback of so small a student is cheap, and --feedback-every makes it cheaper",
        )
    return stages[-1]


def torchvision_name(student: Student) -> str | None:
    """The function of torchvision.models that builds this very network (its `fc` is our head, and the normalisation of the
    pixels stands before it). None for a student that is none of torchvision's: another architecture, the stem for small
    images, several heads."""
    plain = student.image_size >= SMALL_IMAGE and student.heads == 1
    return TORCHVISION.get(student.architecture) if plain else None


def plain_weights(student: Student) -> dict[str, Tensor]:
    """The state dict of `torchvision_name(student)`. The normalisation is not in it."""
    state = student.state_dict()
    weights = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return weights | {f"fc.{name}": value for name, value in student.head.state_dict().items()}


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


def load_student(folder: Path) -> Student:
    """The student of a run folder, in evaluation mode. Executes nothing: safetensors and JSON only. Files that were written
    before weights had torchvision's names are read, too.

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
        if "mean" not in state:
            state = _our_weights(state, described)
        student = build_student(
            described["architecture"],
            classes=described["classes"],
            image_size=described["image_size"],
            feature_mean=state["mean"],
            feature_std=state["std"],
            heads=described.get("heads", 1),
        )
        student.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError, UsageError) as error:
        raise broken(f"files that do not fit together ({error})") from error
    return student.eval().requires_grad_(False)

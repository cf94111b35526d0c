"""The networks of students: a backbone and a linear head, and how our own backbones are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor, nn

from bird.errors import UsageError
from bird.student_bodies import two_of
from bird.tiny import TINY, TINY_STAGES, build_tiny

__all__ = [
    "STUDENTS",
    "StagedOutput",
    "Student",
    "StudentKind",
    "StudentOutput",
    "input_of",
    "last_stage",
    "require_stages",
]

SMALL_IMAGE = 64  # below this many pixels a side: 3x3 stem of stride 1 and no max-pool, as is usual for CIFAR


@final
class StudentOutput(NamedTuple):
    """The output of a student: penultimate features h_S (what is distilled) and class logits z."""

    features: Float[Tensor, "*models batch dim"]
    logits: Float[Tensor, "*models batch classes"]


@final
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


@final
class Student(nn.Module):
    """A backbone and a linear head, with the input's normalisation inside.

    Image students take float pixels in [0, 1], (batch, 3, size, size); the adapter takes raw teacher features (batch, d).
    With several `heads` the logits are the sum of theirs (the domain-independent student of Wang et al. 2020:
    one head a group while it learns; no group is asked for afterwards). With the head `nn.Identity()` the backbone answers
    with features and logits by itself. `stages` name the submodules of the backbone after which its residual stages end.
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
        *,
        head: nn.Module | None = None,
        head_name: str = "fc",
        stages: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        kind = STUDENTS.get(architecture)
        self.architecture, self.dim, self.classes, self.image_size = architecture, dim, classes, image_size
        self.heads, self.input = heads, input_of(architecture)
        self.stages = (kind.stages if kind else ()) if stages is None else stages
        self.backbone, self.head = backbone, nn.Linear(dim, heads * classes) if head is None else head
        self.head_name = head_name  # in the network's own weights
        self.own: Mapping[str, Any] | None = None  # what a module of the user's was, for records
        self.started: Mapping[str, Any] | None = None  # from which weights, if not from scratch
        # A purely linear adapter would have no h_S to distil; the CNNs' pooled features are rectified already.
        self.activation = nn.ReLU() if self.input == "features" else nn.Identity()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Float[Tensor, batch * shape]) -> StudentOutput:
        """Features and logits of a batch."""
        answer = self.backbone((x - self.mean) / self.std)
        if isinstance(self.head, nn.Identity):
            return StudentOutput(*two_of(answer))
        features = answer.to(x.dtype)  # under autocast, too, logits follow from them
        logits = self.head(self.activation(features))
        return StudentOutput(features, logits if self.heads == 1 else self._split(logits).sum(-2))

    def by_head(self, x: Float[Tensor, batch * shape]) -> Float[Tensor, "batch heads classes"]:
        """The logits of each head by itself."""
        return self._split(self.head(self.activation(self.backbone((x - self.mean) / self.std))))

    def staged(self, x: Float[Tensor, batch * shape]) -> StagedOutput:
        """Features, logits, and the output of each residual stage. Raises UsageError for a student without stages."""
        maps: list[Tensor] = []
        paths = require_stages(self.architecture, self.stages)
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


@final
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


def input_of(architecture: str) -> str:
    """What a student of that name reads: "image" or "features"; a student that is not ours reads images."""
    return STUDENTS[architecture].input if architecture in STUDENTS else "image"


def require_stages(architecture: str, stages: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Where in the backbone its residual stages end, from the shallowest: `stages`, or what STUDENTS says. Raises UsageError
    for a student without."""
    found = STUDENTS[architecture].stages if stages is None else stages
    if not found:
        vectors = input_of(architecture) == "features"
        raise UsageError(
            where=f"--student {architecture}",
            found="a student of vectors, without spatial maps" if vectors else "a student whose stages are not known",
            wanted=f"one with residual stages ({', '.join(name for name, kind in STUDENTS.items() if kind.stages)})",
            fix="attention transfer compares where in the image two networks respond: take an image student, "
            "or a method of features (fitnet, mfd, bird, bird+mfd); a module of your own names its `stages`",
        )
    return found


def last_stage(architecture: str, stages: tuple[str, ...] | None = None) -> str:
    """Where in the backbone its last residual stage is. Raises UsageError for a student without stages."""
    found = STUDENTS[architecture].stages if stages is None else stages
    if not found:
        raise UsageError(
            where="--feedback-through last",
            found=f"--student {architecture}, which has no stages",
            wanted=f"one with residual stages ({', '.join(name for name, kind in STUDENTS.items() if kind.stages)})",
            fix="leave it out: the feedback of so small a student is cheap, and --feedback-every makes it cheaper",
        )
    return found[-1]

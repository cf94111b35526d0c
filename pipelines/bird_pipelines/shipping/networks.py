"""The network of a student as others build it, without this project: torchvision's, timm's, or the user's own.

Its weights are a plain state dict in that network's own names. The normalisation of the pixels is not in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bird.errors import UsageError
from bird.student_bodies import TIMM, timm_arguments, two_of
from bird.students import Student, plain_weights, torchvision_name

__all__ = ["Network", "hub_config", "network_of", "require_network", "summed_heads"]

Pixels = Callable[[Tensor], Tensor]


@final
class Network(NamedTuple):
    """Where a network comes from (torchvision, timm, own), its name there, what it is called with, and how it is built
    (without weights)."""

    library: str
    name: str
    arguments: Mapping[str, int] | None
    build: Callable[[], nn.Module]
    own: Mapping[str, Any] | None = None
    """of the user's own: the record of its code"""

    def as_json(self) -> dict[str, Any]:
        """What student.json says of it: what to give to build it again."""
        told = {} if self.own is None else {"file": self.own["file"], "sha256": self.own["sha256"]}
        return {"library": self.library, "name": self.name, "arguments": self.arguments, **told}

    def opened(self, weights: Mapping[str, Tensor], student: Student) -> Pixels:
        """From pixels in 0..1 to logits: the network with these weights, after the normalisation of `student`. Weights of
        half precision are computed with in float32. Raises RuntimeError for weights of another network."""
        network = self.build().eval()
        network.load_state_dict(dict(weights))

        def logits(pixels: Tensor) -> Tensor:
            answer = network((pixels - student.mean) / student.std)
            return answer if isinstance(answer, Tensor) else two_of(answer)[1]

        return logits


def network_of(student: Student) -> Network | None:
    """The network of a student with one head (`summed_heads`); None for our own tiny ones, for a stem of small images, and
    for an adapter."""
    from torchvision import models

    if student.own is not None:
        arguments = student.own["called_with"]
        return Network("own", student.own["attribute"], arguments, lambda: _whole(student), student.own)
    if student.architecture.startswith(TIMM) and student.head_name:
        import timm

        name, given = timm_arguments(student.architecture, student.classes, student.image_size)
        return Network("timm", name, given, lambda: timm.create_model(name, **given))
    if (plain := torchvision_name(student)) is not None:
        known, make = {"num_classes": student.classes}, getattr(models, plain)
        return Network("torchvision", plain, known, lambda: make(**known))
    return None


def require_network(to: str, student: Student) -> tuple[Network, dict[str, Tensor]]:
    """The network, and its weights, which were tried in it. Raises UsageError where there is none for `--to`."""
    network = network_of(student)
    loads = network is not None and (to != "hf" or network.library == "timm" or network.name.startswith("resnet"))
    if network is None or not loads or (to == "hf" and network.library == "own"):
        known = "resnet18 or resnet34 from 64 pixels a side on, or timm:NAME"
        raise UsageError(
            where=f"--to {to}",
            found=_why_not(student),
            wanted=known if to == "hf" else f"{known}, shufflenetv2, or a network of your own",
            fix="export it --to onnx or --to pt2",
        )
    weights = plain_weights(student)
    try:
        network.opened(weights, student)
    except RuntimeError as error:  # timm builds some networks otherwise where they have a classifier
        raise UsageError(
            where=f"--to {to}",
            found=f"{network.name}, whose network with a classifier has other weights in {network.library}",
            wanted="a network that is the same with a classifier",
            fix="export it --to onnx or --to pt2",
        ) from error
    return network, weights


def hub_config(student: Student, about: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a folder that timm loads, from a hub or by `local-dir:`; `about` is student.json."""
    import timm

    network, recipe = about["network"], about["input"]
    architecture = network["name"].partition(".")[0]
    published: Any = timm.get_pretrained_cfg(architecture)
    more = {name: value for name, value in network["arguments"].items() if name != "num_classes"}
    return {
        "architecture": architecture,
        "num_classes": student.classes,
        "num_features": student.dim,
        "label_names": about["class_names"],
        **({"model_args": more} if more else {}),
        "pretrained_cfg": {
            "input_size": recipe["shape"][1:],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": recipe["mean"],
            "std": recipe["std"],
            "first_conv": getattr(published, "first_conv", None),
            "classifier": student.head_name,
        },
    }


def summed_heads(student: Student) -> Student:
    """The same student with one head, whose logits are the sum of its heads' (linear layers side by side)."""
    if student.heads == 1:
        return student
    like = (student.architecture, student.backbone, student.dim, student.classes, student.image_size)
    one = Student(*like, student.mean, student.std, head_name=student.head_name, stages=student.stages)
    one.own = student.own
    with torch.no_grad():
        for name in ("weight", "bias"):
            whole: Tensor = getattr(student.head, name)
            getattr(one.head, name).copy_(whole.view(student.heads, student.classes, *whole.shape[1:]).sum(0))
    return one.eval().requires_grad_(False)


def _whole(student: Student) -> nn.Module:
    """The user's module, with its last layer back in its place where that was taken off."""
    module = copy.deepcopy(student.backbone)
    if isinstance(student.head, nn.Linear):
        parent, _, last = student.head_name.rpartition(".")
        setattr(module.get_submodule(parent), last, copy.deepcopy(student.head))
    return module


def _why_not(student: Student) -> str:
    if student.own is not None:
        return f"{student.architecture}, which is your own: timm does not have it"
    if student.input == "image" and student.architecture.startswith(("resnet", "shufflenet")):
        if torchvision_name(student) is not None:
            return f"{student.architecture}, which timm does not have"
        return (
            f"{student.architecture} at {student.image_size} pixels, with the stem for small images (stride 1, no "
            "max-pool), which torchvision's network has not"
        )
    return f"{student.architecture}, which torchvision does not have"

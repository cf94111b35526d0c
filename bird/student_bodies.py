"""Students that are not ours: timm's networks, and modules of your own.

A module of your own maps pixels (batch, 3, side, side) to one of three answers:

- (features, logits): a tuple, a NamedTuple, or a mapping or object with these two names;
- logits alone, made by a last `nn.Linear`: that layer is found, and its input are the features.

The pixels are normalised before they reach the module: (x - mean) / std of ImageNet, for x in [0, 1]. The attributes
`pixel_mean` and `pixel_std`, three numbers each, say otherwise. `stages`, a tuple of names of submodules, says where its
residual stages end.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bird.errors import UsageError, unknown_name
from bird.own import Part, find, wrong_part
from bird.weights import digest_of_state, first_line

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TIMM",
    "Body",
    "known_timm",
    "own_body",
    "own_student",
    "timm_arguments",
    "timm_body",
    "two_of",
]

TIMM = "timm:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WANTED = "an nn.Module, or a class or function that makes one"
STAGES = {
    "ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "ConvNeXt": ("stages.0", "stages.1", "stages.2", "stages.3"),
}
Three = tuple[float, ...]


@final
class Body(NamedTuple):
    """A network, the width of its features, its last layer (None: it answers with features and logits by itself) and what
    that layer is called in the network's own weights; its stages, if they are known; the normalisation of its pixels; and
    what made it was called with (None: nothing was called, the module was given)."""

    module: nn.Module
    dim: int
    head: nn.Linear | None
    head_name: str
    stages: tuple[str, ...] = ()
    mean: Three = IMAGENET_MEAN
    std: Three = IMAGENET_STD
    called_with: Mapping[str, int] | None = None


def known_timm(name: str) -> str:
    """The architecture of `timm:NAME`. Raises UsageError for a name that timm does not have."""
    import timm

    architecture = name.removeprefix(TIMM)
    if not timm.is_model(architecture.partition(".")[0]):
        raise unknown_name("--student", name, [TIMM + each for each in timm.list_models()], "see timm.list_models()",
                           wanted="the name of a model in timm")  # fmt: skip
    return architecture


def timm_body(name: str, classes: int, image_size: int, *, pretrained: bool = False) -> Body:
    """The network of `timm:NAME` without its classifier, with pooled features, and a fresh linear layer after it.

    Raises UsageError for a name that timm does not have and for a network that cannot take such images.
    """
    import timm

    architecture, given = timm_arguments(known_timm(name), 0, image_size)
    config: Any = timm.get_pretrained_cfg(architecture.partition(".")[0])
    try:
        module = timm.create_model(architecture, pretrained=pretrained, **given)
        features = _answer(module, image_size)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise UsageError(
            where=f"--student {name}",
            found=f"a failure at {image_size} x {image_size} pixels ({type(error).__name__}: {first_line(error)})",
            wanted="a network that takes such images",
            fix="say another --image-size, or take another network",
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UsageError(
            where=f"--student {name}",
            found="no pooled features",
            wanted="a network that gives one vector an image",
            fix="take another network",
        )
    data = timm.data.resolve_model_data_config(module)
    classifier = getattr(config, "classifier", None)
    return Body(
        module,
        features.shape[1],
        nn.Linear(features.shape[1], classes),
        classifier if isinstance(classifier, str) else "",
        STAGES.get(type(module).__name__, ()),
        tuple(data["mean"]),
        tuple(data["std"]),
    )


def timm_arguments(name: str, classes: int, image_size: int) -> tuple[str, dict[str, int]]:
    """What `timm.create_model` takes for `timm:NAME`: the architecture, and options by name."""
    import timm

    architecture = name.removeprefix(TIMM)
    config: Any = timm.get_pretrained_cfg(architecture.partition(".")[0])
    # A transformer's positions are laid out for one size; the others would not know what to do with the option.
    sized = {"img_size": image_size} if getattr(config, "fixed_input_size", False) else {}
    return architecture, {"num_classes": classes, **sized}


def own_body(part: Part, classes: int, image_size: int) -> Body:
    """The module of `part`: a copy of it, or what it makes when it is called with `classes` and `image_size`, as far as its
    signature takes them. It is asked about a batch of two.

    Raises UsageError for what is no module, for a failure of its own, and for an answer of another shape.
    """
    module, told = _made(part, {"classes": classes, "image_size": image_size})
    if not any(weight.requires_grad for weight in module.parameters()):
        raise UsageError(
            where=part.where,
            found="no parameter that can be trained",
            wanted="a module with parameters whose requires_grad is True",
            fix="give the module layers with weights, and do not freeze all of them",
        )
    mean, std = (_three(part, module, *each) for each in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)))
    stages = _stages(part, module)
    answer, layers = _heard(part, module, image_size)
    if isinstance(answer, Tensor):
        _require_shapes(part, {"logits": answer}, classes, image_size)
        return _split(part, module, answer, layers, image_size)._replace(
            stages=stages, mean=mean, std=std, called_with=told
        )
    try:
        features, logits = two_of(answer)
    except (TypeError, ValueError, KeyError):
        many = f" with {len(answer)} parts" if isinstance(answer, tuple | list) else ""
        raise _other_answer(part, f"an answer of type {type(answer).__name__}{many}", classes) from None
    _require_shapes(part, {"features": features, "logits": logits}, classes, image_size)
    return Body(module, features.shape[1], None, "", stages, mean, std, told)


def own_student(given: object, known: Iterable[str]) -> Part:
    """The user's student. A module that has its weights already is also identified by them and by its layers. Raises
    UsageError for what is no module and makes none, and as `bird.own.find` does."""
    part = find("student", given, known)
    value = part.value
    if isinstance(value, nn.Module):
        layers = hashlib.sha256(repr(value).encode()).hexdigest()[:12]
        return replace(part, weights=f"{digest_of_state(value.state_dict())}, layers {layers}")
    if not callable(value) or (inspect.isclass(value) and not issubclass(value, nn.Module)):
        raise wrong_part(part, WANTED)
    return part


def two_of(answer: Any) -> tuple[Tensor, Tensor]:
    """Features and logits of a module's answer. Raises TypeError, ValueError or KeyError for another answer."""
    if isinstance(answer, Mapping):
        return answer["features"], answer["logits"]
    if hasattr(answer, "features") and hasattr(answer, "logits"):
        return answer.features, answer.logits
    features, logits = answer
    return features, logits


def _made(part: Part, given: Mapping[str, int]) -> tuple[nn.Module, Mapping[str, int] | None]:
    """The module, and what it was made with."""
    value = part.value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value), None
    told = _taken(value, given)
    try:
        made = value(**told)
    except Exception as error:  # whatever a stranger's code does
        said = ", ".join(f"{name}={number}" for name, number in told.items())
        raise UsageError(
            where=part.where,
            found=f"a failure when it was called with {said or 'nothing'} ({type(error).__name__}: {first_line(error)})",
            wanted="a module for these classes and this image size",
            fix="give its other arguments defaults; see where with --debug",
        ) from error
    if not isinstance(made, nn.Module):
        raise wrong_part(part, f"{WANTED}; this one made an object of {type(made).__name__}")
    return made, told


def _taken(value: Callable[..., Any], given: Mapping[str, int]) -> dict[str, int]:
    """Those of `given` that the signature names, or all where it takes any."""
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return {}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return dict(given)
    return {name: number for name, number in given.items() if name in parameters}


def _answer(module: nn.Module, side: int) -> Any:
    """Its answer about two random images, in evaluation mode; chance and mode stay as they were."""
    training = module.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return module.eval()(torch.rand(2, 3, side, side))
        finally:
            module.train(training)


def _heard(part: Part, module: nn.Module, side: int) -> tuple[Any, list[tuple[str, Tensor]]]:
    """The answer, and what each linear layer said on the way, by the layer's name."""
    said: list[tuple[str, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: said.append((name, output)))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        return _answer(module, side), said
    except Exception as error:  # whatever a stranger's code does
        raise UsageError(
            where=part.where,
            found=f"a failure on two images of {side} x {side} ({type(error).__name__}: {first_line(error)})",
            wanted=f"a module of pixels (batch, 3, {side}, {side}), float32",
            fix="call it on torch.rand(2, 3, SIDE, SIDE); another --image-size may help",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _split(part: Part, module: nn.Module, logits: Tensor, said: list[tuple[str, Tensor]], side: int) -> Body:
    """The module without its last linear layer, and that layer. Raises UsageError where the logits are not this layer's."""
    name = next((name for name, output in reversed(said) if output is logits), None)
    if not name:
        raise UsageError(
            where=part.where,
            found="logits alone, which no nn.Linear made as the last step",
            wanted="(features, logits), or logits that come from a last nn.Linear",
            fix="return both: return features, self.head(features)",
        )
    head = module.get_submodule(name)
    assert isinstance(head, nn.Linear)
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    features = _heard(part, module, side)[0]
    if not isinstance(features, Tensor) or features.shape != (2, head.in_features):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(
            where=part.where,
            found=f"features {found} where its last layer {name} was taken off",
            wanted=f"features (2, {head.in_features})",
            fix="return both: return features, self.head(features)",
        )
    return Body(module, head.in_features, head, name)


def _require_shapes(part: Part, found: Mapping[str, Any], classes: int, side: int) -> None:
    shapes = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for name, value in found.items()
    }
    features = shapes.get("features", (2, 1))
    right = len(features) == 2 and features[0] == 2 and shapes["logits"] == (2, classes)
    if not right or not all(value.is_floating_point() for value in found.values()):
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise _other_answer(part, f"{said} for two images of {side} x {side}", classes)
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise UsageError(
            where=part.where,
            found=f"an answer with NaN or infinite numbers for two images of {side} x {side}",
            wanted="finite features and logits",
            fix=f"call it on torch.rand(2, 3, {side}, {side}) and look for the layer that gives the first one",
        )


def _shape(value: object) -> str:
    return f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _other_answer(part: Part, found: str, classes: int) -> UsageError:
    return UsageError(
        where=part.where,
        found=found,
        wanted=f"features (batch, dim) and logits (batch, {classes}), float32; or logits from a last nn.Linear",
        fix="return (features, logits); the number of classes is the data set's, and is given as `classes`",
    )


def _three(part: Part, module: nn.Module, name: str, usual: Three) -> Three:
    value: Any = getattr(module, name, usual)
    try:
        numbers = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or (name == "pixel_std" and not min(numbers) > 0):
        raise UsageError(
            where=f"{part.where}, {name}",
            found=repr(value),
            wanted="three numbers, for red, green and blue in [0, 1]",
            fix=f"such as {name} = {'(0.0, 0.0, 0.0)' if name == 'pixel_mean' else '(1.0, 1.0, 1.0)'}",
        )
    return numbers


def _stages(part: Part, module: nn.Module) -> tuple[str, ...]:
    """What `module.stages` names; an attribute of that name that is something else is the module's own business."""
    value: Any = getattr(module, "stages", ())
    if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
        return ()
    names = {name for name, _ in module.named_modules()}
    if missing := [name for name in value if name not in names]:
        raise UsageError(
            where=f"{part.where}, stages",
            found=f"no submodule {missing[0]}",
            wanted="the names of submodules whose outputs are (batch, channels, height, width)",
            fix="names as in named_modules()",
        )
    return value

"""torchvision's classifiers as teachers: `torchvision:ARCH[/WEIGHTS]`, the input of the last linear layer.

`WEIGHTS` is a name of torchvision's published weights (IMAGENET1K_V2): their own transform is the view. A state dict without
a name is seen as the first published weights of its architecture are, and that is said.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bird.errors import UsageError
from bird.teachers.base import PENULTIMATE, Json, Options, Teacher
from bird.teachers.files import fill, missing_weights, read_state
from bird.teachers.layers import Tap, stage_taps
from bird.teachers.proof import Reference, prove
from bird.teachers.views import view_of_transform

__all__ = ["torchvision_model"]

# What torchvision's builders set when they are given published weights, beside the number of classes.
WITH_WEIGHTS: Mapping[str, Callable[[int], dict[str, Json]]] = {
    "googlenet": lambda side: {"transform_input": True, "init_weights": False},
    "inception_v3": lambda side: {"transform_input": True, "init_weights": False},
    **{f"vit_{size}": lambda side: {"image_size": side} for size in ("b_16", "b_32", "l_16", "l_32", "h_14")},
    "maxvit_t": lambda side: {"input_size": [side, side]},
}


def torchvision_model(name: str, spec: str, options: Options) -> Teacher:
    """`ARCH[/WEIGHTS]` from a local state dict. Raises UsageError for an unknown name or weights."""
    from torchvision import models

    architecture, _, tag = spec.partition("/")
    known = list(models.list_models(module=models))
    if architecture not in known:
        raise _unknown(name, architecture, "a torchvision classifier", known)
    published = models.get_model_weights(architecture)
    names = [entry.name for entry in published]
    if tag and tag not in names:
        raise _unknown(name, tag, f"weights of {architecture}: {', '.join(names)}", names)
    entry = published[tag or names[0]]
    if options.weights is None:
        raise missing_weights(name, f"a state dict of torchvision's {architecture}, such as {entry.url}")
    transform, notes = _transform(name, architecture, tag, entry, options)
    (side,) = transform.crop_size
    state = read_state(options.weights, name)
    made = WITH_WEIGHTS.get(architecture)
    config: dict[str, Json] = made(side) if made else {}
    if "transform_input" in config:
        config["aux_logits"] = any(".fc" in key and key.lower().startswith("aux") for key in state)
    model = models.get_model(architecture, weights=None, **config)
    head, last = _head(model, nn.Linear), _head(model, nn.Linear | nn.Conv2d)
    if (weight := state.get(f"{last}.weight")) is not None:  # trained for another number of classes
        config["num_classes"] = len(weight)
        model = models.get_model(architecture, weights=None, **config)
    fill(model, state, name)
    taps = {**_vector(model, head), "logits": Tap("logits"), **stage_taps(model)}
    linear = taps[PENULTIMATE].of == "input"
    return prove(
        name,
        model,
        view_of_transform(transform),
        Reference(
            processor=f"torchvision's transform of {entry.name}" if tag else "torchvision's ImageClassification",
            see=transform,
            say=lambda pixels: _say(model, pixels, linear),
            rules={"transform": repr(transform)},
            libraries=("torchvision", "torch", "pillow"),
            finish=model.get_submodule(head) if linear else None,
        ),
        taps=taps,
        options=options,
        reading="input of the last linear layer" if linear else "mean of the last maps (features)",
        config={"architecture": architecture, **config},
        notes=notes,
    )


def _transform(name: str, architecture: str, tag: str, entry: Any, options: Options) -> tuple[Any, dict[str, str]]:
    """How photos are seen, and what of it is assumed."""
    from torchvision.transforms._presets import ImageClassification

    if tag:
        options.without_size(name, "the published weights'")
        return entry.transforms(), {}
    if (side := options.image_size) is not None:
        assumed = f"resize {side * 256 // 224}, crop {side}, as --image-size says"
        return ImageClassification(crop_size=side, resize_size=side * 256 // 224), {"assumed": assumed}
    transform = entry.transforms()
    sides = f"resize {transform.resize_size[0]}, crop {transform.crop_size[0]}, {transform.interpolation.value}"
    say = f"torchvision:{architecture}/WEIGHTS says which of {', '.join(each.name for each in type(entry))}"
    return transform, {"assumed": f"the view of {entry.name} ({sides}), as no weights are named; {say}"}


def _vector(model: nn.Module, head: str) -> dict[str, Tap]:
    if head:
        return {PENULTIMATE: Tap("penultimate", head, of="input")}
    return {PENULTIMATE: Tap("penultimate", "features", lambda maps: maps.mean((2, 3)))}


def _say(model: Any, pixels: Tensor, linear: bool) -> dict[str, Tensor]:
    logits = {"logits": model(pixels)}
    return logits if linear else {**logits, PENULTIMATE: model.features(pixels).mean((2, 3))}


def _head(model: nn.Module, kind: Any) -> str:
    """The path of the last layer of a kind; "" for SqueezeNet's linear one, as it has none."""
    return next((path for path, module in reversed([*model.named_modules()]) if isinstance(module, kind)), "")


def _unknown(name: str, found: str, wanted: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(found, known, n=3)
    fix = f"did you mean {', '.join(close)}?" if close else f"see the library's list of {len(known)}"
    return UsageError(where=f"--teacher {name}", found=repr(found), wanted=wanted, fix=fix)

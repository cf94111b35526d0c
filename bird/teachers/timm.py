"""timm's models as teachers: `timm:NAME[.TAG]`, the features before the classifier, seen by the model's own data config."""

from __future__ import annotations

import difflib
from typing import Any, final

from torch import Tensor, nn

from bird.errors import TeacherError, UsageError
from bird.teachers.base import PENULTIMATE, Json, Options, Teacher
from bird.teachers.files import fill, missing_weights, offline_if_unreachable, read_state
from bird.teachers.layers import Tap
from bird.teachers.proof import Reference, prove
from bird.teachers.views import view_of_transform

__all__ = ["timm_model"]


def timm_model(name: str, spec: str, options: Options) -> Teacher:
    """`NAME[.TAG]` of timm: forward_head(forward_features(image), pre_logits=True), as its model cards say.

    Raises UsageError for an unknown name or tag, TeacherError for weights that are not there or do not fit.
    """
    import timm

    options.without_size(name, "its data config's")
    architecture, _, tag = spec.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name, architecture, "a model of timm", timm.list_models())
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise _unknown(name, tag, f"weights of {architecture}: {', '.join(tags) or 'none are published'}", tags)
    notes: dict[str, str] = {}
    if options.weights is not None:
        state = read_state(options.weights, name)
        model = timm.create_model(spec, pretrained=False, num_classes=_classes(architecture, state))
        fill(model, state, name)
        if not tag:
            made = f"timm:{architecture}.{model.pretrained_cfg.get('tag', '')}".rstrip(".")
            notes["assumed"] = f"the data config of {made}, as no weights are named; of {', '.join(tags) or 'no tags'}"
    else:
        what = f"the weights of timm's {spec}: {model_source(spec)}"
        offline_if_unreachable()
        try:
            model = timm.create_model(spec, pretrained=True)
        except Exception as error:  # the hub's client has many ways to fail
            raise missing_weights(name, what, error) from error
    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    config: dict[str, Json] = {"architecture": architecture, "classes": int(model.num_classes)}
    return prove(
        name,
        _Features(model),
        view_of_transform(transform),
        Reference(
            processor="timm's own transform",
            see=transform,
            say=lambda pixels: _say(name, model, pixels),
            rules={key: list(value) if isinstance(value, tuple) else value for key, value in data.items()},
            libraries=("timm", "torch", "torchvision", "pillow"),
        ),
        taps={
            PENULTIMATE: Tap("penultimate", read=lambda features: model.forward_head(features, pre_logits=True)),
            **({"logits": Tap("logits", read=model.forward_head)} if model.num_classes else {}),
        },
        options=options,
        reading="forward_head(forward_features, pre_logits=True)",
        config=config,
        notes=notes,
    )


@final
class _Features(nn.Module):
    """A model up to its features, of which the taps make the rest."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> the features of `forward_features`."""
        return self.model.forward_features(pixels)  # type: ignore[no-any-return]  # timm is untyped


def _say(name: str, model: Any, pixels: Tensor) -> dict[str, Tensor]:
    vector = model.forward_head(model.forward_features(pixels), pre_logits=True)
    if vector.ndim != 2:
        raise TeacherError(
            where=f"teacher {name}",
            found=f"features of shape {tuple(vector.shape)}",
            wanted="one vector an image",
            fix="choose a model with a pooled output",
        )
    return {PENULTIMATE: vector, **({"logits": model(pixels)} if model.num_classes else {})}


def model_source(spec: str) -> str:
    """Where timm says that a model's weights are."""
    import timm

    published: Any = timm.models.get_pretrained_cfg(spec, allow_unregistered=False)
    return getattr(published, "hf_hub_id", None) or getattr(published, "url", None) or "none are published"


def _classes(architecture: str, state: dict[str, Tensor]) -> int:
    """How many a state dict was trained for; 0 without a classifier."""
    import timm

    published: Any = timm.models.get_pretrained_cfg(architecture)
    heads = getattr(published, "classifier", None) or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        if (weight := state.get(f"{head}.weight")) is not None:
            return len(weight)
    return 0


def _unknown(name: str, found: str, wanted: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(found, known, n=3)
    fix = f"did you mean {', '.join(close)}?" if close else f"see the library's list of {len(known)}"
    return UsageError(where=f"--teacher {name}", found=repr(found), wanted=wanted, fix=fix)

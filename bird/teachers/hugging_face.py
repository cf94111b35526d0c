"""Image models of transformers as teachers: `hf:REPO[@REVISION]`, from the hub or from a folder. Never runs remote code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from bird.errors import TeacherError
from bird.teachers.base import PENULTIMATE, Json, Options, Teacher, digest_of_state
from bird.teachers.families import FAMILIES, HEADS, POOLER, READINGS, Family
from bird.teachers.files import first_line, missing_weights, offline_if_unreachable
from bird.teachers.layers import Tap, token_taps
from bird.teachers.processors import Inputs, inputs_of, only_pixels, see_with, view_of_processor
from bird.teachers.proof import Reference, prove

__all__ = ["flava", "hugging_face"]

# Of config.json: what no vector depends on, or what the image tower does not read.
UNREAD = {"_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "id2label", "label2id", "label_names"}
UNREAD |= {"torch_dtype", "transformers_version", "text_config", "text_config_dict", "multimodal_config"}
EXPORT = "export the vector that you want as an ONNX file (onnx:FILE)"


@final
class Read(NamedTuple):
    """How a loaded model is read: the part that runs, its layers, what the library documents of a batch, in which words."""

    module: nn.Module
    taps: dict[str, Tap]
    say: Callable[[Tensor], Mapping[str, Tensor]]
    reading: str
    finish: Callable[[Tensor], Tensor] | None = None
    beside: Mapping[str, Json] = MappingProxyType({})
    """what else the layers follow from, beside the part's own weights"""


@final
class Source(NamedTuple):
    """Where a model is: a folder, or a repository of the hub."""

    name: str
    path: str
    revision: str | None
    local: bool

    def load(self, kind: Any, **more: Any) -> Any:
        """`kind.from_pretrained` of it, from its own files alone."""
        where = {"revision": self.revision, "local_files_only": self.local, "trust_remote_code": False}
        with _quiet():
            return kind.from_pretrained(self.path, **where, **more)

    def refuse(self, found: str, wanted: str, fix: str) -> TeacherError:
        """The error for what was found in it."""
        return TeacherError(where=f"teacher {self.name}", found=found, wanted=wanted, fix=fix)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of weights that nothing reads, and of those that we refuse by name."""
    from transformers import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def hugging_face(name: str, spec: str, options: Options) -> Teacher:
    """`REPO[@REVISION]`: what its family documents as the embedding of an image, or what its classifier takes."""
    repo, _, revision = spec.partition("@")
    return _teacher(_source(name, repo, revision or None, options), options, None)


def flava(name: str, spec: str, options: Options) -> Teacher:
    """FLAVA's image encoder: the CLS token after the last layer norm, 768 wide. A folder without a processor's file is seen
    as the published model sees."""
    from transformers import FlavaImageProcessor

    def published(config: Any) -> Any:
        side = config.image_config.image_size
        return FlavaImageProcessor(size={"height": side, "width": side}, crop_size={"height": side, "width": side})

    return _teacher(_source(name, spec, None, options), options, published)


def _source(name: str, repo: str, revision: str | None, options: Options) -> Source:
    if options.weights is None:
        offline_if_unreachable()
    elif not (options.weights / "config.json").is_file():
        raise TeacherError(
            where=f"teacher {name}, --weights {options.weights}",
            found="no config.json",
            wanted="a transformers folder: config.json and model.safetensors",
            fix="download the whole folder of the model",
        )
    return Source(name, str(options.weights or repo), revision, options.weights is not None)


def _teacher(source: Source, options: Options, default: Callable[[Any], Any] | None) -> Teacher:
    config, written = _config(source)
    architecture, family = (config.architectures or [""])[0], FAMILIES.get(config.model_type, Family())
    notes = {}
    if config.model_type not in FAMILIES:
        notes["assumed"] = (
            f"{POOLER}, the library's pooled output: we know no reading of the family {config.model_type}"
        )
    processor = _processor(source, None if default is None else lambda: default(config))
    inputs = inputs_of(config, processor)
    if "ForImageClassification" in architecture:
        read = _classifier(source, architecture, inputs)
    else:
        read = _embedding(source, architecture, family, inputs, options.device)
    if inputs is not only_pixels:
        read = _asked_with(read, inputs)
    return prove(
        source.name,
        read.module,
        view_of_processor(processor),
        Reference(
            processor=f"transformers' {type(processor).__name__}",
            see=lambda photo: see_with(source.name, processor, photo),
            say=read.say,
            rules=_plain(json.loads(processor.to_json_string())),
            libraries=(
                "transformers",
                "torch",
                "torchvision",
                *(("timm",) if config.model_type == "timm_wrapper" else ()),
            ),
            finish=read.finish,
        ),
        taps=read.taps,
        options=options,
        reading=read.reading,
        config={**_plain(written), **read.beside},
        notes=notes,
    )


# ---- what is read -----------------------------------------------------------------------------------------------


def _embedding(source: Source, architecture: str, family: Family, inputs: Inputs, device: torch.device) -> Read:
    """The documented embedding of a model without a classifier, or of the image tower of two."""
    inside = family.tower or ("vision_model" if architecture.endswith("WithProjection") else "")
    whole, missing = _model(source, architecture, inside, family)
    tower, reading = getattr(whole, inside) if inside else whole, family.reading
    if family.without_pooler and getattr(tower, "pooler", None) is None and not getattr(tower, "use_head", False):
        reading = family.without_pooler
    read, projection = READINGS[reading], getattr(whole, family.projection, None) if family.projection else None
    if any(key.startswith(family.projection) for key in missing):
        projection = None
    taps = {PENULTIMATE: Tap("penultimate", read=read), **_hidden_tokens(tower)}
    if projection is not None:
        projection.requires_grad_(False).to(device)
        taps["projection"] = Tap("projection", read=lambda output: projection(read(output)))

    def say(pixels: Tensor) -> dict[str, Tensor]:
        given = inputs(pixels)
        output = tower(**given)
        if getattr(output, read.field, None) is None:
            raise source.refuse(
                f"an output without {read.field}: {type(whole).__name__} has no documented embedding of an image",
                "a model with a pooled output or a classifier, or a family whose embedding is known",
                EXPORT,
            )
        said = {PENULTIMATE: read(output)}
        if projection is not None and hasattr(whole, "get_image_features"):
            shared = whole.get_image_features(**given).pooler_output
            said["projection"] = shared[:, 0] if shared.ndim == 3 else shared  # FLAVA projects every token
        elif projection is not None:
            said["projection"] = whole(**given).image_embeds
        return said

    beside: dict[str, Json] = {} if projection is None else {"projection": digest_of_state(projection.state_dict())}
    return Read(tower, taps, say, f"{inside}: {reading}" if family.tower else reading, beside=beside)


def _classifier(source: Source, architecture: str, inputs: Inputs) -> Read:
    """What a classifier takes, and its logits."""
    model, _ = _model(source, architecture, "", Family())
    head = next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Linear | nn.Sequential)), "")
    head = head or next(
        (name for name in HEADS if "LevitClassification" in type(getattr(model, name, None)).__name__), ""
    )
    if not head:
        raise source.refuse(f"no classifier in {architecture}", f"one of {', '.join(HEADS)}", EXPORT)
    logits = Tap("logits", read=lambda output: output.logits)

    def say(pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": model(**inputs(pixels)).logits}

    if head == "cls_classifier":  # DeiT: a head for each of two tokens, and the mean of both
        width = model.config.hidden_size
        both = Tap("penultimate", model.base_model_prefix, lambda output: output.last_hidden_state[:, :2].flatten(1))

        def mean_of_both(vector: Tensor) -> Tensor:
            one, other = vector[:, :width], vector[:, width:]
            return (model.cls_classifier(one) + model.distillation_classifier(other)) / 2  # type: ignore[no-any-return]  # transformers is untyped

        return Read(model, {PENULTIMATE: both, "logits": logits}, say, "inputs of both classifiers", mean_of_both)

    heads = [getattr(model, name) for name in (head, "dist_head", "classifier_distill") if hasattr(model, name)]

    def mean_of_heads(vector: Tensor) -> Tensor:
        return torch.stack([each(vector) for each in heads]).mean(0)

    prefix = model.base_model_prefix
    tokens = _hidden_tokens(getattr(model, prefix, model), prefix)
    taps = {
        PENULTIMATE: Tap("penultimate", head, lambda taken: taken.flatten(1), of="input"),
        "logits": logits,
        **tokens,
    }
    return Read(model, taps, say, "input of the classifier", mean_of_heads)


def _hidden_tokens(model: Any, path: str = "") -> dict[str, Tap]:
    """Of transformers' ViTs; CLIP's norms its CLS token only, and leaves last_hidden_state as it was before."""
    if type(model).__name__ in ("ViTModel", "FlavaImageModel"):
        return token_taps(path, lambda output: output.last_hidden_state)
    if type(model).__name__ == "CLIPVisionModel":
        norm = next(part for name, part in model.named_modules() if name.endswith("post_layernorm"))
        return token_taps(path, lambda output: norm(output.last_hidden_state))
    return {}


@final
class _Asked(nn.Module):
    """A model that is asked with more than pixels."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, views: Tensor) -> Any:
        """The model's output."""
        return self.model(**self.inputs(views))


def _asked_with(read: Read, inputs: Inputs) -> Read:
    taps = {name: dataclasses.replace(tap, path=f"model.{tap.path}".rstrip(".")) for name, tap in read.taps.items()}
    return read._replace(module=_Asked(read.module, inputs), taps=taps)


# ---- files ------------------------------------------------------------------------------------------------------


def _config(source: Source) -> tuple[Any, dict[str, Any]]:
    """The model's configuration, and its file as it is written."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        config = source.load(AutoConfig)
        written, _ = PreTrainedConfig.get_config_dict(
            source.path, revision=source.revision, local_files_only=source.local
        )
    except OSError as error:
        raise missing_weights(source.name, f"config.json and model.safetensors of {source.path}", error) from error
    except Exception as error:  # an unknown model type, code of the repository's own, a damaged file
        raise source.refuse(
            f"a config.json that transformers cannot use ({first_line(error)})",
            "a model type that the installed transformers knows, without code of the repository's own",
            f"install a newer transformers; or {EXPORT}",
        ) from error
    return config, written


def _model(source: Source, architecture: str, tower: str, family: Family) -> tuple[Any, set[str]]:
    """A model, safetensors only, in float32, and which of its weights are missing; every one of `tower` is there."""
    import transformers

    by_name = "ForImageClassification" in architecture or architecture.endswith(("VisionModel", "WithProjection"))
    kind = getattr(transformers, architecture, None) if by_name else None
    try:
        model, loading = source.load(
            kind or transformers.AutoModel,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
            dtype=torch.float32,  # transformers would compute in the file's own precision
        )
    except ValueError as error:
        raise source.refuse(
            f"a model that transformers has no image tower for ({first_line(error)})",
            "a model of images, or one with an image tower",
            EXPORT,
        ) from error
    except Exception as error:  # the hub's client has many ways to fail
        raise missing_weights(source.name, f"config.json and model.safetensors of {source.path}", error) from error
    shapes = {str(key if isinstance(key, str) else key[0]) for key in loading["mismatched_keys"]}
    missing = {*loading["missing_keys"], *shapes}
    needed = sorted(key for key in missing if key.startswith(f"{tower}." if tower else ""))
    if family.without_pooler and needed and all(key.startswith("pooler.") for key in needed):
        model.pooler, needed = None, []
    if needed and all("pooler." in key for key in needed):
        raise source.refuse(
            f"a model whose pooler was not trained ({', '.join(needed[:3])} missing)",
            "a trained pooler: this family documents no other embedding of an image",
            EXPORT,
        )
    if needed:
        raise source.refuse(
            f"{len(needed)} weights missing or of another shape ({', '.join(needed[:3])})",
            "all weights of the image encoder",
            "check the file",
        )
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0
    return model, missing


def _processor(source: Source, default: Callable[[], Any] | None) -> Any:
    """The model's own processor of images; `default` where its file is not there."""
    from transformers import AutoImageProcessor

    try:
        return source.load(AutoImageProcessor)
    except Exception as error:  # the hub's client has many ways to fail
        if default is not None:
            return default()
        raise TeacherError(
            where=f"teacher {source.name}, preprocessor_config.json",
            found=f"nothing that can be read ({first_line(error)})",
            wanted="the processor of the model's images",
            fix="take the whole folder of the model, or write the file",
        ) from None


def _plain(values: Any) -> Any:
    """Without what no vector depends on, and without infinities, which JSON lacks."""
    if isinstance(values, Mapping):
        return {name: _plain(value) for name, value in values.items() if name not in UNREAD}
    if isinstance(values, float) and not isfinite(values):
        return str(values)
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values

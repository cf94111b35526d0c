"""The torch teachers: CLIP through open_clip, FLAVA and others through transformers, torchvision, and our own runs."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bird.errors import TeacherError, UsageError
from bird.students import IMAGENET_MEAN, IMAGENET_STD, Student, load_student
from bird.teachers.base import FeatureKind, Teacher, TorchTeacher, View
from bird.teachers.files import fill, missing_weights, offline_if_unreachable, read_state

__all__ = ["Options", "clip", "flava", "hugging_face", "own_run", "torchvision_model"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Options:
    """What the person asked for beside the teacher's name."""

    def __init__(
        self, weights: Path | None, device: torch.device, precision: str, image_size: int | None
    ) -> None:
        self.weights, self.device, self.precision, self.image_size = weights, device, precision, image_size


def clip(name: str, spec: str, options: Options) -> Teacher:
    """`MODEL/PRETRAINED` of open_clip: the image tower's projected embedding, not normalised."""
    import open_clip

    model_name, _, tag = spec.partition("/")
    known = open_clip.list_models()
    if model_name not in known:
        close = difflib.get_close_matches(model_name, known, n=3)
        raise UsageError(
            where=f"--teacher {name}",
            found=repr(model_name),
            wanted="an open_clip model",
            fix=f"did you mean {', '.join(close)}?",
        )
    published = open_clip.get_pretrained_cfg(model_name, tag) or {}
    if options.weights is not None:
        model = open_clip.create_model(model_name, load_weights=False, pretrained_text=False)
        state = read_state(options.weights, name)
        if not any(key.startswith("visual.") for key in state):  # the image tower alone
            state = {f"visual.{key}": value for key, value in state.items()}
        tower = {
            key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")
        }
        fill(model.visual, tower, name)
    else:
        source = published.get("hf_hub") or published.get("url") or "which it does not know"
        what = f"the weights {tag!r} of open_clip's {model_name}: {source}"
        if not published:
            raise missing_weights(name, what)
        offline_if_unreachable()
        logging.disable(logging.ERROR)  # open_clip logs the failure that the error below explains
        try:
            model = open_clip.create_model(model_name, pretrained=tag)
        except Exception as error:  # the hub's client has many ways to fail
            raise missing_weights(name, what, error) from error
        finally:
            logging.disable(logging.NOTSET)
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    config = open_clip.get_model_preprocess_cfg(model)
    view = View(
        resize=side,
        crop=side,
        interpolation=published.get("interpolation", config.get("interpolation", "bicubic")),
        resizer="pillow",
        mean=tuple(published.get("mean", config.get("mean", CLIP_MEAN))),
        std=tuple(published.get("std", config.get("std", CLIP_STD))),
    )
    return _teacher(
        name, model.visual, view, "projection", options, reading="projected image embedding, not normalised"
    )


def flava(name: str, spec: str, options: Options) -> Teacher:
    """FLAVA's image encoder: the CLS token after the last layer norm, 768 wide."""
    from transformers import FlavaModel

    source = str(options.weights or spec)
    model, _ = _from_pretrained(FlavaModel, name, source, options, needed="image_model.")
    view = _processor_view(options.weights, View((224, 224), 224, "bicubic", "pillow", CLIP_MEAN, CLIP_STD))
    side = model.config.image_config.image_size
    view = View((side, side), side, view.interpolation, "pillow", view.mean, view.std)
    return _teacher(name, model.image_model, view, "penultimate", options, _cls, "last_hidden_state[:, 0]")


def hugging_face(name: str, spec: str, options: Options) -> Teacher:
    """`REPO[@REVISION]`, a vision model of transformers: its pooler output, else its CLS token. Never runs remote code."""
    from transformers import AutoModel

    repo, _, revision = spec.partition("@")
    source = str(options.weights or repo)
    model, _ = _from_pretrained(AutoModel, name, source, options, revision=revision or None)
    side = int(getattr(model.config, "image_size", 224))
    view = _processor_view(
        options.weights, View((side, side), None, "bicubic", "pillow", (0.5,) * 3, (0.5,) * 3)
    )
    return _teacher(
        name, model, view, "penultimate", options, _pooled, "pooler_output, else last_hidden_state[:, 0]"
    )


def torchvision_model(name: str, spec: str, options: Options) -> Teacher:
    """A torchvision classifier from a local state dict: the input of its last linear layer."""
    from torchvision import models

    known = list(models.list_models(module=models))
    if spec not in known:
        close = difflib.get_close_matches(spec, known, n=3)
        raise UsageError(
            where=f"--teacher {name}",
            found=repr(spec),
            wanted="a torchvision classifier",
            fix=f"did you mean {', '.join(close)}?",
        )
    if options.weights is None:
        raise missing_weights(name, f"a state dict of torchvision's {spec}")
    state = read_state(options.weights, name)
    model = models.get_model(spec, weights=None)
    head = _head(model, name)
    if (weight := state.get(f"{head}.weight")) is not None:  # trained for another number of classes
        model = models.get_model(spec, weights=None, num_classes=len(weight))
    fill(model, state, name)
    parent, _, last = head.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    side = options.image_size or 224
    view = View(side * 256 // 224, side, "bilinear", "pillow", IMAGENET_MEAN, IMAGENET_STD)
    return _teacher(name, model, view, "penultimate", options, reading="input of the last linear layer")


def own_run(name: str, spec: str, options: Options) -> Teacher:
    """`DIR` of `bird train`: that student's penultimate features."""
    try:
        student: Student = load_student(Path(spec))
    except Exception as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(
            where=f"--teacher run:{spec}",
            found=str(getattr(error, "found", error)),
            wanted="a finished run of `bird train`",
            fix="run `bird train --out` to its end first",
        ) from error
    if student.input != "image":
        raise TeacherError(
            where=f"--teacher run:{spec}",
            found=f"a student that reads {student.input}",
            wanted="a student that reads images",
            fix="train one with `bird train`",
        )
    view = View(student.image_size, student.image_size)
    return _teacher(
        f"run:{student.architecture}", student, view, "penultimate", options, _features, "features"
    )


def _teacher(
    name: str,
    module: nn.Module,
    view: View,
    kind: FeatureKind,
    options: Options,
    read: Callable[[Any], Tensor] = lambda output: output,
    reading: str = "output",
) -> Teacher:
    return TorchTeacher(
        name,
        module,
        view,
        kind=kind,
        device=options.device,
        precision=options.precision,
        read=read,
        reading=reading,
    )


def _unknown(name: str, found: str, wanted: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(found, known, n=3)
    fix = f"did you mean {', '.join(close)}?" if close else "see the library's own list"
    return UsageError(where=f"--teacher {name}", found=repr(found), wanted=wanted, fix=fix)


def _features(output: Any) -> Tensor:
    return output.features  # type: ignore[no-any-return]


def _cls(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]


def _pooled(output: Any) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    return _cls(output) if pooled is None else pooled.flatten(1)


def _from_pretrained(
    kind: Any, name: str, source: str, options: Options, *, needed: str = "", revision: str | None = None
) -> tuple[Any, Any]:
    """A transformers model from a local folder or the hub, safetensors only; every weight that matters must be there."""
    if options.weights is not None and not (options.weights / "config.json").is_file():
        raise TeacherError(
            where=f"teacher {name}, --weights {options.weights}",
            found="no config.json",
            wanted="a transformers folder: config.json and model.safetensors",
            fix="download the whole folder of the model",
        )
    if options.weights is None:
        offline_if_unreachable()
    try:
        model, loading = kind.from_pretrained(
            source,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=options.weights is not None,
            output_loading_info=True,
        )
    except Exception as error:  # the hub's client has many ways to fail
        raise missing_weights(name, f"config.json and model.safetensors of {source}", error) from error
    missing = sorted(key for key in loading["missing_keys"] if needed in key)
    if missing:
        raise TeacherError(
            where=f"teacher {name}",
            found=f"{len(missing)} weights missing ({', '.join(missing[:3])})",
            wanted="all weights of the image encoder",
            fix="check the file",
        )
    return model, loading


def _processor_view(folder: Path | None, default: View) -> View:
    """The view that a transformers folder's preprocessor_config.json describes; `default` for what it leaves open."""
    file = folder / "preprocessor_config.json" if folder else None
    if file is None or not file.is_file():
        return default
    config = json.loads(file.read_text())
    size = config.get("size", {})
    resize: int | tuple[int, int] = default.resize
    if isinstance(size, dict) and "height" in size:
        resize = (int(size["height"]), int(size["width"]))
    elif isinstance(size, dict) and "shortest_edge" in size:
        resize = int(size["shortest_edge"])
    crop_size = config.get("crop_size")
    crop = (
        int(crop_size["height"])
        if config.get("do_center_crop") and isinstance(crop_size, dict)
        else default.crop
    )
    return View(
        resize,
        crop,
        "bilinear" if config.get("resample") == 2 else "bicubic",
        "pillow",
        tuple(config.get("image_mean", default.mean)),
        tuple(config.get("image_std", default.std)),
    )


def _head(model: nn.Module, name: str) -> str:
    """The path of the last linear layer."""
    linear: list[str] = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise TeacherError(
            where=f"teacher {name}",
            found="no linear layer",
            wanted="a linear head",
            fix="choose another model",
        )
    return linear[-1]

"""The torch teachers: CLIP through open_clip, FLAVA and others through transformers, torchvision, and our own runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bird.errors import TeacherError, UsageError, nearest
from bird.students import IMAGENET_MEAN, IMAGENET_STD, Student, load_student
from bird.teachers.base import PENULTIMATE, Teacher, TorchTeacher, View
from bird.teachers.claims import PixelScale
from bird.teachers.files import fill, first_line, missing_weights, offline_if_unreachable, read_state
from bird.teachers.layers import FeatureKind, Tap, stage_taps, token_taps

__all__ = ["Options", "clip", "flava", "hugging_face", "own_run", "torchvision_model"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Options:
    """What the person asked for beside the teacher's name."""

    def __init__(
        self,
        weights: Path | None,
        device: torch.device,
        precision: str,
        image_size: int | None,
        *,
        kind: FeatureKind | None = None,
        output: str | None = None,
        scale: PixelScale | None = None,
    ) -> None:
        self.weights, self.device, self.precision, self.image_size = weights, device, precision, image_size
        self.kind, self.output, self.scale = kind, output, scale


def clip(name: str, spec: str, options: Options) -> Teacher:
    """`MODEL/PRETRAINED` of open_clip: the image tower's projected embedding, not normalised."""
    import open_clip

    model_name, _, tag = spec.partition("/")
    known = open_clip.list_models()
    if model_name not in known:
        raise _unknown(name, model_name, "an open_clip model", known)
    published = open_clip.get_pretrained_cfg(model_name, tag) or {}
    if options.weights is not None:
        model = open_clip.create_model(model_name, load_weights=False, pretrained_text=False)
        state = read_state(options.weights, name)
        if not any(key.startswith("visual.") for key in state):  # the image tower alone
            state = {f"visual.{key}": value for key, value in state.items()}
        tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
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
        resize=(side, side) if published.get("resize_mode") == "squash" else side,
        crop=side,
        interpolation=published.get("interpolation", config.get("interpolation", "bicubic")),
        resizer="pillow",
        mean=tuple(published.get("mean", config.get("mean", CLIP_MEAN))),
        std=tuple(published.get("std", config.get("std", CLIP_STD))),
    )
    return _teacher(
        name,
        model.visual,
        view,
        {PENULTIMATE: Tap("projection"), **stage_taps(model.visual), **_clip_tokens(model.visual)},
        options,
        f"projected image embedding of {model_name}, not normalised",
    )


def flava(name: str, spec: str, options: Options) -> Teacher:
    """FLAVA's image encoder: the CLS token after the last layer norm, 768 wide."""
    from transformers import FlavaModel

    source = str(options.weights or spec)
    model, _ = _from_pretrained(FlavaModel, name, source, options, needed="image_model.")
    default = View((224, 224), 224, "bicubic", "pillow", CLIP_MEAN, CLIP_STD)
    view = _processor_view(source, None, options.weights is not None, name, default)
    side = model.config.image_config.image_size
    view = View((side, side), side, view.interpolation, "pillow", view.mean, view.std)
    taps = {PENULTIMATE: Tap("penultimate", read=_cls), **_hidden_tokens(model.image_model)}
    return _teacher(name, model.image_model, view, taps, options, "last_hidden_state[:, 0]")


def hugging_face(name: str, spec: str, options: Options) -> Teacher:
    """`REPO[@REVISION]`, a vision model of transformers: its pooler output, else its CLS token. Never runs remote code."""
    from transformers import AutoModel

    repo, _, revision = spec.partition("@")
    source = str(options.weights or repo)
    model, _ = _from_pretrained(AutoModel, name, source, options, revision=revision or None)
    view = _processor_view(source, revision or None, options.weights is not None, name, None)
    taps = {PENULTIMATE: Tap("penultimate", read=_pooled), **_hidden_tokens(model)}
    return _teacher(name, model, view, taps, options, "pooler_output, else last_hidden_state[:, 0]")


def torchvision_model(name: str, spec: str, options: Options) -> Teacher:
    """A torchvision classifier from a local state dict: the input of its last linear layer."""
    from torchvision import models

    known = list(models.list_models(module=models))
    if spec not in known:
        raise _unknown(name, spec, "a torchvision classifier", known)
    if options.weights is None:
        raise missing_weights(name, f"a state dict of torchvision's {spec}")
    state = read_state(options.weights, name)
    model = models.get_model(spec, weights=None)
    head = _head(model, name)
    if (weight := state.get(f"{head}.weight")) is not None:  # trained for another number of classes
        model = models.get_model(spec, weights=None, num_classes=len(weight))
    fill(model, state, name)
    taps = {PENULTIMATE: Tap("penultimate", head, of="input"), "logits": Tap("logits"), **stage_taps(model)}
    side = options.image_size or 224
    view = View(side * 256 // 224, side, "bilinear", "pillow", IMAGENET_MEAN, IMAGENET_STD)
    return _teacher(name, model, view, taps, options, "input of the last linear layer")


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
    taps = {
        PENULTIMATE: Tap("penultimate", read=_features),
        "logits": Tap("logits", read=_logits),
        **stage_taps(student.backbone, "backbone."),
    }
    return _teacher(f"run:{student.architecture}", student, view, taps, options, "features")


def _teacher(
    name: str,
    module: nn.Module,
    view: View,
    taps: Mapping[str, Tap],
    options: Options,
    reading: str,
) -> Teacher:
    return TorchTeacher(
        name,
        module,
        view,
        taps=taps,
        device=options.device,
        precision=options.precision,
        reading=reading,
    )


def _unknown(name: str, found: str, wanted: str, known: list[str]) -> UsageError:
    close = nearest(found, known, most=3)
    fix = f"did you mean {', '.join(close)}?" if close else f"see the library's own list of {len(known)}"
    return UsageError(where=f"--teacher {name}", found=repr(found), wanted=wanted, fix=fix)


def _features(output: Any) -> Tensor:
    return output.features  # type: ignore[no-any-return]


def _logits(output: Any) -> Tensor:
    return output.logits  # type: ignore[no-any-return]


def _hidden(output: Any) -> Tensor:
    return output.last_hidden_state  # type: ignore[no-any-return]


def _clip_tokens(tower: Any) -> dict[str, Tap]:
    """Of open_clip's ViT, where the last norm sees all tokens: not behind an attention pool, nor after an average."""
    if type(tower).__name__ != "VisionTransformer" or tower.attn_pool is not None or tower.final_ln_after_pool:
        return {}
    return token_taps("ln_post", lambda tokens: tokens)


def _hidden_tokens(model: Any) -> dict[str, Tap]:
    """Of transformers' ViTs; CLIP's norms its CLS token only, and leaves last_hidden_state as it was before."""
    if type(model).__name__ in ("ViTModel", "FlavaImageModel"):
        return token_taps("", _hidden)
    if type(model).__name__ == "CLIPVisionModel":
        norm = next(part for path, part in model.named_modules() if path.endswith("post_layernorm"))
        return token_taps("", lambda output: norm(output.last_hidden_state))
    return {}


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
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
            dtype=torch.float32,  # transformers would compute in the file's own precision
        )
    except Exception as error:  # the hub's client has many ways to fail
        raise missing_weights(name, f"config.json and model.safetensors of {source}", error) from error
    shapes = {str(key if isinstance(key, str) else key[0]) for key in loading["mismatched_keys"]}
    missing = sorted(key for key in {*loading["missing_keys"], *shapes} if needed in key)
    if missing:
        raise TeacherError(
            where=f"teacher {name}",
            found=f"{len(missing)} weights missing or of another shape ({', '.join(missing[:3])})",
            wanted="all weights of the image encoder",
            fix="check the file",
        )
    return model, loading


def _processor_view(source: str, revision: str | None, local: bool, name: str, default: View | None) -> View:
    """The view of the model's own preprocessor_config.json, local or on the hub, as transformers completes it.

    `default` where there is none; TeacherError without a default, or for a view that `View` cannot give.
    """
    from transformers import AutoImageProcessor

    def refuse(found: str) -> TeacherError:
        return TeacherError(
            where=f"teacher {name}, preprocessor_config.json",
            found=found,
            wanted="size, resample (bilinear or bicubic), image_mean and image_std of the model's images",
            fix="take the whole folder of the model, or write the file",
        )

    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            source, revision=revision, local_files_only=local, trust_remote_code=False
        )
    except Exception as error:  # the hub's client has many ways to fail
        if default is not None:
            return default
        raise refuse(f"nothing that can be read ({first_line(error)})") from None
    size, crop, filters = processor.size, None, {2: "bilinear", 3: "bicubic"}
    resize = size.shortest_edge or (size.height and size.width and (size.height, size.width))
    if processor.do_center_crop:
        crop = processor.crop_size.height
        if crop != processor.crop_size.width:
            raise refuse(f"a crop of {crop} x {processor.crop_size.width} pixels")
    if not resize or not processor.do_resize or processor.resample not in filters:
        raise refuse(f"size {size}, resample {processor.resample}, do_resize {processor.do_resize}")
    if not processor.do_rescale or round(1 / processor.rescale_factor) != 255:
        raise refuse(f"do_rescale {processor.do_rescale}, rescale_factor {processor.rescale_factor}")
    if not isinstance(resize, tuple) and crop is None:
        raise refuse("no crop, so images of several sizes")
    normal = processor.do_normalize
    return View(
        resize,
        crop,
        "bilinear" if filters[processor.resample] == "bilinear" else "bicubic",
        "pillow",
        tuple(processor.image_mean) if normal else (0.0, 0.0, 0.0),
        tuple(processor.image_std) if normal else (1.0, 1.0, 1.0),
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

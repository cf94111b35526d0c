"""CLIP and its kin through open_clip: `open_clip:MODEL/TAG`, `open_clip:hf-hub:REPO`, `open_clip:local-dir:FOLDER`.

Only the image tower is built and filled, so that a text tower's own files need not be at hand.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

from torch import Tensor

from bird.errors import TeacherError, UsageError
from bird.teachers.base import PENULTIMATE, Json, Options, Teacher
from bird.teachers.files import fill, missing_weights, offline_if_unreachable, read_state
from bird.teachers.layers import Tap, stage_taps, token_taps
from bird.teachers.proof import Reference, prove
from bird.teachers.views import view_of_transform

__all__ = ["clip"]

SCHEMES = ("hf-hub:", "local-dir:")
VIEW = ("mean", "std", "interpolation", "resize_mode")
NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
NO_DECODER = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


@final
class Described(NamedTuple):
    """A model as open_clip describes it: its configuration, how it sees, where its weights are, what was assumed."""

    name: str
    title: str
    model: dict[str, Any]
    view: dict[str, Any]
    weights: Path
    assumed: str = ""


def clip(name: str, spec: str, options: Options) -> Teacher:
    """The image tower's projected embedding, not normalised."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    options.without_size(name, "the model's")
    given = _from_scheme(name, spec, options) if spec.startswith(SCHEMES) else _from_tag(name, spec, options)
    model = _build(name, given.model)
    _fill(model, read_state(given.weights, name), name)
    view = PreprocessCfg(**{**given.view, "size": model.visual.image_size})
    transform = image_transform_v2(view, is_train=False)
    rules: dict[str, Json] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in vars(view).items()
    }
    described: dict[str, Json] = {
        key: value for key, value in given.model.items() if key in ("embed_dim", "vision_cfg")
    }
    return prove(
        given.name,
        model.visual,
        view_of_transform(transform),
        Reference(
            processor="open_clip's own transform",
            see=transform,
            say=lambda pixels: {PENULTIMATE: model.encode_image(pixels, normalize=False)},
            rules=rules,
            libraries=("open_clip_torch", "torch", "torchvision", "pillow"),
        ),
        taps={
            PENULTIMATE: Tap("projection", read=lambda out: out[0] if isinstance(out, tuple) else out),
            **stage_taps(model.visual),
            **_tokens(model.visual),
        },
        options=options,
        reading=f"projected image embedding of {given.title}, not normalised",
        config={**described, "quick_gelu": bool(given.model.get("quick_gelu"))},
        notes={"assumed": given.assumed} if given.assumed else {},
    )


# ---- what is asked for ------------------------------------------------------------------------------------------


def _from_tag(name: str, spec: str, options: Options) -> Described:
    """A model by its name, weights by their tag or from a file. Raises UsageError for a name or tag that is unknown."""
    import open_clip

    model, _, tag = spec.partition("/")
    known = open_clip.list_models()
    if model not in known:
        raise _unknown(name, model, "an open_clip model", known)
    tags = open_clip.list_pretrained_tags_by_model(model)
    published = {each: open_clip.get_pretrained_cfg(model, each) for each in tags}
    if tag and tags and tag not in tags:
        raise _unknown(name, tag, f"a tag of {model}: {', '.join(tags)}", tags)
    view, assumed = _view_of(name, model, tag, published)
    config = open_clip.get_model_config(model)
    if published.get(tag, {}).get("quick_gelu"):  # what the weights were trained with, whatever the model's name says
        config["quick_gelu"] = True
    path = options.weights or _download(name, model, tag, published.get(tag))
    return Described(name, model, config, view, path, assumed)


def _view_of(name: str, model: str, tag: str, published: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How the weights of a tag see; without a tag, how all weights of the model do."""
    views = {each: {key: config[key] for key in VIEW if key in config} for each, config in published.items()}
    if tag in views:
        return views[tag], ""
    if not views:
        return {}, f"open_clip's default view, as it knows no weights of {model}"
    first, *others = views.values()
    if any(other != first for other in others):
        raise UsageError(
            where=f"--teacher {name}",
            found="no tag, where weights of this model see in different ways",
            wanted=f"the tag whose view is yours: {', '.join(views)}",
            fix=f"say open_clip:{model}/TAG",
        )
    return first, f"the view of every published {model} ({', '.join(f'{k} {v}' for k, v in first.items())})"


def _download(name: str, model: str, tag: str, published: Any) -> Path:
    import open_clip

    source = (published or {}).get("hf_hub") or (published or {}).get("url") or "which it does not know"
    what = f"the weights {tag!r} of open_clip's {model}: {source}"
    if not published:
        raise missing_weights(name, what)
    offline_if_unreachable()
    try:
        with _quiet():
            return Path(open_clip.download_pretrained(published))
    except Exception as error:  # the hub's client has many ways to fail
        raise missing_weights(name, what, error) from error


def _from_scheme(name: str, spec: str, options: Options) -> Described:
    """`hf-hub:REPO`, or `local-dir:FOLDER`: open_clip_config.json and weights beside it."""
    import json

    from open_clip.pretrained import download_pretrained_from_hf

    scheme, _, where = spec.partition(":")
    if scheme == "local-dir":
        folder, shown = Path(where), f"open_clip:local-dir:{Path(where).name}"
        config, found = folder / "open_clip_config.json", options.weights or _weights_in(folder)
    else:
        shown = name
        offline_if_unreachable()
        try:
            with _quiet():
                config = Path(download_pretrained_from_hf(where, filename="open_clip_config.json"))
                found = options.weights or download_pretrained_from_hf(where)
        except Exception as error:  # the hub's client has many ways to fail
            raise missing_weights(name, f"open_clip_config.json and the weights of {where}", error) from error
    if not config.is_file() or not found:
        raise TeacherError(
            where=f"teacher {name}",
            found="no open_clip_config.json" if not config.is_file() else "no weights beside open_clip_config.json",
            wanted="a folder as open_clip publishes one: open_clip_config.json and open_clip_model.safetensors",
            fix="download the whole folder of the model",
        )
    try:
        written = json.loads(config.read_text())
        model, view = written["model_cfg"], written.get("preprocess_cfg", {})
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            where=f"teacher {name}, open_clip_config.json",
            found=f"no description of a model ({type(error).__name__}: {error})",
            wanted="JSON with model_cfg and preprocess_cfg",
            fix="download the file again",
        ) from error
    seen = {key: view[key] for key in (*VIEW, "fill_color") if key in view}
    return Described(shown, shown.partition(":")[2], model, seen, Path(found))


def _weights_in(folder: Path) -> Path | None:
    """open_clip's own file before any other, safetensors before what torch wrote."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    files.sort(key=lambda file: (not file.name.startswith("open_clip"), file.suffix != ".safetensors", file.name))
    return files[0] if files else None


# ---- the image tower --------------------------------------------------------------------------------------------


def _build(name: str, config: Mapping[str, Any]) -> Any:
    """The model with random weights, and with a text tower of a few numbers in place of its own."""
    import open_clip

    small = {"text_cfg": {**NO_TEXT}, **({"multimodal_cfg": {**NO_DECODER}} if "multimodal_cfg" in config else {})}
    kept = {key: value for key, value in config.items() if key != "custom_text"}
    kept["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        return kind(**{**kept, **small})
    except Exception as error:  # a configuration of another version of the library
        raise TeacherError(
            where=f"teacher {name}",
            found=f"a model that open_clip cannot build ({type(error).__name__}: {error})",
            wanted="a configuration that the installed open_clip knows",
            fix="install the open_clip that the model was published for",
        ) from error


def _fill(model: Any, state: dict[str, Tensor], name: str) -> None:
    """All weights of the image tower from a state dict of it, of the whole model, or of a published form of either."""
    from open_clip.convert import convert_state_dict

    if not any(key.startswith("visual.") for key in state):  # the image tower alone, or a form of other authors
        converted = convert_state_dict(model, state)
        state = (
            converted
            if any(k.startswith("visual.") for k in converted)
            else {f"visual.{k}": v for k, v in state.items()}
        )
    tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    fill(model.visual, tower, name)


def _tokens(tower: Any) -> dict[str, Tap]:
    """Of open_clip's ViT, where the last norm sees all tokens: not behind an attention pool, nor after an average."""
    if type(tower).__name__ != "VisionTransformer" or tower.attn_pool is not None or tower.final_ln_after_pool:
        return {}
    return token_taps("ln_post", lambda tokens: tokens)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs the failure that our error explains."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _unknown(name: str, found: str, wanted: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(found, known, n=3)
    fix = f"did you mean {', '.join(close)}?" if close else f"see the library's list of {len(known)}"
    return UsageError(where=f"--teacher {name}", found=repr(found), wanted=wanted, fix=fix)

"""The teachers by name. `TEACHERS` is the list; `load_teacher` loads one; `bird.teachers.base` says what they share.

Nothing in a weights file is executed: safetensors, or torch's tensors-only reader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import numpy as np

from bird.devices import choose_device
from bird.errors import BirdError, MissingWeightsError, TeacherError, UsageError, nearest, unknown_name
from bird.own import FORMS, Part, find, is_reference, registered
from bird.teachers.base import FeatureKind, Options, Teacher
from bird.teachers.claims import PixelScale, require_kind, require_side, require_takers
from bird.teachers.files import first_line
from bird.teachers.from_run import own_run
from bird.teachers.hub import Source, commit_of, explained, open_clip_source, timm_source, transformers_source
from bird.teachers.hugging_face import flava, hugging_face
from bird.teachers.onnx import OnnxTeacher
from bird.teachers.open_clip import clip
from bird.teachers.own import TAKES as OWN_TAKES
from bird.teachers.own import own_teacher
from bird.teachers.service import TAKES, Service, open_service
from bird.teachers.timm import timm_model
from bird.teachers.torchvision import torchvision_model

__all__ = [
    "TEACHERS",
    "Service",
    "Teacher",
    "TeacherKind",
    "expand_layers",
    "load_teacher",
    "open_service",
    "own_part",
    "takes_of",
]


def _onnx(name: str, spec: str, options: Options) -> Teacher:
    return OnnxTeacher(
        Path(spec),
        device=options.device,
        image_size=options.image_size,
        output=options.output,
        kind=options.kind,
        scale=options.scale,
    )


@final
@dataclasses.dataclass(frozen=True)
class TeacherKind:
    """One kind of teacher: what it is, where its weights come from, how it is loaded, what `load` is told (None: the
    part of the name after the colon), the options that it heeds (another one is refused), and where on the hub its
    weights are."""

    description: str
    weights: str
    load: Callable[[str, str, Options], Teacher]
    spec: str | None = None
    takes: frozenset[str] = frozenset({"weights", "precision", "image_size", "kind"})
    source: Callable[[str], Source | None] = lambda spec: None


ONNX_TAKES = frozenset({"image_size", "kind", "output", "mean", "std", "range"})
OPEN_CLIP = "downloaded by open_clip, or --weights FILE (a state dict)"
STATE_DICT = "--weights FILE (a state dict)"
TRANSFORMERS = "downloaded by transformers, or --weights FOLDER (config.json, model.safetensors)"
TIMM = "downloaded by timm, or --weights FILE (a state dict)"

TEACHERS: dict[str, TeacherKind] = {
    "clip-vit-b32": TeacherKind(
        "OpenAI CLIP ViT-B/32, projected image embedding, 512",
        OPEN_CLIP,
        clip,
        "ViT-B-32-quickgelu/openai",
        source=open_clip_source,
    ),
    "clip-rn50": TeacherKind(
        "OpenAI CLIP RN50, projected image embedding, 1024",
        OPEN_CLIP,
        clip,
        "RN50-quickgelu/openai",
        source=open_clip_source,
    ),
    "flava": TeacherKind(
        "FLAVA image encoder, CLS token, 768", TRANSFORMERS, flava, "facebook/flava-full", source=transformers_source
    ),
    "open_clip:": TeacherKind(
        "any open_clip model, open_clip:MODEL/TAG, hf-hub:REPO or local-dir:DIR",
        OPEN_CLIP,
        clip,
        source=open_clip_source,
    ),
    "hf:": TeacherKind(
        "an image model of transformers, hf:REPO[@REVISION]", TRANSFORMERS, hugging_face, source=transformers_source
    ),
    "timm:": TeacherKind("a timm model, timm:NAME[.TAG]", TIMM, timm_model, source=timm_source),
    "torchvision:": TeacherKind("a torchvision classifier, torchvision:ARCH[/WEIGHTS]", STATE_DICT, torchvision_model),
    "run:": TeacherKind(
        "a student of `bird train`, run:DIR",
        "in the run folder",
        own_run,
        takes=frozenset({"precision", "image_size", "kind"}),
    ),
    "onnx:": TeacherKind("a black box, onnx:FILE", "in the file", _onnx, takes=ONNX_TAKES),
}


def expand_layers(teacher: Teacher | Service, requested: Sequence[str]) -> tuple[str, ...]:
    """The layers that are asked for, in the order asked: "attention" and "maps" stand for those of every stage.

    Raises UsageError, with what the teacher has, for anything else.
    """
    found: list[str] = []
    for name in requested:
        matching = [layer for layer in teacher.layers if layer == name or layer.startswith(f"{name}.")]
        if not matching:
            wanted = f"layers of {teacher.name}: {', '.join(teacher.layers)}"
            raise unknown_name("--layers", name, teacher.layers, "choose from these", wanted=wanted)
        found += [layer for layer in matching if layer not in found]
    return tuple(found)


def takes_of(spec: str, part: Part | None = None) -> frozenset[str]:
    """The options that the teacher `spec` names, or the user's own `part`, heeds; of an address, those of a service. Raises
    UsageError."""
    if part is not None:
        return OWN_TAKES
    return TAKES if "://" in spec else _known(spec).takes


def own_part(given: object) -> Part | None:
    """The user's own teacher, where `given` is one or refers to one; None for built-in names and prefixes, addresses, and
    names that nobody has. Raises UsageError as `bird.own.find` does."""
    if isinstance(given, str):
        name, colon, _ = given.partition(":")
        built_in = "://" in given or f"{name}{colon}" in TEACHERS
        if built_in or not (is_reference(given) or given in registered("teacher")):
            return None
    return find("teacher", given, TEACHERS)


def load_teacher(
    spec: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    image_size: int | None = None,
    kind: FeatureKind | None = None,
    output: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    range_: tuple[float, float] | None = None,
    part: Part | None = None,
) -> Teacher:
    """The teacher that `spec` names, or the user's own `part`, ready to use.

    `weights` is a local file or folder instead of a download; `precision` is fp32, bf16 or fp16 (autocast); `image_size`
    is the input side in pixels where the model leaves it open; `kind` is what its vectors are; `output` names an output
    of a graph, `range_`, `mean` and `std` say what it wants its pixels to be (`bird.teachers.claims.PixelScale`). What it
    gives is compared with its own library's (`bird.teachers.proof`), and it is asked again for the same.
    Raises UsageError for an unknown name or an option that the teacher cannot honour, TeacherError for weights that are
    missing, damaged or do not fit, and for another vector than the library's.
    """
    takes = takes_of(spec, part)
    asked: dict[str, object] = {
        "weights": weights,
        "precision": None if precision == "fp32" else precision,
        "image_size": image_size,
    }
    asked |= {"kind": kind, "output": output, "mean": mean, "std": std, "range": range_}
    require_takers(spec, asked, takes)
    scale = PixelScale(mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0), *(range_ or (0.0, 1.0)))
    options = Options(weights, choose_device(device), precision, image_size, kind=kind, output=output, scale=scale)
    teacher = _load(_known(spec), spec, options) if part is None else own_teacher(part, options)
    if image_size is not None:
        _, height, width = teacher.preprocess(np.zeros((64, 64, 3), np.uint8)).shape
        require_side(spec, (height, width), image_size)
    require_kind(spec, teacher.feature_kind, kind)
    return teacher


def _load(kind: TeacherKind, spec: str, options: Options) -> Teacher:
    """The teacher, with a note of the commit that its weights came from; where they could not be had, why not."""
    told = kind.spec or spec.partition(":")[2]
    source = kind.source(told) if options.weights is None else None
    try:
        teacher = kind.load(spec, told, options)
    except MissingWeightsError as error:
        if source is None:
            raise
        raise explained(error, source) from error
    except (BirdError, MemoryError):
        raise
    except Exception as error:  # libraries of many hands
        raise TeacherError(
            where=f"teacher {spec}",
            found=f"a failure while it was loaded ({type(error).__name__}: {first_line(error)})",
            wanted="a model of images that its library can load",
            fix="see where with --debug; or export the vector that you want as an ONNX file (onnx:FILE)",
        ) from error
    if source is not None and (commit := commit_of(source)):
        teacher.notes = {**teacher.notes, "revision": f"{source.repository}@{commit}"}
    return teacher


def _known(spec: str) -> TeacherKind:
    name, colon, rest = spec.partition(":")
    found = TEACHERS.get(f"{name}{colon}")
    if found is None or (found.spec is None and not rest):
        names = [*TEACHERS, *registered("teacher")]
        close = nearest(spec, names) or nearest(f"{name}:", TEACHERS)
        if spec.endswith(".onnx"):
            close = [f"onnx:{spec}"]
        elif spec.rstrip(":").endswith(".py"):
            close = [f"{spec.rstrip(':')}:NAME"]
        raise UsageError(
            where="--teacher",
            found=repr(spec),
            wanted=f"one of {', '.join(names)}; or {FORMS}",
            fix=f"did you mean {close[0]}?" if close else "see `bird list teachers`",
        )
    return found

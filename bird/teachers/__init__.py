"""The teachers by name. `TEACHERS` is the list; `load_teacher` loads one; `bird.teachers.base` says what they share.

Nothing in a weights file is executed: safetensors, or torch's tensors-only reader.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

from bird.devices import choose_device
from bird.errors import BirdError, TeacherError, UsageError
from bird.teachers.base import Options, Teacher
from bird.teachers.files import first_line
from bird.teachers.hugging_face import flava, hugging_face
from bird.teachers.onnx import OnnxTeacher
from bird.teachers.open_clip import clip
from bird.teachers.own import own_run
from bird.teachers.proof import ask_again
from bird.teachers.service import Service, open_service
from bird.teachers.timm import timm_model
from bird.teachers.torchvision import torchvision_model

__all__ = ["TEACHERS", "Service", "Teacher", "TeacherKind", "expand_layers", "load_teacher", "open_service"]


def _onnx(name: str, spec: str, options: Options) -> Teacher:
    if options.precision != "fp32":
        raise UsageError(
            where="--precision",
            found=repr(options.precision),
            wanted="fp32: an ONNX file computes in its own precision",
            fix="leave --precision out, or export the file in the precision you want",
        )
    return OnnxTeacher(Path(spec), device=options.device, image_size=options.image_size)


@dataclasses.dataclass(frozen=True)
class TeacherKind:
    """One kind of teacher: what it is, where its weights come from, how it is loaded, and what `load` is told (None: the
    part of the name after the colon)."""

    description: str
    weights: str
    load: Callable[[str, str, Options], Teacher]
    spec: str | None = None


OPEN_CLIP = "downloaded by open_clip, or --weights FILE (a state dict)"
STATE_DICT = "--weights FILE (a state dict)"
TRANSFORMERS = "downloaded by transformers, or --weights FOLDER (config.json, model.safetensors)"
TIMM = "downloaded by timm, or --weights FILE (a state dict)"

TEACHERS: dict[str, TeacherKind] = {
    "clip-vit-b32": TeacherKind(
        "OpenAI CLIP ViT-B/32, projected image embedding, 512", OPEN_CLIP, clip, "ViT-B-32-quickgelu/openai"
    ),
    "clip-rn50": TeacherKind(
        "OpenAI CLIP RN50, projected image embedding, 1024", OPEN_CLIP, clip, "RN50-quickgelu/openai"
    ),
    "flava": TeacherKind("FLAVA image encoder, CLS token, 768", TRANSFORMERS, flava, "facebook/flava-full"),
    "open_clip:": TeacherKind(
        "any open_clip model, open_clip:MODEL/TAG, hf-hub:REPO or local-dir:DIR", OPEN_CLIP, clip
    ),
    "hf:": TeacherKind("an image model of transformers, hf:REPO[@REVISION]", TRANSFORMERS, hugging_face),
    "timm:": TeacherKind("a timm model, timm:NAME[.TAG]", TIMM, timm_model),
    "torchvision:": TeacherKind("a torchvision classifier, torchvision:ARCH[/WEIGHTS]", STATE_DICT, torchvision_model),
    "run:": TeacherKind("a student of `bird train`, run:DIR", "in the run folder", own_run),
    "onnx:": TeacherKind("a black box, onnx:FILE", "in the file", _onnx),
}


def expand_layers(teacher: Teacher | Service, requested: Sequence[str]) -> tuple[str, ...]:
    """The layers that are asked for, in the order asked: "attention" and "maps" stand for those of every stage.

    Raises UsageError, with what the teacher has, for anything else.
    """
    found: list[str] = []
    for name in requested:
        matching = [layer for layer in teacher.layers if layer == name or layer.startswith(f"{name}.")]
        if not matching:
            close = difflib.get_close_matches(name, teacher.layers, n=1)
            raise UsageError(
                where="--layers",
                found=repr(name),
                wanted=f"layers of {teacher.name}: {', '.join(teacher.layers)}",
                fix=f"did you mean {close[0]}?" if close else "choose from these",
            )
        found += [layer for layer in matching if layer not in found]
    return tuple(found)


def load_teacher(
    spec: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    image_size: int | None = None,
) -> Teacher:
    """The teacher that `spec` names, ready to use.

    `weights` is a local file or folder instead of a download; `precision` is fp32, bf16 or fp16 (autocast); `image_size`
    is the input side in pixels where the model leaves it open. What it gives is compared with its own library's
    (`bird.teachers.proof`), and it is asked again for the same. Raises UsageError for an unknown name, TeacherError for
    weights that are missing, damaged or do not fit, and for another vector than the library's.
    """
    name, colon, rest = spec.partition(":")
    kind = TEACHERS.get(f"{name}{colon}")
    if kind is None or (kind.spec is None and not rest):
        close = difflib.get_close_matches(spec, TEACHERS, n=1) or difflib.get_close_matches(f"{name}:", TEACHERS, n=1)
        raise UsageError(
            where="--teacher",
            found=repr(spec),
            wanted=f"one of {', '.join(TEACHERS)}",
            fix=f"did you mean {close[0]}?" if close else "see `bird list teachers`",
        )
    options = Options(weights, choose_device(device), precision, image_size)
    try:
        teacher = kind.load(spec, kind.spec or rest, options)
        ask_again(teacher, precision)
    except (BirdError, MemoryError):
        raise
    except Exception as error:  # libraries of many hands
        raise TeacherError(
            where=f"teacher {spec}",
            found=f"a failure while it was loaded ({type(error).__name__}: {first_line(error)})",
            wanted="a model of images that its library can load",
            fix="see where with --debug; or export the vector that you want as an ONNX file (onnx:FILE)",
        ) from error
    return teacher

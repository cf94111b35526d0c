"""Whether a teacher gives what its own library gives: every shortcut is compared with the library, or is not taken.

At load a few synthetic photos go through our view and through the library's own processor, and through our forward pass and
the library's own. Equal pixels (one level of 255, cosine .9999): our fast view is used. Others: the library's processor
itself. Vectors that differ (cosine below .9999) are refused. What was compared is kept as notes (`Teacher.notes`).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from bird.errors import TeacherError
from bird.images import decode_image
from bird.teachers.base import PENULTIMATE, Json, Options, TorchTeacher
from bird.teachers.batch_independence import keep_company
from bird.teachers.files import first_line
from bird.teachers.layers import Tap
from bird.teachers.views import LibraryView, View

__all__ = ["SAME", "Reference", "ask_again", "canaries", "prove"]

SAME = 0.9999  # cosine of what is the same
LEVEL = 1.01  # of 255: one level, and the rounding of floats
EXACT = 0.01
TURNED, GRAY = "480 x 360 photo turned by EXIF", "320 x 240 gray photo"
SIZES = {  # width, height: odd differences of sides, so that crops and rounding show
    "640 x 427 photo": (640, 427),
    "427 x 640 photo": (427, 640),
    "300 x 300 photo": (300, 300),
    "23 x 17 photo": (23, 17),
    GRAY: (320, 240),
    TURNED: (480, 360),
}


@final
@dataclasses.dataclass(frozen=True)
class Reference:
    """A teacher's own library.

    `see` gives what its network takes of an upright RGB image, without the batch; `say` what it documents of a batch of
    those, by layer; `rules` are the settings of its processor, which is called `processor`. Where it documents no vector
    but logits, `finish` makes these of the vector. The versions of `libraries` are recorded.
    """

    processor: str
    see: Callable[[Image.Image], Tensor]
    say: Callable[[Tensor], Mapping[str, Tensor]]
    rules: Mapping[str, Json]
    libraries: tuple[str, ...]
    finish: Callable[[Tensor], Tensor] | None = None


@final
class Seen(NamedTuple):
    """A canary as both see it, and how far apart at most, in levels of 255; `ours` is what the network would take of our
    view, None where we have none."""

    name: str
    image: NDArray[np.uint8]
    ours: Tensor | None
    theirs: Tensor
    levels: float = float("inf")
    cosine: float = 0.0

    @property
    def same(self) -> bool:
        """Within a level, and cosine .9999."""
        return self.levels <= LEVEL and self.cosine >= SAME

    @property
    def differs(self) -> str:
        """What differs, in words."""
        if self.same or self.ours is None:
            return ""
        if self.ours.shape != self.theirs.shape:
            return f"ours has the shape {_shape(self.ours)} for a {self.name}, and its own {_shape(self.theirs)}"
        return f"ours is {self.levels:.0f} of 255 levels apart on a {self.name} (cosine {self.cosine:.4f})"


@lru_cache(1)
def canaries() -> tuple[tuple[str, bytes], ...]:
    """Name and JPEG bytes of the photos that both sides look at: smooth colours, some noise, fixed."""
    found = []
    for seed, (name, size) in enumerate(SIZES.items()):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pixels = (np.asarray(coarse, np.int64) + rng.integers(-20, 21, (*size[::-1], 3))).clip(0, 255).astype(np.uint8)
        image, exif, buffer = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
        if name == TURNED:
            exif[0x0112] = 6
        (image.convert("L") if name == GRAY else image).save(buffer, "JPEG", quality=92, exif=exif)
        found.append((name, buffer.getvalue()))
    return tuple(found)


def prove(
    name: str,
    module: nn.Module,
    view: View | None,
    reference: Reference,
    *,
    taps: Mapping[str, Tap],
    options: Options,
    reading: str,
    config: Mapping[str, Json],
    notes: Mapping[str, str] | None = None,
) -> TorchTeacher:
    """The teacher that gives what `reference` gives, through `view` where that is equal.

    Raises TeacherError where the library cannot see or say anything, where the vectors differ, and for a vector that is not
    the image's alone.
    """
    module.eval().requires_grad_(False).to(options.device)
    seen = [_look(name, canary, data, view, reference) for canary, data in canaries()]
    judges = sorted(seen, key=lambda each: -each.levels if each.same else 0.0)[:2]  # where our view is furthest off
    told = [_say(name, each.theirs, reference, options) for each in judges]
    differs = next((each.differs for each in seen if each.differs), "") or _felt(name, judges, told, reference, options)
    used = LibraryView(reference.see, reference.rules) if view is None or differs else view
    teacher = TorchTeacher(
        name,
        module,
        used,
        taps=taps,
        device=options.device,
        precision=options.precision,
        reading=reading,
        config=config,
    )
    cosines = _compare(teacher, reference, judges, told, options)
    ask_again(teacher)
    teacher.notes = {
        "view": _view_note(reference, seen, differs, used is view),
        "vector": ", ".join(f"{layer} cosine {cosine:.7f}" for layer, cosine in cosines.items())
        + f" with its own library's, on {len(judges)} photos",
        **(notes or {}),
        "libraries": ", ".join(f"{each} {version(each)}" for each in reference.libraries),
    }
    return teacher


def ask_again(teacher: TorchTeacher) -> None:
    """Ask about a flat and a bright photo twice, and about the flat one by itself and beside stripes of black and white.
    Raises TeacherError for a vector that follows from chance, or from what else is in the batch."""
    bright = decode_image(canaries()[0][1], "canary")
    stripes = np.where(np.arange(len(bright))[:, None, None] % 16 < 8, np.uint8(0), np.uint8(255)) + 0 * bright
    flat, bright_view, striped = (teacher.preprocess(photo) for photo in (112 + bright // 8, bright, stripes))
    found = keep_company(
        lambda views: teacher.in_full(views, (PENULTIMATE,))[PENULTIMATE],
        torch.stack([flat, bright_view]),
        torch.stack([flat, striped]),
    )
    if not found.repeats:
        raise _refuse(
            teacher.name,
            f"another vector when asked for the same image again (they differ by {found.again:.1%})",
            "one vector an image",
            "turn off what the model draws at random in evaluation, such as masking",
        )
    if found.matters:
        raise _refuse(
            teacher.name,
            f"a vector that depends on what else is in the batch (it differs by {found.worst:.1%})",
            "one vector an image",
            "use the model before its quantisation, or one whose activations are quantised by fixed numbers",
        )


def _look(name: str, canary: str, data: bytes, view: View | None, reference: Reference) -> Seen:
    photo = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    try:
        theirs = reference.see(photo)
    except TeacherError:
        raise
    except Exception as error:  # a library of many hands
        raise _refuse(
            name,
            f"a failure of {reference.processor} on a {canary} ({type(error).__name__}: {first_line(error)})",
            "a processor of images",
            "take the processor's own file from the model's repository",
        ) from error
    image = decode_image(data, canary)
    ours = None if view is None else view.normalise(view(image)[None])[0]
    if view is None or ours is None or ours.shape != theirs.shape:
        return Seen(canary, image, ours, theirs)
    scale = 255.0 * torch.tensor(view.std)[:, None, None]
    return Seen(canary, image, ours, theirs, float(((ours - theirs).abs() * scale).max()), _cosine(ours, theirs))


def _felt(name: str, judges: list[Seen], told: list[dict[str, Tensor]], reference: Reference, options: Options) -> str:
    """What a level here and there does to the library's own vectors, in words where it is too much."""
    for each, library in zip(judges, told, strict=True):
        if each.ours is None or each.levels <= EXACT:
            continue
        ours = _say(name, each.ours, reference, options)
        if (cosine := min(_cosine(ours[layer], library[layer]) for layer in library)) < SAME:
            return f"ours gives a vector of cosine {cosine:.5f} on a {each.name}"
    return ""


def _say(name: str, view: Tensor, reference: Reference, options: Options) -> dict[str, Tensor]:
    try:
        with torch.inference_mode():
            said = {layer: value.float().cpu() for layer, value in reference.say(view[None].to(options.device)).items()}
    except TeacherError:
        raise
    except Exception as error:  # a library of many hands
        raise _refuse(
            name,
            f"a failure of its own library on its own view, {_shape(view)} "
            f"({type(error).__name__}: {first_line(error)})",
            "a model of images alone, and the processor that it was trained with",
            "take weights, config and processor from one repository",
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in said.values()):
        raise _refuse(name, "numbers that are not finite in its own library", "a finite vector", "check the weights")
    return said


def _compare(
    teacher: TorchTeacher, reference: Reference, judges: list[Seen], told: list[dict[str, Tensor]], options: Options
) -> dict[str, float]:
    """The lowest cosine of each layer. Raises TeacherError below .9999."""
    lowest: dict[str, float] = {}
    for seen, library in zip(judges, told, strict=True):
        asked = [layer for layer in library if layer in teacher.layers]
        ours = teacher.in_full(teacher.preprocess(seen.image)[None], [*dict.fromkeys([*asked, PENULTIMATE])])
        pairs = {layer: (ours[layer], library[layer]) for layer in asked}
        if reference.finish is not None:
            with torch.inference_mode():
                finished = reference.finish(ours[PENULTIMATE].to(options.device)).float().cpu()
            pairs[PENULTIMATE] = (finished, library["logits"])
        for layer, (mine, theirs) in pairs.items():
            cosine = _cosine(mine, theirs) if mine.numel() == theirs.numel() else float("nan")
            lowest[layer] = min(cosine, lowest.get(layer, 1.0))
            if not cosine >= SAME:
                raise _refuse(
                    teacher.name,
                    f"{layer}: cosine {cosine:.5f} between our vector and that of its own library",
                    f"at least {SAME}",
                    "export the vector that you want as an ONNX file (onnx:FILE), and report this model",
                )
    return lowest


def _view_note(reference: Reference, seen: list[Seen], differs: str, ours: bool) -> str:
    if not ours:
        return f"{reference.processor} itself" + (f", as {differs}" if differs else "")
    levels, cosine = max(each.levels for each in seen), min(each.cosine for each in seen)
    return (
        f"ours, equal to {reference.processor}: at most {levels:.0f} of 255 levels apart, cosine {cosine:.6f}, "
        f"on {len(seen)} photos"
    )


def _shape(view: Tensor) -> str:
    return " x ".join(map(str, view.shape))


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of two arrays as vectors; nan where one is not finite."""
    one, other = a.flatten().double(), b.flatten().double()
    return float(one @ other / (one.norm() * other.norm()).clamp_min(1e-300))


def _refuse(name: str, found: str, wanted: str, fix: str) -> TeacherError:
    return TeacherError(where=f"teacher {name}", found=found, wanted=wanted, fix=fix)

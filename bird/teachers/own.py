"""Teachers of your own: a function of a batch of pixels, a module, or an object of the `Teacher` protocol.

A function or module is called with float32 pixels (batch, 3, side, side), RGB in [0, 1], on the chosen device: the image
turned as EXIF says, its short side resized to `side` (bilinear with antialias), and the centre of it. It answers with
vectors (batch, dim). `side` is --image-size, else the object's own `image_size`, else 224. It is asked twice for the same
and in other company, as every teacher is.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from bird.errors import BirdError, TeacherError, UsageError
from bird.own import Part, wrong_part
from bird.teachers.base import PENULTIMATE, Options, Teacher, TorchTeacher
from bird.teachers.batch_independence import keep_company
from bird.teachers.claims import kind_of
from bird.teachers.layers import Tap
from bird.teachers.proof import ask_again
from bird.teachers.views import Json, View
from bird.weights import digest_of_state, first_line

__all__ = ["TAKES", "own_teacher"]

SIDE = 224
TAKES = frozenset({"precision", "image_size", "kind"})
WANTED = "a function of pixels (batch, 3, side, side) that gives vectors (batch, dim), an nn.Module, or a Teacher"


def own_teacher(part: Part, options: Options) -> Teacher:
    """The teacher that the part is, or that it makes: a class is called without arguments.

    Its identity is its weights and the part's code: both enter a cache's fingerprint. Raises UsageError for what is no
    teacher, TeacherError for a failure, for answers of another shape and for those that do not repeat.
    """
    value = _made(part)
    if isinstance(value, Teacher):
        return _of_protocol(part, value, options)
    side = options.image_size or _side(part, value)
    module = value if isinstance(value, nn.Module) else _Called(value)
    module.eval().requires_grad_(False).to(options.device)
    view, name = View(side, side), part.label
    taps = {PENULTIMATE: Tap("penultimate", read=lambda answer: _vector(part, answer, side))}
    noise = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    try:
        with torch.inference_mode():
            answer = module(view.normalise(torch.stack([view(each) for each in noise])).to(options.device))
    except Exception as error:  # whatever a stranger's code does
        raise _refuse(
            part,
            f"a failure on two images of {side} x {side} ({type(error).__name__}: {first_line(error)})",
            side=side,
        ) from error
    vectors = _vector(part, answer, side).float().cpu().numpy()
    if vectors.ndim != 2 or len(vectors) != 2:
        raise _refuse(part, f"an answer of shape {vectors.shape} for two images", side=side)
    if bad := int((~np.isfinite(vectors)).sum()):
        found = f"{bad} of {vectors.size} numbers that are not finite, in the answer for two images"
        raise _refuse(part, found, "finite numbers", side=side)
    kind = kind_of(vectors, options.kind, "penultimate", lambda found, wanted, fix: _refuse(part, found, wanted, fix))
    taps = {PENULTIMATE: Tap(kind, read=taps[PENULTIMATE].read)}
    teacher = TorchTeacher(
        name,
        module,
        view,
        taps=taps,
        device=options.device,
        precision=options.precision,
        config=_config(part, module),
    )
    ask_again(teacher)
    return _told(part, teacher)


@final
class _Called(nn.Module):
    """A function as a module, so that it can be tapped."""

    def __init__(self, called: Any) -> None:
        super().__init__()
        self.called = called

    def forward(self, pixels: Tensor) -> Any:
        """The function's answer."""
        return self.called(pixels)


def _made(part: Part) -> Any:
    value = part.value
    if inspect.isclass(value):
        if not issubclass(value, Teacher | nn.Module) and "__call__" not in vars(value):
            raise wrong_part(part, WANTED)
        try:
            value = value()
        except Exception as error:  # whatever a stranger's code does
            raise _refuse(
                part, f"a failure when it was called ({type(error).__name__}: {first_line(error)})"
            ) from error
    if not (isinstance(value, Teacher) or callable(value)):
        raise wrong_part(part, WANTED)
    return value


def _of_protocol(part: Part, teacher: Teacher, options: Options) -> Teacher:
    """A Teacher of the user's: its views and answers are looked at, and asked for again."""
    if options.image_size is not None or options.precision != "fp32":
        raise UsageError(
            where=part.where,
            found="--image-size or --precision",
            wanted="none: a Teacher decides both by itself",
            fix="leave it out",
        )
    missing = [
        name for name in ("name", "dim", "feature_kind", "weights_digest", "preprocessing", "layers", "on_cpu")
        if not hasattr(teacher, name)
    ]  # fmt: skip
    if missing or PENULTIMATE not in teacher.layers:
        raise _refuse(
            part, f"no {', '.join(missing) or 'layer penultimate'}", "all that bird.teachers.base.Teacher names"
        )
    rng = np.random.default_rng(0)
    images = [rng.integers(low, high, (96, 128, 3), dtype=np.uint8) for low, high in ((0, 256), (90, 160), (200, 256))]
    try:
        one, two, other = (teacher.preprocess(image) for image in images)
        found = keep_company(teacher.features, torch.stack([one, two]), torch.stack([one, other]))
    except BirdError:
        raise
    except Exception as error:  # whatever a stranger's code does
        raise _refuse(part, f"a failure on three images ({type(error).__name__}: {first_line(error)})") from error
    if found.vectors.shape != (2, teacher.dim):
        raise _refuse(part, f"vectors of shape {tuple(found.vectors.shape)}", f"(2, {teacher.dim}), as `dim` says")
    if not found.repeats or found.matters:
        why = "what else is in the batch" if found.repeats else "chance"
        raise _refuse(part, f"a vector that depends on {why}", "one vector an image, whatever the batch")
    teacher.config = {**teacher.config, **_config(part)}
    return _told(part, teacher)


def _side(part: Part, value: Any) -> int:
    side = getattr(value, "image_size", SIDE)
    if not isinstance(side, int) or side < 8:
        raise _refuse(part, f"image_size = {side!r}", "a whole number of pixels, 8 or more")
    return side


def _vector(part: Part, answer: Any, side: int) -> Tensor:
    if isinstance(answer, np.ndarray):
        answer = torch.from_numpy(answer)
    if not isinstance(answer, Tensor):
        raise _refuse(part, f"an answer of type {type(answer).__name__}", side=side)
    return answer


def _config(part: Part, module: nn.Module | None = None) -> dict[str, Json]:
    """What enters the fingerprint beside the weights: the code, and the layers of a module."""
    own: dict[str, Json] = {**part.identity()}
    if module is not None and not isinstance(module, _Called):
        own["layers"] = hashlib.sha256(repr(module).encode()).hexdigest()[:12]
    return {"own": own}


def _told(part: Part, teacher: Teacher) -> Teacher:
    code = f"{part.attribute} of {part.file or 'no file'}, sha256 {part.sha256 or 'unknown'}"
    told = {"code": code}
    if teacher.weights_digest == digest_of_state({}):
        told["weights"] = "none are known: what the code loads by itself is not in the fingerprint"
    teacher.notes = {**teacher.notes, **told}
    return teacher


def _refuse(
    part: Part,
    found: str,
    wanted: str = "vectors (batch, dim), float32",
    fix: str = "",
    *,
    side: int = SIDE,
) -> TeacherError:
    fix = fix or f"call it on torch.rand(2, 3, {side}, {side})"
    return TeacherError(where=part.where, found=found, wanted=wanted, fix=fix)

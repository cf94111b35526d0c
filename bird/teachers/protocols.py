"""How images become a request to an embeddings service, and its answer becomes vectors: one class a protocol."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from bird.errors import TeacherError
from bird.images import decode_image
from bird.teachers.base import FeatureKind, Json, View
from bird.teachers.claims import names_class_scores

__all__ = ["KServe", "OpenAI", "Protocol", "Refused", "Unusable", "Vectors", "seconds_of"]

Vectors = NDArray[np.float32]


ORIGINAL: Mapping[str, Json] = {"sent": "original bytes where every reader sees the sample's pixels, else PNG of those"}
REQUEST_BYTES = 32e6  # servers refuse longer ones, at 64 MB by default or less
FLOAT_BYTES = 21  # a pixel of [0, 1] in JSON, at most


class Unusable(Exception):
    """One request's answer that may be better the next time; `after` seconds if the service said when."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@final
class Refused(Unusable):
    """What was sent is refused: the same again would be, a part of it perhaps not."""


class Protocol(ABC):
    """How images become a request, and an answer becomes vectors. `batch` is how many a request holds at most, `sent` what
    is sent of each, as a cache's fingerprint says it; `sides` is height and width of the pixels that are sent, or None where
    images go out encoded."""

    name: str
    batch: int
    sides: tuple[int, int] | None = None
    sent: Mapping[str, Json]

    @abstractmethod
    def request(self, images: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
        """Path (after the base address) and JSON body."""

    @abstractmethod
    def read(self, answer: Any, count: int) -> dict[int, Vectors]:
        """Position -> vector, for the positions that the answer holds beyond doubt. Raises Unusable, or anything that a
        badly shaped answer leads to."""

    def bytes_sent(self, count: int, size: int) -> float:
        """About how many bytes `count` images of `size` bytes together make in requests."""
        return size * 4 / 3  # base64


@final
class OpenAI(Protocol):
    """POST /embeddings with data URIs; answers carry an index each."""

    name, batch, sent = "openai", 32, ORIGINAL

    def __init__(self, model: str) -> None:
        self._model = model

    def request(self, images: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
        """See Protocol.request."""
        uris = [f"data:{_mime(image)};base64,{base64.b64encode(image).decode()}" for image in images]
        body = {"model": self._model, "modality": "image", "encoding_format": "base64", "input": uris}
        return "/embeddings", body

    def read(self, answer: Any, count: int) -> dict[int, Vectors]:
        """See Protocol.read. A doubled index is nobody's."""
        found: dict[int, Vectors] = {}
        doubled = set()
        for item in answer["data"]:
            index, value = item["index"], item["embedding"]
            if not isinstance(index, int) or not 0 <= index < count:
                raise Unusable(f"an answer with index {index!r} for {count} images")
            if index in found:
                doubled.add(index)
            raw = base64.b64decode(value, validate=True) if isinstance(value, str) else None
            found[index] = np.frombuffer(raw, "<f4") if raw is not None else np.asarray(value, np.float32)
        return {index: vector for index, vector in found.items() if index not in doubled}


@final
class KServe(Protocol):
    """POST /v2/models/MODEL/infer. The model's own description says whether it takes encoded images (BYTES, as base64) or
    pixels: FP32 (n, 3, height, width), float32 in [0, 1], RGB, resized to height x width; what else its network wants
    (mean and deviation, say) is the served model's to do."""

    name, batch, sent = "kserve", 32, ORIGINAL

    def __init__(
        self,
        model: str,
        metadata: Mapping[str, Any],
        output: str | None,
        image_size: int | None,
        kind: FeatureKind | None = None,
    ) -> None:
        """Raises TeacherError for a model that takes neither."""
        self._model, self._logits = model, kind == "logits"
        self._path, self._output, self._view = f"/v2/models/{model}/infer", output, None
        given = (metadata.get("inputs") or [{}])[0]
        self._input, self._datatype = {name: given.get(name) for name in ("name", "datatype")}, given.get("datatype")
        shape = [int(side) for side in given.get("shape", [])]
        if self._datatype == "FP32" and len(shape) == 4 and shape[1] in (3, -1):
            height, width = (side if side > 0 else image_size or 224 for side in shape[2:])
            self._view, self.sides = View((height, width)), (height, width)
            self.batch = int(max(1, min(32, REQUEST_BYTES // (3 * height * width * FLOAT_BYTES))))
            self.sent = {"sent": "float32 pixels in [0, 1], RGB", "view": self._view.canonical()}
        elif self._datatype != "BYTES":
            raise TeacherError(
                where=f"teacher kserve:{model}",
                found=f"a model whose first input is {self._datatype} {shape}"
                if given
                else "a model that names no input",
                wanted="BYTES (encoded images), or FP32 [-1, 3, height, width]",
                fix="serve it so, and declare the input in the model's description",
            )
        if output:
            self.sent = {**self.sent, "output": output}

    def request(self, images: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
        """See Protocol.request."""
        given: dict[str, Any] = {**self._input}
        if self._view is None:
            data = [base64.b64encode(image).decode() for image in images]
            given |= {"shape": [len(images), 1], "parameters": {"content_type": "base64"}, "data": data}
        else:
            views = torch.stack([self._view(decode_image(image, "image")) for image in images])
            pixels = self._view.normalise(views).numpy()
            given |= {"shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        asked = {"outputs": [{"name": self._output}]} if self._output else {}
        return self._path, {"inputs": [given], **asked}

    def bytes_sent(self, count: int, size: int) -> float:
        """See Protocol.bytes_sent."""
        if self._view is None:
            return super().bytes_sent(count, size)
        height, width = self._view.sides
        return count * 3 * height * width * FLOAT_BYTES

    def read(self, answer: Any, count: int) -> dict[int, Vectors]:
        """See Protocol.read: the output that was asked for, else the first of one vector an image; with --kind logits one
        called so, and without it none called so. Raises TeacherError where it has nothing but such."""
        named = self._output
        vectors = [each for each in answer["outputs"] if (each["name"] == named if named else len(each["shape"]) == 2)]
        if not vectors:
            raise Unusable(f"no output {named or 'of one vector an image'}")
        chosen = [each for each in vectors if named or names_class_scores(each["name"]) == self._logits]
        if not (chosen or self._logits):
            raise TeacherError(
                where=f"teacher kserve:{self._model}",
                found=f"no vector an image but {vectors[0]['name']}: numbers for classes",
                wanted="features",
                fix="say --kind logits if these are what you want, or name another output with --output",
            )
        output = (chosen or vectors)[0]
        values = np.asarray(output["data"], np.float32).reshape(output["shape"])
        if len(values) != count:
            raise Unusable(f"{len(values)} vectors for {count} images")
        return dict(enumerate(values.reshape(count, -1)))


def _mime(image: bytes) -> str:
    starts = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp"}
    return next(
        (f"image/{kind}" for start, kind in starts.items() if image.startswith(start)), "application/octet-stream"
    )


def seconds_of(said: str | None) -> float:
    """Retry-After, in seconds: a number, or a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, float(said or 0))
    except ValueError:
        try:
            return max(0.0, (parsedate_to_datetime(str(said)) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return 0.0

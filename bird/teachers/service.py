"""A black box behind HTTP: images go out as their original bytes, vectors come back, nothing is believed unchecked.

    http+openai://HOST[:PORT][/PREFIX]/MODEL    POST PREFIX/embeddings        (also http://HOST/PREFIX?model=MODEL)
    http+kserve://HOST[:PORT]/MODEL             POST /v2/models/MODEL/infer   (KServe v2, Open Inference Protocol)

and the same with https. A failed request is retried, then halved, down to the image that cannot be had, which is left
out; valid parts of a bad answer are kept, so that no image is asked for twice without need.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bird.errors import TeacherError, UsageError
from bird.images import decode_image
from bird.teachers.base import PENULTIMATE, FeatureKind, Json, LayerSpec, View

__all__ = ["Service", "canary_images", "open_service"]

CANARIES = 8
SENT = "original bytes, or PNG of altered pixels"
SAME = 0.9999  # cosine between a canary's vectors then and now
RETRY = {408, 425, 429, 500, 502, 503, 504}
Vectors = NDArray[np.float32]


class Unusable(Exception):
    """One request's answer that may be better the next time; `after` seconds if the service said when."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Protocol(ABC):
    """How images become a request, and an answer becomes vectors."""

    name: str
    batch: int

    @abstractmethod
    def request(self, images: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
        """Path (after the base address) and JSON body."""

    @abstractmethod
    def read(self, answer: Any, count: int) -> dict[int, Vectors]:
        """Position -> vector, for the positions that the answer holds beyond doubt. Raises Unusable, or anything that a
        badly shaped answer leads to."""


@final
class OpenAI(Protocol):
    """POST /embeddings with data URIs; answers carry an index each."""

    name, batch = "openai", 32

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
    """POST /v2/models/MODEL/infer with float32 pixels in [0, 1] or encoded images, as the model's metadata asks for."""

    name, batch = "kserve", 32

    def __init__(self, model: str, metadata: Mapping[str, Any], output: str | None, image_size: int | None) -> None:
        self._path, self._input = f"/v2/models/{model}/infer", metadata["inputs"][0]
        self._output = output
        sides = [int(side) for side in self._input["shape"][-2:]] if self._input["datatype"] == "FP32" else [0, 0]
        self._view = View(tuple(side if side > 0 else image_size or 224 for side in sides))  # type: ignore[arg-type]

    def request(self, images: Sequence[bytes]) -> tuple[str, dict[str, Any]]:
        """See Protocol.request."""
        given: dict[str, Any] = {"name": self._input["name"], "datatype": self._input["datatype"]}
        if self._input["datatype"] == "BYTES":
            data = [base64.b64encode(image).decode() for image in images]
            given |= {"shape": [len(images), 1], "parameters": {"content_type": "base64"}, "data": data}
        else:
            pixels = np.stack([self._view(decode_image(image, "image")).numpy() for image in images])
            given |= {"shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        asked = {"outputs": [{"name": self._output}]} if self._output else {}
        return self._path, {"inputs": [given], **asked}

    def read(self, answer: Any, count: int) -> dict[int, Vectors]:
        """See Protocol.read: the output that was asked for, else the first of one vector an image."""
        for output in answer["outputs"]:
            wanted = output["name"] == self._output if self._output else len(output["shape"]) == 2
            if wanted:
                values = np.asarray(output["data"], np.float32).reshape(output["shape"])
                if len(values) != count:
                    raise Unusable(f"{len(values)} vectors for {count} images")
                return dict(enumerate(values.reshape(count, -1)))
        raise Unusable(f"no output {self._output or 'of one vector an image'}")


@final
class Service:
    """An embeddings service. `canaries` are its vectors of eight fixed images: their bytes identify the far model
    (`weights_digest`), and a later difference stops the run. `asked` counts images that the service answered for."""

    def __init__(
        self,
        name: str,
        base: str,
        protocol: Protocol,
        client: Any,
        *,
        kind: FeatureKind | None,
        per_minute: float | None,
        attempts: int,
        longest_wait: float,
    ) -> None:
        weakref.finalize(self, client.close)
        self.name, self._base, self._protocol, self._client = name, base, protocol, client
        self._pause, self._next = 60.0 / per_minute if per_minute else 0.0, 0.0
        self._attempts, self._longest_wait = attempts, longest_wait
        self.asked = self.requests = self.dim = 0
        self.canaries = self._canary_vectors()
        self.dim = self.canaries.shape[1]
        unit = bool(np.allclose(np.linalg.norm(self.canaries, axis=1), 1.0, atol=1e-3))
        if unit and kind in ("penultimate", "projection"):
            raise self._error("vectors that all have length 1", f"raw {kind} vectors", "say --kind projection_l2")
        self.feature_kind: FeatureKind = kind or ("projection_l2" if unit else "projection")
        self.layers = {PENULTIMATE: LayerSpec((self.dim,), self.feature_kind)}
        self.preprocessing: Mapping[str, Json] = {
            "sent": "original bytes, or PNG of altered pixels",
            "protocol": protocol.name,
            "canaries": 1,
        }

    @property
    def weights_digest(self) -> str:
        """What stands for weights that nobody here holds: the vectors of the canary images, as first seen."""
        return f"canaries:{hashlib.sha256(self.canaries.tobytes()).hexdigest()}"

    def embed(self, images: Sequence[bytes]) -> tuple[Vectors, dict[int, str]]:
        """Vectors (n, dim), NaN where none could be had, and for those positions why. Raises TeacherError where the
        service refuses altogether."""
        vectors = np.full((len(images), self.dim), np.nan, np.float32)
        failed: dict[int, str] = {}
        for start in range(0, len(images), self._protocol.batch):
            part = range(start, min(start + self._protocol.batch, len(images)))
            self._embed_part([*part], images, vectors, failed)
        return vectors, failed

    def adopt(self, canaries: Vectors) -> None:
        """Take the canary vectors of an earlier run as its own if the service still gives them. Raises TeacherError."""
        self._require_same(canaries, self.canaries)
        self.canaries = canaries

    def check_canaries(self) -> None:
        """Raise TeacherError if the service has become another one."""
        self._require_same(self.canaries, self._canary_vectors())

    def estimate(self, count: int, size: int, price_per_1000: float | None) -> dict[str, Any]:
        """What asking for `count` images of `size` bytes together will take."""
        requests = -(-count // self._protocol.batch)
        cost = None if price_per_1000 is None else count * price_per_1000 / 1000
        minutes = requests * self._pause / 60 if self._pause else None
        return {
            "images": count,
            "requests": requests,
            "megabytes": size * 4 / 3e6,
            "minutes at least": minutes,
            "cost": cost,
        }

    def _embed_part(self, part: list[int], images: Sequence[bytes], vectors: Vectors, failed: dict[int, str]) -> None:
        left = part

        def attempt() -> None:
            nonlocal left
            found = self._request([images[position] for position in left])
            for index, vector in found.items():
                vectors[left[index]] = vector
            left = [position for index, position in enumerate(left) if index not in found]
            if left:
                raise Unusable(f"no usable vector for {len(left)} of the images asked")

        try:
            for attempted in Retrying(
                stop=stop_after_attempt(self._attempts),
                wait=self._wait,
                retry=retry_if_exception_type(Unusable),
                reraise=True,
            ):
                with attempted:
                    attempt()
        except Unusable as error:
            if len(left) == 1:
                failed[left[0]] = f"the service gave no vector: {error}"
                return
            half = len(left) // 2
            for smaller in (left[:half], left[half:]):
                self._embed_part(smaller, images, vectors, failed)

    def _wait(self, state: RetryCallState) -> float:
        said = getattr(state.outcome and state.outcome.exception(), "after", 0.0)
        backoff = float(wait_random_exponential(multiplier=self._longest_wait / 16, max=self._longest_wait)(state))
        return min(max(float(said), backoff), max(self._longest_wait, float(said)))

    def _request(self, images: Sequence[bytes]) -> dict[int, Vectors]:
        """The usable vectors of one request, by position."""
        import httpx2

        path, body = self._protocol.request(images)
        if (pause := self._next - time.monotonic()) > 0:
            time.sleep(pause)
        self._next = time.monotonic() + self._pause
        self.requests += 1
        try:
            response = self._client.post(self._base + path, json=body)
            self._require_willing(response)
            answer = response.json()
        except httpx2.HTTPError as error:
            raise Unusable(type(error).__name__) from None
        except ValueError:
            raise Unusable("an answer that is not JSON") from None
        try:
            found = self._protocol.read(answer, len(images))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Unusable(f"an answer of another shape ({type(error).__name__})") from None
        dim = self.dim or (len(next(iter(found.values()))) if found else 0)
        good = {i: v for i, v in found.items() if v.ndim == 1 and len(v) == dim and np.isfinite(v).all()}
        self.asked += len(good)
        return good

    def _require_willing(self, response: Any) -> None:
        code = int(response.status_code)
        if 200 <= code < 300:
            return
        if code in RETRY:
            raise Unusable(f"status {code}", _seconds(response.headers.get("retry-after")))
        found = "a redirect" if 300 <= code < 400 else f"status {code}"
        fix = "give the final address: keys do not travel" if 300 <= code < 400 else "check address, model and key"
        raise self._error(found, "vectors", fix)

    def _canary_vectors(self) -> Vectors:
        images = canary_images()
        found: dict[int, Vectors] = {}
        for _ in range(self._attempts * 2):
            left = [index for index in range(CANARIES) if index not in found]
            try:
                answer = self._request([images[index] for index in left])
                found |= {left[index]: vector for index, vector in answer.items()}
            except Unusable as error:
                time.sleep(min(max(error.after, self._longest_wait / 8), 60.0))
            if len(found) == CANARIES and len({len(vector) for vector in found.values()}) == 1:
                return np.stack([found[index] for index in range(CANARIES)])
        raise self._error(
            "no vectors for the eight test images", "an answer", "check address and model, or try again later"
        )

    def _require_same(self, then: Vectors, now: Vectors) -> None:
        if then.shape != now.shape:
            raise self._error(f"vectors of {now.shape[1]} numbers", f"{then.shape[1]}, as before", DRIFT)
        cosine = (then * now).sum(1) / np.maximum(np.linalg.norm(then, axis=1) * np.linalg.norm(now, axis=1), 1e-30)
        if not (cosine >= SAME).all():
            raise self._error(
                f"other vectors for the same test images (cosine {cosine.min():.4f})", "the same model", DRIFT
            )

    def _error(self, found: str, wanted: str, fix: str) -> TeacherError:
        return TeacherError(where=f"teacher {self.name}", found=found, wanted=wanted, fix=fix)


DRIFT = "the service runs another model now: start another cache (what is committed is kept)"


def open_service(
    spec: str,
    *,
    key_env: str | None = None,
    kind: FeatureKind | None = None,
    output: str | None = None,
    image_size: int | None = None,
    per_minute: float | None = None,
    timeout: float = 60.0,
    attempts: int = 6,
    longest_wait: float = 30.0,
) -> Service:
    """The service that `spec` names, after a first look at its canary vectors. The key comes from the environment
    variable `key_env` alone, and goes nowhere but into the request's header.

    Raises UsageError for an address without a model or a variable that is not set, TeacherError.
    """
    import httpx2

    scheme, _, how = spec.partition("://")[0].partition("+")
    address = urlsplit(f"{scheme}://{spec.partition('://')[2]}")
    path, model = address.path.rstrip("/"), parse_qs(address.query).get("model", [""])[0]
    if how:
        path, _, model = path.rpartition("/")
    if not model or not address.netloc or address.username or how not in ("", "openai", "kserve"):
        wanted = (
            "http+openai://HOST/MODEL, http+kserve://HOST/MODEL or http://HOST/PATH?model=MODEL, without a password"
        )
        raise UsageError(where="--teacher", found="an address that does not fit", wanted=wanted, fix="write it so")
    headers = {}
    if key_env is not None:
        if not os.environ.get(key_env):
            raise UsageError(
                where="--api-key-env", found=f"no variable {key_env}", wanted="the key in it", fix="set it"
            )
        headers["Authorization"] = f"Bearer {os.environ[key_env]}"
    client = httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False, trust_env=False)
    base = f"{scheme}://{address.netloc}{path}"
    protocol: Protocol = OpenAI(model)
    if how == "kserve":
        try:
            response = client.get(f"{base}/v2/models/{model}")
            response.raise_for_status()
            protocol = KServe(model, response.json(), output, image_size)
        except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            client.close()
            found = f"no description of the model ({type(error).__name__})"
            raise TeacherError(
                where=f"teacher {model}", found=found, wanted="its metadata", fix="check the address"
            ) from None
    return Service(
        f"{protocol.name}:{model}",
        base,
        protocol,
        client,
        kind=kind,
        per_minute=per_minute,
        attempts=attempts,
        longest_wait=longest_wait,
    )


def canary_images() -> list[bytes]:
    """Eight synthetic pictures, 64 x 64, as PNG: waves of different lengths and directions."""
    rows, columns = np.mgrid[0:64, 0:64]
    images = []
    for number in range(CANARIES):
        waves = [np.sin(rows * (number + 1) * 0.05 * (c + 1) + columns * (8 - number) * 0.04) for c in range(3)]
        pixels = np.stack([np.round(127.5 + 127.5 * wave) for wave in waves], axis=2).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def _mime(image: bytes) -> str:
    if image.startswith(b"\xff\xd8"):
        return "image/jpeg"
    return "image/png" if image.startswith(b"\x89PNG") else "application/octet-stream"


def _seconds(said: str | None) -> float:
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

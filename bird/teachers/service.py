"""A black box behind HTTP: images go out (as their original bytes, or as pixels where a model takes nothing else), vectors
come back, nothing is believed unchecked.

    http+openai://HOST[:PORT][/PREFIX]/MODEL    POST PREFIX/embeddings        (also http://HOST/PREFIX?model=MODEL)
    http+kserve://HOST[:PORT]/MODEL[?output=O]  POST /v2/models/MODEL/infer   (KServe v2, Open Inference Protocol)

and the same with https. A failed request is retried, then halved, down to the image that cannot be had, which is left
out; valid parts of a bad answer are kept, so that no image is asked for twice without need.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from bird.errors import BirdError, TeacherError, UsageError, nearest, unknown_name
from bird.teachers.base import PENULTIMATE, FeatureKind, Json, LayerSpec
from bird.teachers.canaries import alike, byte_share, canary_images, twin_images
from bird.teachers.claims import kind_of, require_side, require_takers
from bird.teachers.protocols import REQUEST_BYTES, KServe, OpenAI, Protocol, Refused, Unusable, Vectors, seconds_of

__all__ = ["TAKES", "Service", "canary_images", "open_service"]

SAME = 0.9999  # cosine between a canary's vectors then and now
PICTURES = 0.3  # of `byte_share`: below, the picture decides, not the bytes it comes in
TAKES = frozenset({"kind", "output", "image_size", "api_key_env", "requests_per_minute", "price_per_1000"})
RETRY = {408, 425, 429, 500, 502, 503, 504}
PATIENCE = 600.0  # seconds: a service that wants more between two requests is asked again by a later run
SCHEMES = [f"{scheme}{how}" for how in ("", "+openai", "+kserve") for scheme in ("http", "https")]
REFUSED = {400, 413, 415, 422}  # what was sent is at fault: an image that cannot be read, a request too long


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
        self.canaries = self._vectors_of(canary_images())
        self.dim = self.canaries.shape[1]
        self._require_pictures()
        self.feature_kind: FeatureKind = kind_of(self.canaries, kind, "projection", self._error)
        self.layers = {PENULTIMATE: LayerSpec((self.dim,), self.feature_kind)}
        self.notes: Mapping[str, str] = {"vector": f"{self.dim} numbers, taken as {self.feature_kind}"}
        self.preprocessing: Mapping[str, Json] = {**protocol.sent, "protocol": protocol.name, "canaries": 1}

    @property
    def weights_digest(self) -> str:
        """What stands for weights that nobody here holds: the vectors of the canary images, as first seen."""
        return f"canaries:{hashlib.sha256(self.canaries.tobytes()).hexdigest()}"

    def embed(self, images: Sequence[bytes]) -> tuple[Vectors, dict[int, str]]:
        """Vectors (n, dim), NaN where none could be had, and for those positions why. Raises TeacherError where the
        service refuses altogether, or is gone: then the images are not at fault."""
        vectors = np.full((len(images), self.dim), np.nan, np.float32)
        failed: dict[int, str] = {}
        for part in self._requests_of([len(image) for image in images]):
            self._embed_part(part, images, vectors, failed, whole=True)
        return vectors, failed

    def adopt(self, canaries: Vectors) -> None:
        """Take the canary vectors of an earlier run as its own if the service still gives them. Raises TeacherError."""
        self._require_same(canaries, self.canaries)
        self.canaries = canaries

    def check_canaries(self) -> None:
        """Raise TeacherError if the service has become another one."""
        self._require_same(self.canaries, self._vectors_of(canary_images()))

    def estimate(self, count: int, size: int, price_per_1000: float | None) -> dict[str, Any]:
        """What asking for `count` images of `size` bytes together will take."""
        requests = -(-count // self._protocol.batch)
        cost = None if price_per_1000 is None else count * price_per_1000 / 1000
        minutes = requests * self._pause / 60 if self._pause else None
        return {
            "images": count,
            "requests": requests,
            "megabytes": self._protocol.bytes_sent(count, size) / 1e6,
            "minutes at least": minutes,
            "cost": cost,
        }

    def _requests_of(self, sizes: Sequence[int]) -> list[list[int]]:
        """The positions of the images of each request: as many as the protocol takes, or as few as servers take bytes."""
        parts: list[list[int]] = []
        room = 0.0
        for position, size in enumerate(sizes):
            needed = self._protocol.bytes_sent(1, size)
            if not parts or len(parts[-1]) == self._protocol.batch or needed > room:
                parts.append([])
                room = REQUEST_BYTES
            parts[-1].append(position)
            room -= needed
        return parts

    def _embed_part(
        self, part: list[int], images: Sequence[bytes], vectors: Vectors, failed: dict[int, str], *, whole: bool
    ) -> None:
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
                retry=retry_if_exception(lambda error: isinstance(error, Unusable) and not isinstance(error, Refused)),
                reraise=True,
            ):
                with attempted:
                    attempt()
        except Unusable as error:
            if whole:  # no image is given up for a service that answers nobody
                self.check_canaries()
            if len(left) == 1:
                failed[left[0]] = f"the service gave no vector: {error}"
                return
            half = len(left) // 2
            for smaller in (left[:half], left[half:]):
                self._embed_part(smaller, images, vectors, failed, whole=False)

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
            if isinstance(error, httpx2.ConnectError) and not self.dim:  # never seen: more likely mistyped than down
                raise self._error(f"nobody who answers at {self._base}", "a running service", ABSENT) from None
            raise Unusable(type(error).__name__) from None
        except ValueError:
            raise Unusable("an answer that is not JSON") from None
        try:
            found = self._protocol.read(answer, len(images))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Unusable(f"an answer of another shape ({type(error).__name__})") from None
        good = {i: v for i, v in found.items() if v.ndim == 1 and len(v) and np.isfinite(v).all()}
        dim = self.dim or _commonest_width(good)
        good = {i: v for i, v in good.items() if len(v) == dim}
        self.asked += len(good)
        return good

    def _require_willing(self, response: Any) -> None:
        code = int(response.status_code)
        if 200 <= code < 300:
            return
        if code in RETRY:
            after = seconds_of(response.headers.get("retry-after"))
            if after > PATIENCE:
                found = f"status {code} with the wish to be left alone for {after:,.0f} seconds"
                raise self._error(found, f"at most {PATIENCE:.0f}", "run the same command then: what came is kept")
            raise Unusable(f"status {code}", after)
        if code in REFUSED:
            raise Refused(f"status {code}")
        found = "a redirect" if 300 <= code < 400 else f"status {code}"
        fix = "give the final address: keys do not travel" if 300 <= code < 400 else REFUSAL
        raise self._error(found, "vectors", fix)

    def _vectors_of(self, images: Sequence[bytes]) -> Vectors:
        """The vectors of test images. Raises TeacherError unless all can be had."""
        count = len(images)
        found: dict[int, Vectors] = {}
        why = "some, but not of all"
        for _ in range(self._attempts * 2):
            left = [index for index in range(count) if index not in found]
            try:
                answer = self._request([images[index] for index in left])
                found |= {left[index]: vector for index, vector in answer.items()}
            except Refused as error:
                raise self._error(f"{error} for the eight test images", "vectors", REFUSAL) from None
            except Unusable as error:
                why = str(error)
                time.sleep(min(max(error.after, self._longest_wait / 8), 60.0))
            width = _commonest_width(found)
            found = {index: vector for index, vector in found.items() if len(vector) == width}
            if len(found) == count:
                return np.stack([found[index] for index in range(count)])
        raise self._error(
            f"no vectors for the eight test images ({why})", "an answer", "check address and model, or try again later"
        )

    def _require_pictures(self) -> None:
        """Raise TeacherError where pictures that differ have one vector; or where the bytes of a picture decide, as they do
        for a model that embeds the text of the data URI; or where one picture has several vectors."""
        if alike(self.canaries):
            raise self._error("one vector for different pictures", "a vector for each", BLIND)
        if self._protocol.sides is not None:
            return
        firsts, seconds = zip(*twin_images(), strict=True)
        vectors = self._vectors_of([*firsts, *seconds])
        twins = np.stack([vectors[: len(firsts)], vectors[len(firsts) :]], axis=1)
        if (share := byte_share(twins)) > PICTURES:
            apart = (
                f"are {share:.2g} times as far apart as two pictures" if share < 1e3 else "differ, two pictures do not"
            )
            found = f"vectors that follow the bytes of an image file, not its picture: two files of one picture {apart}"
            raise self._error(found, "a model of images", BLIND)
        cosine = _cosines(twins[:, 0], twins[:, 1])
        if not (cosine >= SAME).all():
            found = f"two vectors for one picture in two files (cosine {cosine.min():.4f})"
            raise self._error(found, f"one: a cosine of {SAME} or more", "ask for a model that repeats its answers")

    def _require_same(self, then: Vectors, now: Vectors) -> None:
        if then.shape != now.shape:
            raise self._error(f"vectors of {now.shape[1]} numbers", f"{then.shape[1]}, as before", DRIFT)
        cosine = _cosines(then, now)
        if not (cosine >= SAME).all():
            raise self._error(
                f"other vectors for the same test images (cosine {cosine.min():.4f})", "the same model", DRIFT
            )

    def _error(self, found: str, wanted: str, fix: str) -> TeacherError:
        return TeacherError(where=f"teacher {self.name}", found=found, wanted=wanted, fix=fix)


ABSENT = "start it, or check the address"
BLIND = "name a model of images: this one may embed text, or take no notice of what it is sent"
REFUSAL = "check address, model and key"
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
    wanted = "http+openai://HOST/MODEL, http+kserve://HOST/MODEL or http://HOST/PATH?model=MODEL, without a password"
    if (said := spec.partition("://")[0]) not in SCHEMES:
        raise unknown_name("--teacher", f"{said}://", [f"{each}://" for each in SCHEMES], "write it so", wanted=wanted)
    if not model or not address.netloc or address.username:
        raise UsageError(where="--teacher", found="an address that does not fit", wanted=wanted, fix="write it so")
    headers = {} if key_env is None else {"Authorization": f"Bearer {_key(key_env)}"}
    client = httpx2.Client(timeout=timeout, headers=headers, follow_redirects=False, trust_env=False)
    base = f"{scheme}://{address.netloc}{path}"
    output = output or parse_qs(address.query).get("output", [None])[0]
    try:
        described = (
            _description(client, f"{base}/v2/models/{model}", attempts, longest_wait) if how == "kserve" else None
        )
        if described is None:
            require_takers(f"openai:{model}", {"output": output}, TAKES - {"output", "image_size"})
            _require_listed(client, base, model, attempts, longest_wait)
        protocol = OpenAI(model) if described is None else KServe(model, described, output, image_size, kind)
        if protocol.sides is None:
            require_takers(f"{protocol.name}:{model}", {"image_size": image_size}, TAKES - {"image_size"})
        else:
            require_side(f"{protocol.name}:{model}", protocol.sides, image_size)
    except BirdError:
        client.close()
        raise
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


def _key(variable: str) -> str:
    """The key in an environment variable. Raises UsageError."""
    if key := os.environ.get(variable):
        return key
    raise UsageError(where="--api-key-env", found=f"no variable {variable}", wanted="the key in it", fix="set it")


def _description(client: Any, address: str, attempts: int, longest_wait: float) -> dict[str, Any]:
    """What a KServe server says of its model. Raises TeacherError."""
    import httpx2

    why = "nothing"
    for attempt in range(attempts):
        if attempt:
            time.sleep(longest_wait / 8)
        try:
            response = client.get(address)
            why = f"status {response.status_code}"
            if response.status_code not in RETRY:
                response.raise_for_status()
                found = response.json()
                if isinstance(found, dict):
                    return found
                break
        except httpx2.HTTPStatusError:
            break
        except httpx2.ConnectError:
            why = "nobody answers"
            break
        except httpx2.HTTPError as error:
            why = type(error).__name__
        except ValueError:
            why = "an answer that is not JSON"
    raise TeacherError(
        where=f"teacher {address.rpartition('/')[2]}",
        found=f"no description of the model ({why})",
        wanted="its metadata",
        fix="check address, model and key",
    )


def _require_listed(client: Any, base: str, model: str, attempts: int, longest_wait: float) -> None:
    """Raise TeacherError if the service lists its models, and not this one: some answer for any name, with the vectors of
    whatever they have."""
    try:
        listed = _description(client, f"{base}/models", attempts, longest_wait).get("data")
    except TeacherError:
        return  # many have no list
    names = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if names and model not in names:
        close = nearest(model, map(str, names))
        raise TeacherError(
            where=f"teacher openai:{model}",
            found=f"a service that lists other models: {', '.join(map(str, names[:8]))}",
            wanted=f"{model} among them",
            fix=f"did you mean {close[0]}?" if close else "check the model's name",
        )


def _cosines(first: Vectors, second: Vectors) -> Vectors:
    """Of the rows, pair by pair."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(1) / np.maximum(lengths, 1e-30), np.float32)


def _commonest_width(vectors: Mapping[int, Vectors]) -> int:
    """How long most of them are; 0 if there are none."""
    return Counter(map(len, vectors.values())).most_common(1)[0][0] if vectors else 0

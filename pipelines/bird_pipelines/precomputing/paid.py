"""Answers that cost money are kept from the moment they arrive: an interrupted run never pays for them twice.

Each batch of a service's vectors is written to `answers/` in the cache's folder, used again by the run that resumes, and
removed once its shard is committed. `answers/canaries.npy` keeps the test images' vectors that the cache began with.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import numpy as np
import xxhash
from PIL import Image

from bird.errors import ImageError, UsageError
from bird.images import decode_image, reads_alike
from bird.teachers import Service
from bird_cache.manifest import Receipt
from bird_cache.storage import Folder
from bird_cache.writer import FeatureWriter

__all__ = ["Job", "Paid", "adopt_canaries", "payload", "refuse_views", "save_canaries"]

LAYER, CANARIES = "penultimate", "answers/canaries.npy"
CHECK_EVERY = 4  # shards
DIGEST_BYTES = 16


@final
class Job(NamedTuple):
    """A batch: rows start..stop of one shard."""

    shard: int
    start: int
    stop: int
    last: bool


@final
class Paid:
    """One run's dealings with a service."""

    def __init__(self, service: Service, folder: Folder) -> None:
        self._service, self._folder, self._shards = service, folder, 0

    def ask(self, job: Job, sources: Mapping[int, bytes]) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """The vectors of a batch, kept or asked for: (rows, d), zeros where there is none, and for those rows why.
        `sources` is what is sent for the images that can be decoded, by row. Raises TeacherError."""
        path = answers_path(job.shard, job.start)
        rows = sorted(sources)
        vectors = self._kept(path, len(rows))
        if vectors is None:
            vectors, _ = self._service.embed([sources[row] for row in rows])
            self._folder.replace(path, sealed(vectors))
        out = np.zeros((job.stop - job.start, self._service.dim), np.float32)
        missing = np.asarray(~np.isfinite(vectors).all(axis=-1))
        out[np.array(rows, np.int64) - job.start] = np.where(missing.reshape(-1, 1), 0.0, vectors)
        return {LAYER: out}, {
            rows[position]: "the service gave no vector" for position in np.flatnonzero(missing).tolist()
        }

    def committing(self, writer: FeatureWriter) -> Callable[..., Receipt]:
        """`FeatureWriter.write_shard`, which then lets go of the shard's answers. The service is looked at first, now and
        then: vectors of another model are not committed."""
        self._shards += 1
        if self._shards % CHECK_EVERY == 0:
            self._service.check_canaries()

        def commit(shard: int, *rest: Any) -> Receipt:
            receipt = writer.write_shard(shard, *rest)
            for path in self._folder.files():
                if path.startswith(answers_path(shard)):
                    self._folder.remove(path)
            return receipt

        return commit

    def _kept(self, path: str, rows: int) -> np.ndarray | None:
        try:
            vectors = opened(self._folder.read(path))
        except (OSError, ValueError):
            return None
        return vectors if vectors.shape == (rows, self._service.dim) else None


def payload(id: str, data: bytes, image: np.ndarray) -> bytes:
    """What is sent for a sample: its original bytes where every reader sees its pixels in them, else its pixels as PNG:
    some data sets alter them after decoding, and a photo that lies on its side, say, is not turned by every service."""
    try:
        if np.array_equal(decode_image(data, id), image) and reads_alike(data):
            return data
    except ImageError:
        pass
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def adopt_canaries(service: Service, folder: Folder) -> None:
    """Where the folder's cache was begun with this service, require that it is the same still. Raises TeacherError."""
    if folder.size(CANARIES) is not None:
        service.adopt(opened(folder.read(CANARIES)))


def save_canaries(service: Service, folder: Folder) -> None:
    """Keep the canary vectors for later runs."""
    if folder.size(CANARIES) is None:
        folder.replace(CANARIES, sealed(service.canaries))


def refuse_views(views: int) -> None:
    """A service is asked once an image. Raises UsageError for stored views."""
    if views:
        raise UsageError(
            where="--views", found=str(views), wanted="0: a service gets each image once", fix="leave it out"
        )


def answers_path(shard: int, start: int | None = None) -> str:
    """Where a batch's answers are; without a start, what the paths of a shard begin with."""
    return f"answers/{shard:06d}-" if start is None else f"answers/{shard:06d}-{start:09d}.npy"


def sealed(vectors: np.ndarray) -> bytes:
    """An array's .npy, and the digest of that."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return buffer.getvalue() + xxhash.xxh3_128_digest(buffer.getvalue())


def opened(data: bytes) -> np.ndarray:
    """The array that `sealed` sealed. Raises ValueError if a byte was changed."""
    body = data[:-DIGEST_BYTES]
    if xxhash.xxh3_128_digest(body) != data[-DIGEST_BYTES:]:
        raise ValueError("the digest does not hold")
    return np.load(io.BytesIO(body), allow_pickle=False)  # type: ignore[no-any-return]  # numpy says Any

"""Small fixed pictures whose vectors tell what answers at an address: whether it is the same model as before, and whether
it looks at pictures at all."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CANARIES", "alike", "byte_share", "canary_images", "twin_images"]

CANARIES = 8
SIDE = 64
HEADER, TRAILER = 33, 12  # bytes of a PNG before its first chunk of choice, and of its last chunk
FILLER = 8192  # bytes before the pixels, and as many behind them: what a text embedder reads first, last, and most
ROOM = 512  # bytes for the pixels, so that all files are equally long
ALIKE = 1e-6  # of a vector's length: float32 says no more


def canary_images() -> list[bytes]:
    """Eight synthetic pictures, 64 x 64, as PNG: waves of different lengths and directions."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    images = []
    for number in range(CANARIES):
        waves = [np.sin(rows * (number + 1) * 0.05 * (c + 1) + columns * (8 - number) * 0.04) for c in range(3)]
        images.append(_png(np.stack([np.round(127.5 + 127.5 * wave) for wave in waves], axis=2)))
    return images


def twin_images() -> list[tuple[bytes, bytes]]:
    """Four plain pictures, 64 x 64, each as two PNG files with the same pixels.

    The two differ in what every image decoder skips (private chunks before and behind the pixels, 16 KiB). The first files
    of all pictures share those bytes, as the second ones do, and differ in the few hundred bytes of their pixels. So two
    files of one picture are one image and two texts; two pictures are two images and nearly one text, whichever part of
    the text is read.
    """
    first, second = ((_filler(f"{name}, before"), _filler(f"{name}, behind")) for name in ("first", "second"))
    return [(_wrapped(png, *first), _wrapped(png, *second)) for png in map(_png, _plain_pictures())]


def byte_share(vectors: NDArray[np.float32]) -> float:
    """How far apart the two files of a picture are on average, as a share of the distance between the two nearest
    pictures: `vectors` (4, 2, d) are those of `twin_images`.

    0 for a model of images, a few hundredths with the noise of half precision; 2 and more for the text embedders that
    were measured (docs/decisions/0016); infinite where two pictures have one vector.
    """
    if alike(vectors[:, 0]) or alike(vectors[:, 1]):
        return float("inf")
    twins = np.linalg.norm(vectors[:, 0] - vectors[:, 1], axis=1).mean()
    return float(twins / min(_nearest(vectors[:, file]) for file in (0, 1)))


def alike(vectors: NDArray[np.float32]) -> bool:
    """Whether two of the vectors (n, d) are one to rounding."""
    return _nearest(vectors) <= ALIKE * float(np.linalg.norm(vectors, axis=1).mean())


def _nearest(vectors: NDArray[np.float32]) -> float:
    """The distance of the two vectors that are nearest to each other."""
    apart = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=-1)
    return float(apart[np.triu_indices(len(vectors), 1)].min())


def _plain_pictures() -> list[NDArray[np.uint8]]:
    """Shapes of two colours, so that a PNG of them is short."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    shapes = [
        (columns < 32, (220, 30, 30), (30, 30, 220)),
        (rows < 32, (30, 200, 60), (240, 220, 40)),
        ((columns // 16 + rows // 16) % 2 == 0, (255, 255, 255), (0, 0, 0)),
        ((columns - 32) ** 2 + (rows - 32) ** 2 < 400, (200, 60, 200), (60, 200, 200)),
    ]
    return [
        np.where(inside[..., None], np.array(one, np.uint8), np.array(other, np.uint8)) for inside, one, other in shapes
    ]


def _wrapped(png: bytes, before: bytes, behind: bytes) -> bytes:
    """The same picture, with bytes around its pixels that no decoder looks at."""
    room = bytes(ROOM - len(png))
    pixels = png[HEADER:-TRAILER]
    return png[:HEADER] + _chunk(before) + pixels + _chunk(room) + _chunk(behind) + png[-TRAILER:]


def _chunk(body: bytes) -> bytes:
    """An ancillary, private chunk (PNG specification, section 5.4: by the case of its letters)."""
    kind = b"biRd"
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _filler(name: str) -> bytes:
    return hashlib.shake_256(name.encode()).digest(FILLER)


def _png(pixels: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()

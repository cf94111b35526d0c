"""Odd, damaged and hostile images, made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24


def photo(seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as a photograph has; 24 wide and 16 high."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, SIDE * 16 * 3).reshape(16, SIDE, 3)
    return Image.fromarray((ramp + rng.integers(0, 40, ramp.shape)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` gray pixels and holds next to none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(photo(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(photo(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(photo().convert("RGBA"), "WEBP", exif=exif(1)))  # metadata: the extended format
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def animation(kind: str) -> bytes:
    return encoded(photo(), kind, save_all=True, append_images=[photo(1), photo(2)], duration=50)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "zeros": lambda: bytes(4096),
    "text": lambda: b"404 not found\n",
    "html": lambda: b"<!doctype html><html><body>Not here</body></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(200),
    "gif": lambda: encoded(photo(), "GIF"),
    "tiff": lambda: encoded(photo(), "TIFF"),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "animated gif": lambda: animation("GIF"),
    "animated webp": lambda: animation("WEBP"),
    "animated png": lambda: animation("PNG"),
    "jpeg signature only": lambda: encoded(photo(), "JPEG")[:2],
    "jpeg cut in half": lambda: encoded(photo(), "JPEG")[: len(encoded(photo(), "JPEG")) // 2],
    "jpeg without its last byte": lambda: encoded(photo(), "JPEG")[:-1],
    "png cut in half": lambda: encoded(photo(), "PNG")[: len(encoded(photo(), "PNG")) // 2],
    "png with a flipped bit": lambda: flipped(encoded(photo(), "PNG"), 200),
    "webp cut in half": lambda: encoded(photo(), "WEBP")[: len(encoded(photo(), "WEBP")) // 2],
    "bmp cut in half": lambda: encoded(photo(), "BMP")[: len(encoded(photo(), "BMP")) // 2],
    "png header of 0 pixels": lambda: png_header(0, 5),
    "png that holds less than it promises": lambda: png_header(500, 500),
}

BOMBS: dict[str, Callable[[], bytes]] = {
    "png just above the limit": lambda: png_header(8001, 8000),
    "png that pillow would warn of": lambda: png_header(10_000, 10_000),
    "png bomb": lambda: png_header(100_000, 100_000),
    "jpeg bomb": lambda: jpeg_header(65_000, 65_000),
    "webp bomb": lambda: webp_header(16_000, 16_000),
    "bmp bomb": lambda: bmp_header(50_000, 50_000),
}

DECODED: dict[str, Callable[[], tuple[bytes, NDArray[np.uint8]]]] = {
    "png": lambda: (encoded(photo(), "PNG"), rgb(photo())),
    "bmp": lambda: (encoded(photo(), "BMP"), rgb(photo())),
    "lossless webp": lambda: (encoded(photo(), "WEBP", lossless=True), rgb(photo())),
    "1 x 1": lambda: (encoded(photo().crop((0, 0, 1, 1)), "PNG"), rgb(photo())[:1, :1]),
    "gray": lambda: (encoded(photo().convert("L"), "PNG"), rgb(photo().convert("L"))),
    "one bit": lambda: (encoded(photo().convert("1"), "PNG"), rgb(photo().convert("1"))),
    "palette": lambda: (encoded(photo().quantize(16), "PNG"), rgb(photo().quantize(16))),
    "trailing bytes": lambda: (encoded(photo(), "PNG") + b"junk", rgb(photo())),
}

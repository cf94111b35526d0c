"""Every odd image either decodes to what a viewer shows or is refused with an ImageError; nothing else may happen."""

from __future__ import annotations

import io
import resource
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bird.errors import ImageError
from bird.images import decode_image

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


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data = REFUSED[name]()
    messages = set()
    for _ in range(2):
        with pytest.raises(ImageError, match=r"image some/id\.jpg: found .+; wanted .+; ") as caught:
            decode_image(data, "some/id.jpg")
        messages.add(str(caught.value).split(" object at 0x")[0])
    assert len(messages) == 1


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header(name: str) -> None:
    data = BOMBS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"pixels"):
        decode_image(data, name)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 200 * 2**20


def test_the_limit_is_a_setting() -> None:
    data = encoded(photo(), "PNG")
    assert decode_image(data, "x", max_pixels=SIDE * 16).shape == (16, SIDE, 3)
    with pytest.raises(ImageError, match="24 x 16 pixels"):
        decode_image(data, "x", max_pixels=SIDE * 16 - 1)


@pytest.mark.parametrize("name", DECODED)
def test_decoded_exactly(name: str) -> None:
    data, wanted = DECODED[name]()
    pixels = decode_image(data, name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, wanted)
    np.testing.assert_array_equal(decode_image(data, name), wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_extension_does_not_matter(kind: str) -> None:
    data = encoded(photo(), kind)
    np.testing.assert_array_equal(decode_image(data, "a.jpg"), decode_image(data, "a.png"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(kind: str, orientation: int) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    plain = rgb(Image.open(io.BytesIO(encoded(photo(), kind, **lossless))))
    upright = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain),
    }[orientation]
    turned = decode_image(encoded(photo(), kind, exif=exif(orientation), **lossless), "turned")
    np.testing.assert_array_equal(turned, upright)


def test_16_bit_gray_is_scaled_not_cut() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"), "deep")
    np.testing.assert_array_equal(pixels, np.repeat(np.array([[[0], [1], [128], [255]]], np.uint8), 3, axis=2))
    turned = decode_image(encoded(Image.fromarray(values), "PNG", exif=exif(6)), "deep and turned")
    np.testing.assert_array_equal(turned, pixels.transpose(1, 0, 2))


def test_cmyk_becomes_rgb() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data  # the marker that says the ink is stored inverted
    difference = np.abs(decode_image(data, "cmyk").astype(int) - rgb(photo()).astype(int))
    assert difference.mean() < 4


def test_alpha_is_laid_over_black() -> None:
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[:2, :, 3] = 200, 255
    half[2, :, 3] = 128
    for kind, settings in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = decode_image(encoded(Image.fromarray(half), kind, **settings), "alpha")
        assert pixels[:2, :, 0].tolist() == [[200] * 4] * 2
        assert pixels[2, :, 0].tolist() == [100] * 4
        assert not pixels[3].any()
        assert not pixels[..., 1:].any()


def test_gray_alpha_and_transparent_palette_lie_over_black() -> None:
    pair = Image.merge("LA", [Image.new("L", (2, 1), 90), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert decode_image(encoded(pair, "PNG"), "la")[0].tolist() == [[0] * 3, [90] * 3]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    one = decode_image(encoded(palette, "PNG", transparency=1), "one index")
    assert one[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255]]
    table = decode_image(encoded(palette, "PNG", transparency=bytes([255, 128, 0])), "a table")
    assert table[0].tolist() == [[255, 0, 0], [0, 128, 0], [0, 0, 0]]
    keyed = decode_image(encoded(photo(), "PNG", transparency=photo().getpixel((0, 0))), "a colour key")
    assert not keyed[0, 0].any()


def test_a_second_view_in_a_jpeg_is_not_an_animation() -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo(1)])
    np.testing.assert_array_equal(decode_image(data, "mpo"), decode_image(encoded(photo(), "JPEG"), "jpeg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_no_cut_decodes_to_other_pixels(kind: str) -> None:
    data = encoded(photo(), kind)
    whole = decode_image(data, kind)
    for length in range(len(data)):
        try:
            pixels = decode_image(data[:length], kind)
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.filterwarnings("ignore")
def test_bit_flips_raise_nothing_but_image_errors(kind: str) -> None:
    settings = {} if kind == "BMP" else {"exif": exif(3)}
    data = encoded(photo(), kind, **settings)
    rng = np.random.default_rng(1)
    refused = 0
    for at, bit in zip(rng.integers(0, len(data), 1500), rng.integers(0, 8, 1500), strict=True):
        broken = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        try:
            decode_image(broken, kind)
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_is_an_image_error_or_decodes() -> None:
    tags = exif(6)
    tags[0x010E], tags[0x011A] = "a description", 1.5
    data = encoded(photo(), "JPEG", exif=tags)
    end = data.index(b"\xff\xdb")
    for at in range(20, end):
        for value in (0, 1, 7, 255):
            broken = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                pixels = decode_image(broken, "exif")
            except ImageError:
                continue
            assert pixels.shape in {(16, SIDE, 3), (SIDE, 16, 3)}


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    data, before = encoded(photo(), "JPEG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: decode_image(data, "x"), range(500)))
    assert warnings.filters == before
    assert all((result == results[0]).all() for result in results)

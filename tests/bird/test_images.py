"""Every odd image either decodes to what a viewer shows or is refused with an ImageError; nothing else may happen."""

from __future__ import annotations

import io
import resource
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.images import BOMBS, DECODED, REFUSED, SIDE, encoded, exif, flipped, photo, rgb
from PIL import Image, ImageOps

from bird.errors import ImageError
from bird.images import decode_image


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


def jpeg_of(width, height, seed, **settings):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    return encoded(image.convert(settings.pop("mode", "RGB")), "JPEG", **settings)


JPEGS = {
    "baseline": {"quality": 90},
    "progressive": {"quality": 75, "progressive": True},
    "no subsampling": {"quality": 95, "subsampling": 0},
    "optimised": {"quality": 40, "optimize": True},
    "restart markers": {"quality": 90, "restart_marker_blocks": 4},
    "gray": {"mode": "L"},
    "four inks": {"mode": "CMYK"},
    "EXIF that turns nothing": {"exif": exif(1)},
    "EXIF that turns": {"exif": exif(6)},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_plain_jpeg_is_decoded_to_the_bytes_that_pillow_gives(kind):
    for seed, (width, height) in enumerate([(178, 218), (33, 17), (1, 1), (64, 200)]):
        data = jpeg_of(width, height, seed, **JPEGS[kind])
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(decode_image(data, "x"), expected)


def test_a_damaged_jpeg_is_what_pillow_makes_of_it():
    """A flipped bit or a lost end: the same pixels, or the same refusal; nothing is written to the terminal."""
    rng, outcomes = np.random.default_rng(0), set()
    for kind in ("baseline", "progressive", "restart markers"):
        data = jpeg_of(178, 218, 0, **JPEGS[kind])
        damaged = [data[:cut] for cut in rng.integers(1, len(data), 20)]
        damaged += [flipped(data, int(at)) for at in rng.integers(2, len(data), 60)]
        for each in damaged:
            try:
                with Image.open(io.BytesIO(each), formats=("JPEG",)) as image:
                    expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except Exception:
                expected = None
            if expected is None:
                with pytest.raises(ImageError):
                    decode_image(each, "x")
            else:
                np.testing.assert_array_equal(decode_image(each, "x"), expected)
            outcomes.add(expected is None)
    assert outcomes == {True, False}

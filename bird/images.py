"""Encoded bytes -> RGB pixels, refusing what a fair comparison cannot use. Every room has the same pixels."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bird.errors import ImageError

__all__ = ["FORMATS", "MAX_PIXELS", "WHITE", "carries_little", "decode_image", "reads_alike"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
WHITE = 65535
DARK, FLAT = 32, 8
ORIENTATION = 0x0112
PNG_DEPTH = 24  # where a PNG says how many bits a channel has


def decode_image(data: bytes, name: str, max_pixels: int | None = None, white_level: int = WHITE) -> NDArray[np.uint8]:
    """Decode one still image to RGB, (height, width, 3) uint8, upright (EXIF), alpha laid over black.

    `white_level` is the value of a 16-bit gray pixel that becomes 255; brighter ones become 255, too. Images of 8 bits are
    not touched by it; a 16-bit colour image is refused with another white level than 65,535, since only its upper 8
    bits are read.

    At most `max_pixels` (None: MAX_PIXELS). The size is read from the header and checked before a pixel is allocated.
    Raises ImageError, naming `name`, for anything that is not one whole still image in a known format.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels

    def refuse(found: str) -> ImageError:
        return ImageError(
            where=f"image {name}",
            found=found,
            wanted=f"one whole still image ({', '.join(FORMATS)}) of at most {max_pixels / 1e6:g} Mpx",
            fix="replace or remove it, or let it be counted as failed",
        )

    if not data:
        raise refuse("an empty file")
    try:
        # Pillow's warnings are left alone: silencing them is not thread-safe, and this runs in threads.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise refuse(f"{width} x {height} pixels")
        # MPO is a camera's JPEG that carries a second view: its first frame is the picture.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise refuse("an animation")
        if (plain := _plain_jpeg(data, image)) is not None:
            return plain
        if white_level != WHITE and any(";16" in str(tile[3]) for tile in image.tile) and image.mode.startswith("RGB"):
            raise refuse("a colour image of 16 bits, to which no white level applies")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), white_level)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise refuse("bytes of no known image format") from None
    except Exception as error:  # on damaged metadata pillow raises nearly anything: struct.error, TypeError, ...
        raise refuse(f"undecodable bytes ({error})") from error


def reads_alike(data: bytes) -> bool:
    """Whether other readers see the pixels that `decode_image` gives, but for the rounding of a JPEG's decoder: 8 bits of
    RGB, gray or a palette, upright, opaque, in no colour space but sRGB. Others turn by EXIF or not, lay alpha over white
    or drop it, cut 16 bits or scale them, and read CMYK in several ways. `data` is an image that can be decoded.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    profile = image.info.get("icc_profile") or b"sRGB"
    return (
        image.mode in ("RGB", "L", "P", "1")
        and "transparency" not in image.info
        and not (image.format == "PNG" and data[PNG_DEPTH] == 16)
        and image.getexif().get(ORIENTATION, 1) == 1  # of XMP, too
        and b"sRGB" in profile.replace(b"\0", b"")
    )


def _plain_jpeg(data: bytes, header: Image.Image) -> NDArray[np.uint8] | None:
    """The pixels of a sound, upright JPEG of one or three channels, in about half the time; None for any other image.

    Both libraries are libjpeg-turbo and give the same bytes. `strict` refuses what it only warns of: pillow decides there.
    """
    if header.format != "JPEG" or header.mode not in ("RGB", "L") or "transparency" in header.info:
        return None
    if "xmp" in header.info or header.getexif().get(ORIENTATION, 1) != 1:  # may turn the image
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (header.height, header.width, 3) else None


def _to_rgb(image: Image.Image, white_level: int) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit gray: 65,535 becomes 255, as in 8-bit viewers
        gray = (np.asarray(image, dtype=np.float64) / (white_level / 255)).round().clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def carries_little(image: NDArray[np.uint8]) -> str | None:
    """ "nearly black" if no pixel of the image (height, width, 3) reaches 32 of 255, "nearly constant" if the values of each
    channel span less than 8, else None."""
    if (
        _little_in(image[::16, ::16]) is None
    ):  # so it is for nearly every photo, and to look at all pixels takes a millisecond
        return None
    return _little_in(image)


def _little_in(image: NDArray[np.uint8]) -> str | None:
    if int(image.max()) < DARK:
        return "nearly black"
    low, high = image.min(axis=(0, 1)).astype(int), image.max(axis=(0, 1)).astype(int)
    return "nearly constant" if int((high - low).max()) < FLAT else None

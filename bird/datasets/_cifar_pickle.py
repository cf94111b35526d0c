"""Read one `cifar-10-batches-py` file without trusting it.

A pickle can name any function and have it called. This reader resolves exactly five names, and none of them to
the real thing: `numpy.ndarray`, `numpy.dtype`, `_reconstruct` of numpy's multiarray (under its old and its new
module name) and `_codecs.encode` (how Python 3 writes bytes in old protocols). Each becomes a stand-in below
that stores or checks what it is given. So a file yields nothing but dicts, lists, tuples, numbers, strings,
bytes and arrays of uint8; any other name, a persistent id or another kind of array is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird.errors import DataError

__all__ = ["read_batch"]


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, shape (n, 3072), and labels, shape (n,), of one batch file. Raises DataError for anything else."""
    try:
        raw = path.read_bytes()
        _refuse_far_memos(raw)
        content = _Reader(io.BytesIO(raw), encoding="bytes").load()
        images = content[b"data"].values() if b"data" in content else content["data"].values()
        labels = content[b"labels"] if b"labels" in content else content["labels"]
        if not all(type(label) is int and 0 <= label <= 9 for label in labels):
            raise ValueError("a label that is not 0..9")
        if images.shape != (len(labels), 3072):
            raise ValueError(f"{len(labels)} labels and images of shape {images.shape}")
    except Exception as error:  # a damaged or hostile pickle can make the reader raise nearly anything
        raise DataError(
            where=str(path),
            found=f"not a CIFAR-10 batch ({error})",
            wanted="the dict of data (n x 3072 uint8) and labels that cifar-10-python.tar.gz holds",
            fix="unpack the archive again, or use the binary version in cifar-10-batches-bin/",
        ) from error
    return images, np.array(labels, np.int64)


def _refuse_far_memos(raw: bytes) -> None:
    """An honest pickle numbers its memo from 0; a far number would make the reader allocate that many slots."""
    for code, argument, _ in pickletools.genops(raw):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and int(argument) > len(raw):
            raise pickle.UnpicklingError(f"it asks for memo slot {argument}")


@final
class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


@final
class _Kind:
    """Stands in for numpy.dtype; only one byte a value is let through."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


@final
class _Array:
    """Stands in for numpy.ndarray: keeps shape and bytes until `values` builds the array."""

    shape: tuple[int, ...] = (0,)
    raw: bytes = b""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _version, self.shape, kind, fortran, self.raw = state
        if type(kind) is not _Kind or fortran or type(self.raw) is not bytes:
            raise pickle.UnpicklingError("it holds an array in an unexpected form")

    def values(self) -> NDArray[np.uint8]:
        if len(self.raw) != math.prod(self.shape):
            raise pickle.UnpicklingError(f"it holds {len(self.raw)} bytes for the shape {self.shape}")
        return np.frombuffer(self.raw, np.uint8).reshape(self.shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, codec: object) -> bytes:
    return text.encode("latin-1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}

"""float32 vectors <-> what is stored. numpy has no bfloat16: its bits are stored as uint16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import FeatureError

__all__ = [
    "DTYPES",
    "Dtype",
    "absent",
    "alike",
    "fill_value",
    "from_storage",
    "refuse_flat",
    "storage_dtype",
    "to_storage",
]

Dtype = Literal["float16", "float32", "bfloat16", "int32"]
DTYPES: tuple[Dtype, ...] = ("float16", "float32", "bfloat16")
"""what vectors can be stored as; int32 is for the boxes of stored views"""
BFLOAT16_NAN = 0x7FC0
NO_INTEGER = -(1 << 31)
SIGN_AND_REST, BIAS = np.int32(-0x7000_2000), np.float32(2.0**112)
"""of a float16's bits, sign extended and moved by 13: those that mean something; and float32's bias over float16's"""
EXPONENTS: dict[Dtype, int] = {"float16": 0x7C00, "float32": 0x7F80_0000, "bfloat16": 0x7F80}
LAST_BITS = 0.02
"""of a vector's length: several times what TF32 and bfloat16 lose, and a cosine of .9998"""
BLOCK_ROWS = 256  # small enough that a block's temporaries stay in the processor's cache
BLOCK_VALUES = 1 << 17  # likewise


def storage_dtype(dtype: Dtype) -> np.dtype[np.generic]:
    """The numpy dtype on disk."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def fill_value(dtype: Dtype) -> float | int:
    """What stands for "no vector": NaN as it is stored, the smallest integer for int32."""
    if dtype == "int32":
        return NO_INTEGER
    return BFLOAT16_NAN if dtype == "bfloat16" else float("nan")


def to_storage(vectors: NDArray[Any], dtype: Dtype, ids: Sequence[str], skip: NDArray[np.bool_]) -> NDArray[np.generic]:
    """float32 (rows, ...) as stored bits; rows of `skip` become NaN. int32 stays as it is.

    Raises FeatureError, naming the ids, for NaN or infinite values and for values beyond the dtype's range.
    """
    if dtype == "int32":
        integers = vectors.astype(np.int32, copy=True)
        integers[skip] = NO_INTEGER
        return integers
    values = vectors.astype(np.float32, copy=True)
    axes = tuple(range(1, values.ndim))
    values[skip] = 0.0
    _refuse(~np.isfinite(values).all(axis=axes), ids, "NaN or infinite features")
    with np.errstate(over="ignore"):
        stored = _bfloat16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
    _refuse(~np.isfinite(from_storage(stored, dtype)).all(axis=axes), ids, f"features too large for {dtype}")
    stored[skip] = fill_value(dtype)
    return stored


def refuse_flat(vectors: NDArray[Any], ids: Sequence[str], skip: NDArray[np.bool_]) -> None:
    """Raise FeatureError, naming the ids, for vectors (rows, views, d > 1) that are zero or constant: they say nothing of
    an image."""
    if vectors.shape[-1] < 2:
        return
    suspects = np.flatnonzero((vectors[..., 0] == vectors[..., 1]).any(axis=1) & ~skip)  # few, so the rest is cheap
    bad = np.zeros(len(vectors), bool)
    bad[suspects] = (vectors[suspects] == vectors[suspects][..., :1]).all(axis=-1).any(axis=1)
    _refuse(bad, ids, "zero or constant features")


def from_storage(stored: NDArray[np.generic], dtype: Dtype, *, finite: bool = False) -> NDArray[Any]:
    """Stored bits as float32, NaN where a row failed; int32 as it is. `finite` says that no value is NaN or infinite,
    which then need not be looked for."""
    if dtype == "int32":
        return stored
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return _widened(stored, finite) if dtype == "float16" else stored.astype(np.float32)


def absent(stored: NDArray[np.generic], dtype: Dtype) -> NDArray[np.bool_]:
    """Which rows (rows, ...) hold a NaN, an infinity, or no integer."""
    flat = stored.reshape(len(stored), -1)
    if dtype == "int32":
        return np.asarray((flat == NO_INTEGER).any(axis=1))
    bits = flat.view(f"u{flat.dtype.itemsize}")
    exponent = bits.dtype.type(EXPONENTS[dtype])
    found = np.zeros(len(stored), bool)
    for start in range(0, len(stored), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        found[block] = ((bits[block] & exponent) == exponent).any(axis=1)
    return found


def alike(one: NDArray[np.generic], other: NDArray[np.generic], dtype: Dtype) -> bool:
    """Whether two stored arrays (rows, views, ...) are the same vectors but for their last bits, as another number of
    threads or another processor gives them: no row of a view further from the other than LAST_BITS of its length."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if dtype == "int32":
        return bool(np.array_equal(one, other))
    flat = [from_storage(each, dtype).reshape(-1, max(1, int(np.prod(each.shape[2:])))) for each in (one, other)]
    lost = [np.isnan(each) for each in flat]
    if not np.array_equal(*lost):
        return False
    first, second = (np.where(gone, 0.0, each).astype(np.float64) for gone, each in zip(lost, flat, strict=True))
    far = np.linalg.norm(first - second, axis=1)
    return bool((far <= LAST_BITS * np.linalg.norm(second, axis=1)).all())


def _widened(stored: NDArray[np.generic], finite: bool) -> NDArray[np.float32]:
    """float16 as float32, bit for bit what `astype` gives and several times faster: numpy converts value by value, this
    moves sign, exponent and fraction to their places and corrects the exponent's bias by a product."""
    halves = np.ascontiguousarray(stored).reshape(-1)
    out = np.empty(len(halves), np.float32)
    exponent = np.uint16(EXPONENTS["float16"])
    for start in range(0, len(halves), BLOCK_VALUES):
        block = slice(start, start + BLOCK_VALUES)
        if not finite and ((halves[block].view(np.uint16) & exponent) == exponent).any():  # these have no bias
            out[block] = halves[block]
            continue
        bits = out[block].view(np.int32)
        bits[...] = halves[block].view(np.int16)
        bits <<= 13
        bits &= SIGN_AND_REST
        out[block] *= BIAS
    return out.reshape(stored.shape)


def _bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.generic]:
    """Round to nearest, ties to even. Finite input only."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _refuse(bad: Any, ids: Sequence[str], what: str) -> None:
    if bad.any():
        names = [ids[row] for row in np.flatnonzero(bad)[:10]]
        raise FeatureError(
            where="teacher output",
            found=f"{what} for {int(bad.sum())} samples: {', '.join(names)}",
            wanted="finite vectors that differ by image and that the storage dtype can hold",
            fix="check the teacher, its precision and its preprocessing; the dtypes float32 and bfloat16 hold larger values",
        )

"""Arrow's many kinds of lists of numbers, as rows of one width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["flattened", "inner", "is_list", "is_nested"]


def is_list(kind: Any) -> bool:
    """Lists of any kind, and tensors of one shape, which are stored as such."""
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return isinstance(kind, pa.FixedShapeTensorType) or any(is_it(kind) for is_it in (*kinds, *views))


def is_nested(kind: Any) -> bool:
    """Lists in lists, and tensors of more than one axis."""
    import pyarrow as pa

    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) > 1
    return is_list(kind) and is_list(kind.value_type)


def inner(kind: Any) -> tuple[Any, int | None]:
    """The type that the innermost lists hold, and how many of it a row has; None where the type does not say."""
    import pyarrow as pa

    if isinstance(kind, pa.FixedShapeTensorType):
        kind = kind.storage_type
    if not is_list(kind):
        return kind, 1
    value, width = inner(kind.value_type)
    return value, None if width is None or not pa.types.is_fixed_size_list(kind) else width * kind.list_size


def flattened(column: Any, width: int, first: int) -> NDArray[Any]:
    """A column of lists as (rows, width); lists in lists are laid out one after the other. Raises ValueError listing the
    rows (counted from `first`) of another width, or none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left = width
    while is_list(column.type):
        column = column.storage if isinstance(column.type, pa.FixedShapeTensorType) else column
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        deepest = not is_list(column.type.value_type)
        wanted = left if deepest or not len(lengths) else int(lengths[0])
        wrong = np.flatnonzero(lengths != wanted)[:10].tolist()
        if wrong or column.null_count or wanted < 1 or left % wanted:
            raise ValueError(", ".join(f"{first + place * left // width} ({lengths[place]})" for place in wrong))
        left //= wanted
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(-1, width)

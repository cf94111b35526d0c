"""Static int8 for ONNX students: calibrated on meta rows, the cells alike, and measured by what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird.errors import UsageError
from bird_pipelines.distilling.data import RunData

__all__ = ["Quantiser", "calibration_rows", "quantised_share", "static_int8"]

BATCH = 16
Quantiser = Callable[[Path, Path, Iterable[NDArray[np.float32]]], None]
"""from a float graph to a quantised one, with batches of calibration inputs"""


def calibration_rows(data: RunData, count: int, seed: int = 0) -> NDArray[np.int64]:
    """At most `count` meta rows: an even share of each (class, group) cell, or what it has if that is less, chosen by
    `seed`. Raises UsageError where there is none: a graph that is calibrated on nothing answers with chance."""
    meta, rng = data.rows("meta"), np.random.default_rng(seed)
    cells = data.table.labels[meta] * len(data.group_names) + data.table.groups[meta]
    inside = [meta[cells == cell] for cell in np.unique(cells)]
    each = count // max(len(inside), 1)
    if not inside or each < 1:
        raise UsageError(
            where="--precision int8",
            found=f"{len(meta)} meta rows in {len(inside)} cells, and {count} rows to calibrate on",
            wanted="a meta row of each cell, or more",
            fix="give a larger --calibrate, or export with --precision fp16",
        )
    return np.sort(np.concatenate([rng.permutation(rows)[:each] for rows in inside]))


def static_int8(source: Path, target: Path, batches: Iterable[NDArray[np.float32]]) -> None:
    """onnxruntime's static quantiser: QDQ, weights by channel, signed 8 bits, ranges by the smallest and largest value."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        _Reader(_input_of(source), batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def quantised_share(path: Path) -> float:
    """The share, in 0..1, of the bytes of a graph's weights (as float32) that are held in 8 bits."""
    import onnx

    graph = onnx.load(path).graph
    sizes = {each.name: int(np.prod(each.dims, dtype=np.int64)) for each in graph.initializer}
    kinds = {each.name: each.data_type for each in graph.initializer}
    marks = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {name for node in marks for name in node.input[1:]}
    small = {
        node.input[0] for node in marks if kinds.get(node.input[0]) in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    weights = {
        name for name, kind in kinds.items() if name not in scales and (kind == onnx.TensorProto.FLOAT or name in small)
    }
    whole = sum(sizes[name] for name in weights)
    return sum(sizes[name] for name in small) / whole if whole else 0.0


def _input_of(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


@final
class _Reader:
    """Batches as onnxruntime's quantiser asks for them."""

    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}

    def __iter__(self) -> Iterator[Any]:
        return iter(self.get_next, None)

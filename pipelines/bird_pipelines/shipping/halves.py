"""The values inside a half-precision graph, as a device meets them that computes in half precision.

onnxruntime computes such a graph in float32 on a CPU. There a value beyond 65,504 between two layers does no harm; on a
device that has half precision it is infinite. A value that is an output is rounded to half precision, also on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["not_finite"]


def not_finite(path: Path, batches: Iterable[NDArray[np.float32]]) -> list[str]:
    """The names of the float16 values inside the graph that are infinite or NaN for an input of the batches, in the graph's
    order."""
    import onnx
    import onnxruntime as ort

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    halves = [each for each in model.graph.value_info if each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16]
    model.graph.output.extend(halves)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names, given = [each.name for each in halves], session.get_inputs()[0].name
    bad: set[str] = set()
    for batch in batches:
        values = session.run(names, {given: batch})
        bad |= {name for name, value in zip(names, values, strict=True) if not np.isfinite(value).all()}
    order = [name for node in model.graph.node for name in node.output]
    return [name for name in order if name in bad]

"""Eight inputs with their logits, which travel with an exported student: whoever runs it elsewhere sees at once whether it
answers as it did here. The pictures are generated, so that nobody's photo is shipped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from bird.students import Student
from bird_pipelines.shipping.formats import Runtime

__all__ = ["reference_inputs", "reference_of"]

COUNT, CANDIDATES, COARSE = 8, 64, 4


def reference_inputs(student: Student, seed: int = 0) -> NDArray[Any]:
    """Eight inputs, of as many predicted classes as there are among 64 and by the widest margins: soft patches of colour,
    uint8 (8, 3, side, side), or vectors with the mean and deviation of the train rows, float32 (8, dim)."""
    rng = np.random.default_rng(seed)
    if student.input == "image":
        coarse = torch.from_numpy(rng.integers(0, 256, (CANDIDATES, 3, COARSE, COARSE))).float()
        side = student.image_size
        pixels = interpolate(coarse, (side, side), mode="bilinear", align_corners=False).round().to(torch.uint8)
        inputs, floats = pixels.numpy(), pixels.float() / 255
    else:
        normal = torch.from_numpy(rng.standard_normal((CANDIDATES, student.mean.shape[0]), np.float32))
        floats = student.mean + student.std * normal
        inputs = floats.numpy()
    with torch.inference_mode():
        logits = student(floats).logits.numpy()
    return np.asarray(inputs[_telling(logits)])


def reference_of(inputs: NDArray[Any], runtime: Runtime, class_names: Sequence[str]) -> dict[str, Any]:
    """The inputs, and what the exported file says of them in its runtime, as JSON."""
    logits = runtime(_floats(inputs))
    return {
        "input": {
            "dtype": str(inputs.dtype),
            "shape": [*inputs.shape],
            "base64": base64.b64encode(np.ascontiguousarray(inputs).tobytes()).decode(),
            "read": "pixels of 0 to 255: divide them by 255" if inputs.dtype == np.uint8 else "as they are",
        },
        "logits": logits.astype(float).tolist(),
        "predictions": [class_names[each] for each in logits.argmax(1).tolist()],
    }


def _floats(inputs: NDArray[Any]) -> NDArray[np.float32]:
    return inputs.astype(np.float32) / np.float32(255) if inputs.dtype == np.uint8 else inputs.astype(np.float32)


def _telling(logits: Float[NDArray[np.float32], "rows classes"]) -> NDArray[np.int64]:
    """Rows that are hard to confuse: the first of each predicted class by margin, then the second of each, and so on."""
    margins = np.diff(np.sort(logits, 1)[:, -2:], axis=1)[:, 0] if logits.shape[1] > 1 else logits[:, 0]
    order, said = np.argsort(-margins, kind="stable"), logits.argmax(1)
    places = np.array([int((said[order[:at]] == said[row]).sum()) for at, row in enumerate(order)])
    return np.sort(order[np.argsort(places, kind="stable")][:COUNT])

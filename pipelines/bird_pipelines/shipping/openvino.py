"""OpenVINO as the runtime of an exported ONNX student, on a CPU, where it is asked for.

Left alone it computes in bf16 wherever the processor can. So the precision is always set, and read back from the graph that
it runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bird.errors import UsageError, unknown_name
from bird_pipelines.shipping.formats import Format, Runtime, cannot_load, need_extra

__all__ = ["COMPUTE", "in_openvino", "open_openvino"]

COMPUTE: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""`--compute`, and what OpenVINO calls it"""
DEVICE = "CPU"
NO_WORK = ("Input", "Output", "Const")


def in_openvino(kind: Format, compute: str) -> Format:
    """The format, run by OpenVINO that computes in `compute`. Raises UsageError for an unknown precision and where OpenVINO
    is missing."""
    if compute not in COMPUTE:
        raise unknown_name("--compute", compute, COMPUTE)
    need_extra("--runtime openvino", ("openvino",), extra="openvino")
    return kind._replace(
        runtime="openvino",
        open=lambda path, _: open_openvino(path, compute),
        facts=lambda path: _facts(path, compute),
    )


def open_openvino(path: Path, compute: str) -> Runtime:
    """The graph in OpenVINO on the CPU. Raises RunError for a file that it cannot load, UsageError where it cannot compute
    in `compute`."""
    compiled = _compiled(path, compute)

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled(np.ascontiguousarray(inputs))["logits"]
        return logits

    return run


def _facts(path: Path, compute: str) -> dict[str, Any]:
    """The processor, what was asked for, and in how many layers of the graph that runs it computes in which precision."""
    compiled = _compiled(path, compute)
    steps = [each.get_rt_info() for each in compiled.get_runtime_model().get_ordered_ops()]
    work = [each for each in steps if each["layerType"].astype(str) not in NO_WORK]
    layers = Counter(each["runtimePrecision"].astype(str) for each in work)
    return {
        "device": _openvino().Core().get_property(DEVICE, "FULL_DEVICE_NAME"),
        "compute": compute,
        "inference_precision_hint": COMPUTE[compute],
        "layers": dict(layers.most_common()),
    }


def _compiled(path: Path, compute: str) -> Any:
    """The compiled graph, in as many threads as torch has, which are not pinned: others decode images beside it."""
    asked = COMPUTE[compute]
    settings = {
        "INFERENCE_PRECISION_HINT": asked,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
    }
    core = _openvino().Core()
    try:
        compiled = core.compile_model(str(path), DEVICE, settings)
    except RuntimeError as error:
        raise cannot_load(path, "OpenVINO", error) from None
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != asked:
        raise UsageError(
            where=f"OpenVINO, --compute {compute}",
            found=f"{found}: {core.get_property(DEVICE, 'FULL_DEVICE_NAME')} does not compute in {asked}",
            wanted="the precision that was asked for",
            fix="export with --compute fp32, or export and run it on a processor that has this precision",
        )
    return compiled


def _openvino() -> Any:
    """OpenVINO, with its telemetry off in this process. `import openvino` alone would write a client id into the home folder
    and send a message (docs/decisions/0033)."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it fails, and OpenVINO goes on
    import openvino

    return openvino

"""A student as a file that runs without this project, and the runtime that will run it.

Every format answers `logits` first, then `features`. The input is float32, pixels in 0..1 (batch, 3, side, side), or the
teacher's vectors (batch, dim) for an adapter. An ONNX graph and a torch program hold the normalisation of their input;
a plain state dict (`bird_pipelines.shipping.networks`) does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from bird.errors import RunError, UsageError
from bird.students import Student
from bird.weights import first_line
from bird_pipelines.shipping.networks import network_of, require_network, summed_heads

__all__ = [
    "EXTRAS",
    "FORMATS",
    "Format",
    "Runtime",
    "file_of",
    "input_name",
    "need_extra",
    "open_onnx",
]

EXTRAS = ("onnx", "onnxscript", "onnxruntime")
Runtime = Callable[[Float[NDArray[np.float32], "batch ..."]], Float[NDArray[np.float32], "batch classes"]]
"""from inputs to logits"""


@final
class Format(NamedTuple):
    """One `--to`: its file, the precisions that it can have, how it is written and opened, and what runs it."""

    file: str
    precisions: tuple[str, ...]
    write: Callable[[Student, Path, bool], None]
    open: Callable[[Path, Student], Runtime]
    runtime: str


def input_name(student: Student) -> str:
    """What an exported student calls its input."""
    return "image" if student.input == "image" else "features_of_teacher"


def file_of(folder: Path, about: Mapping[str, Any], name: str) -> bytes:
    """A file of an export. Raises RunError where it is not the one that student.json, `about`, has the sha256 of."""
    data = (folder / name).read_bytes() if (folder / name).is_file() else b""
    if hashlib.sha256(data).hexdigest() != about["files"][name]["sha256"]:
        raise RunError(
            where=str(folder / name),
            found="another sha256 than student.json records" if data else "no such file",
            wanted="the file as `bird export` wrote it",
            fix="export the run again",
        )
    return data


def need_extra(command: str, names: Sequence[str] | None = None) -> None:
    """Raises UsageError, naming what to install, where one of these libraries (default: those of the extra [export]) is
    missing."""
    names = EXTRAS if names is None else names
    if missing := [name for name in names if find_spec(name) is None]:
        raise UsageError(
            where=command,
            found=f"no {', no '.join(missing)} installed",
            wanted=", ".join(names),
            fix='pip install "bird-distill[export]"',
        )


@final
class _Ordered(nn.Module):
    """A student that answers logits first, then features; computed in half precision where its weights are."""

    def __init__(self, student: Student, half: bool) -> None:
        super().__init__()
        self.student, self.half_inside = student, half

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.student(inputs.half() if self.half_inside else inputs)
        return logits.float(), features.float()


def _example(student: Student) -> Tensor:
    """Two rows: with an example of one the exporter takes the batch for a constant."""
    return (
        torch.rand(2, 3, student.image_size, student.image_size)
        if student.input == "image"
        else student.mean.repeat(2, 1)
    )


@contextmanager
def _traced(to: str, student: Student) -> Iterator[None]:
    """Raises UsageError for a network that torch cannot follow: whatever its tracer raises, which has no common base."""
    try:
        yield
    except Exception as error:
        raise UsageError(
            where=f"--to {to}, {student.architecture}",
            found=f"a network that torch.export cannot follow ({type(error).__name__}: {first_line(error)})",
            wanted="one whose steps do not depend on the values in the images, for any batch",
            fix="mend it (--debug shows where), or export its weights alone: --to torch",
        ) from error


def _write_onnx(student: Student, path: Path, half: bool) -> None:
    """An ONNX graph with a dynamic batch; half precision by onnxruntime's converter, with float32 at both ends."""
    with _traced("onnx", student):
        program = torch.onnx.export(
            _Ordered(student, False).eval(),
            (_example(student),),
            dynamo=True,
            input_names=[input_name(student)],
            output_names=["logits", "features"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    if half:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def open_onnx(path: Path, *, spin: bool = True) -> Runtime:
    """The graph in onnxruntime on the CPU; its threads `spin` where nobody else wants the cores. Raises RunError for a
    file that it cannot load."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise RunError(
            where=str(path),
            found=f"a file that onnxruntime cannot load ({str(error)[:160]})",
            wanted="the file as `bird export` wrote it",
            fix="export the run again",
        ) from None
    name = session.get_inputs()[0].name

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {name: inputs})[0]
        return logits

    return run


def _write_pt2(student: Student, path: Path, half: bool) -> None:
    import copy

    kept = copy.deepcopy(student).half() if half else student
    with _traced("pt2", student):
        program = torch.export.export(
            _Ordered(kept, half).eval(),
            (_example(student),),
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
        )
    program.example_inputs = None  # they would be a pickle in the file
    torch.export.save(program, path)


def _open_pt2(path: Path, student: Student) -> Runtime:
    return _in_torch(torch.export.load(path).module())


def _write_torch(student: Student, path: Path, half: bool, to: str = "torch") -> None:
    from safetensors.torch import save_file

    _, weights = require_network(to, summed_heads(student))
    kept = {name: each.half() if half and each.is_floating_point() else each for name, each in weights.items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in kept.items()}, path)


def _open_torch(path: Path, student: Student) -> Runtime:
    """The network with the weights of the file, and the normalisation before it."""
    from safetensors.torch import load_file

    one = summed_heads(student)
    network = network_of(one)
    assert network is not None
    logits = network.opened(load_file(path), one)
    return _in_torch(lambda pixels: (logits(pixels),))


def _write_hf(student: Student, path: Path, half: bool) -> None:
    _write_torch(student, path, half, "hf")


def _open_hf(path: Path, student: Student) -> Runtime:
    """The folder as timm opens it: config.json beside the weights, and the normalisation of the recipe before them."""
    import timm

    network = timm.create_model(f"local-dir:{path.parent}", pretrained=True).eval()
    return _in_torch(lambda pixels: (network((pixels - student.mean) / student.std),))


def _in_torch(answer: Callable[[Tensor], Any]) -> Runtime:
    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = answer(torch.from_numpy(inputs))[0].numpy()
        return logits

    return run


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        "student.onnx", ("fp32", "fp16", "int8"), _write_onnx, lambda path, _: open_onnx(path), "onnxruntime"
    ),
    "pt2": Format("student.pt2", ("fp32", "fp16"), _write_pt2, _open_pt2, "torch"),
    "torch": Format("student.safetensors", ("fp32", "fp16"), _write_torch, _open_torch, "torch"),
    "hf": Format("model.safetensors", ("fp32", "fp16"), _write_hf, _open_hf, "timm"),
}

"""Students that compute in bfloat16 where it is as good: weights, losses and optimisers stay float32."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from bird.errors import UsageError
from bird.students import Student

__all__ = ["in_bf16", "require_precision"]

CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def require_precision(precision: str, device: torch.device) -> None:
    """Raise UsageError for bf16 where the device would only imitate it."""
    if precision == "fp32":
        return
    if device.type == "cuda":
        able, found = torch.cuda.is_bf16_supported(including_emulation=False), "a GPU without bfloat16"
    else:
        able, found = not CPU_FLAGS_HERE.isdisjoint(CPU_FLAGS), f"a processor with none of {', '.join(CPU_FLAGS)}"
    if not able:
        raise UsageError(
            where="--precision bf16",
            found=found,
            wanted="a device that computes in bfloat16",
            fix="leave --precision out: fp32 is no slower there",
        )


def in_bf16(model: nn.Module) -> None:
    """After this call, `model` computes its output under torch.autocast and returns float32, also when it is called under
    other parameters (`torch.func.functional_call`) or in forward mode, and so do its copies. Its parameters stay as they
    are. Images are laid out pixel by pixel (channels_last), as bfloat16 convolutions want them. A student inside it that
    is called by itself computes in float32 (scores are taken so), except by its heads one by one."""
    model.to(memory_format=torch.channels_last)
    model.forward = MethodType(_forward, model)
    if isinstance(student := getattr(model, "student", None), Student):
        student.by_head = MethodType(_by_head, student)  # type: ignore[method-assign]  # this one student's


def _forward(model: nn.Module, inputs: Tensor) -> Any:
    with torch.autocast(inputs.device.type, torch.bfloat16):
        answer = type(model).forward(model, _laid_out(inputs))
    return type(answer)(*(tensor.float() for tensor in answer))


def _by_head(student: Student, inputs: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return Student.by_head(student, _laid_out(inputs)).float()


def _laid_out(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _cpu_flags() -> frozenset[str]:
    """What Linux says of the processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split())


CPU_FLAGS_HERE = _cpu_flags()

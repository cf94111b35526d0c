"""Where tensors live, and how many threads work on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bird.errors import OutOfMemoryError, UsageError, unknown_name
from bird.launch import launched

__all__ = ["choose_device", "enough_memory", "fetch", "send", "threads"]


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; "cuda:1" is its second device; under torchrun "cuda" is the one of the process's
    number on its machine. Raises UsageError for an unknown device, and for one that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise unknown_name("--device", name, ("auto", "cpu", "cuda", "cuda:0"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(where="--device", found=repr(name), wanted="a device of this machine", fix="use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise UsageError(where="--device", found=repr(name), wanted=f"one of {known}", fix="devices count from 0")
    if device.type == "cuda" and launched().world > 1:
        return _own_gpu(device)
    return device


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process, of those that torchrun started on its machine."""
    launch, count, named = launched(), torch.cuda.device_count(), ":" in str(device)
    if named or launch.local_rank >= count:
        raise UsageError(
            where="--device",
            found=f"{device if named else f'{count} GPUs'} for {launch.local_world} processes",
            wanted="a GPU for each process of torchrun on this machine",
            fix="use --device cuda, and --nproc-per-node as many as there are GPUs",
        )
    return torch.device("cuda", launch.local_rank)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetch(tensor: Tensor) -> Tensor:
    """A copy in the host's pinned memory, of a tensor on a GPU: whole once the GPU's queue has come so far."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@contextmanager
def enough_memory(where: str, fix: str) -> Iterator[None]:
    """Inside this context, a full memory (GPU or host) raises OutOfMemoryError with the remedy `fix`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
        if not full:
            raise
        said = str(error).strip().split("\n")[0].split(". ")
        found = ". ".join(said[:2]) if said[0] else "a machine without free memory"
        raise OutOfMemoryError(where=where, found=found, wanted="memory for one batch", fix=fix) from error


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads within. Most of the setting is the calling thread's own, MKL's part is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

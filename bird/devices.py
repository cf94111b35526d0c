"""Where tensors live, and how many threads work on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bird.errors import UsageError, unknown_name

__all__ = ["choose_device", "send", "threads"]


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises UsageError for an unknown device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise unknown_name("--device", name, ("auto", "cpu", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(where="--device", found=repr(name), wanted="a device of this machine", fix="use --device cpu")
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads within. Most of the setting is the calling thread's own, MKL's part is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

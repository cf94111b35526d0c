"""What torchrun tells a process that it started, among how many. Nothing heavy is imported for it."""

from __future__ import annotations

import os
from typing import NamedTuple, final

__all__ = ["Launch", "launched"]


@final
class Launch(NamedTuple):
    """This process among all of one torchrun, and among those on its machine. Without torchrun: one of one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def launched() -> Launch:
    """As torchrun's environment variables say. (WORLD_SIZE alone says nothing: other launchers set it for other ends.)"""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launch(*(int(os.environ[name]) for name in names))

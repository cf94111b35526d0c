"""Weights from files, without executing anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bird.errors import MissingWeightsError, TeacherError
from bird.weights import first_line, offline_if_unreachable, read_tensors

__all__ = ["fill", "first_line", "missing_weights", "offline_if_unreachable", "read_state"]


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a .pt/.pth file of tensors only (weights_only). Raises TeacherError."""

    def refuse(found: str) -> TeacherError:
        return TeacherError(
            where=f"teacher {name}, --weights {path}",
            found=found,
            wanted="a state dict: .safetensors, or a .pt/.pth file that holds nothing but tensors",
            fix="load it where you trust it and save model.state_dict() with safetensors",
        )

    return read_tensors(path, refuse)


def fill(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, all of it and nothing else. Raises TeacherError naming the first keys that do not fit."""
    own = module.state_dict()
    missing, extra = sorted({*own} - {*state}), sorted({*state} - {*own})
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or shapes:
        parts = {"missing": missing, "unexpected": extra, "of another shape": shapes}
        found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in parts.items() if keys)
        raise TeacherError(
            where=f"teacher {name}",
            found=f"weights that do not fit: {found}",
            wanted="every key once",
            fix="check the file",
        )
    module.load_state_dict(dict(state))


def missing_weights(name: str, what: str, error: Exception | None = None) -> MissingWeightsError:
    """The error for weights that are not on this machine and cannot be downloaded; `what` says which file to fetch."""
    from huggingface_hub import constants

    reason = f" ({type(error).__name__}: {first_line(error)})" if error else ""
    if error and constants.HF_HUB_OFFLINE:
        reason = f" (offline: HF_HUB_OFFLINE is set, or nobody answers at {constants.ENDPOINT})"
    return MissingWeightsError(
        where=f"teacher {name}",
        found=f"no weights here, and none could be downloaded{reason}",
        wanted=what,
        fix="fetch them on a machine with a network and give them with --weights PATH",
    )

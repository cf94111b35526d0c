"""Weights from files, without executing anything in them."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from torch import Tensor, nn

from bird.errors import MissingWeightsError, TeacherError

REACH_SECONDS = 5.0

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

    if not path.is_file():
        raise refuse("no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():  # about the pickle protocol of files that are refused anyway
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise refuse(f"a file that cannot be read safely ({first_line(error)})") from None
    except Exception as error:  # safetensors raises a type of its own
        raise refuse(f"a damaged file ({error})") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise refuse("something else than tensors")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def first_line(error: Exception) -> str:
    """What an exception says, on one line; its type where it says nothing (an empty file is a bare EOFError)."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


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


def offline_if_unreachable() -> None:
    """Make the hub's clients ready: offline if nobody answers there (else they retry for a minute, aloud), and
    without telemetry. Without safetensors in a repository, transformers would send its name, and the person's token, to
    a service that converts weights, and load what that proposes in place of the revision that was asked for."""
    from huggingface_hub import constants

    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    address = urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if constants.HF_HUB_OFFLINE or ({address.scheme, "all"} & {*getproxies()} and not proxy_bypass(host)):
        return  # a proxy is asked in its place
    try:
        socket.create_connection((host, port), timeout=REACH_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


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

"""Weights from files and from the hub, without executing anything in them."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from torch import Tensor

from bird.errors import BirdError

REACH_SECONDS = 5.0

__all__ = ["digest_of_state", "first_line", "offline_if_unreachable", "read_tensors"]


def read_tensors(path: Path, refuse: Callable[[str], BirdError]) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a .pt/.pth file of tensors only (weights_only). `refuse` makes the error from
    what was found."""
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


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values, sorted by name: the same weights in two file formats agree."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"

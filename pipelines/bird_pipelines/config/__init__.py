"""What a phase is asked to do: options declared once, for the command line, TOML and Python, and read at the door.

Each name is imported at its first use, so that `bird --help` reads no more than the declarations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bird_pipelines.config.cache import Engine, PrecomputeConfig, Rows, Stored, Work
    from bird_pipelines.config.reading import resolve, resolve_precompute
    from bird_pipelines.config.run import CHOOSE, Place, RunConfig, Source, Training, Weights

__all__ = [
    "CHOOSE",
    "Engine",
    "Place",
    "PrecomputeConfig",
    "Rows",
    "RunConfig",
    "Source",
    "Stored",
    "Training",
    "Weights",
    "Work",
    "resolve",
    "resolve_precompute",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bird_pipelines.config' has no attribute {name!r}")
    room = "reading" if name.startswith("resolve") else "cache" if name in CACHE else "run"
    return getattr(import_module(f"bird_pipelines.config.{room}"), name)


CACHE = ("Engine", "PrecomputeConfig", "Rows", "Stored", "Work")

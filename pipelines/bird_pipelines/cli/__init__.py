"""The command line: each command parses, calls one function, prints. `main` runs it, `app` is its Typer application."""

from __future__ import annotations

from typing import Any

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bird_pipelines.cli import commands

        return getattr(commands, name)
    raise AttributeError(f"module 'bird_pipelines.cli' has no attribute {name!r}")

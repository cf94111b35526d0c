"""What a phase is asked to do: options declared once, for the command line, TOML and Python, and read at the door."""

from bird_pipelines.config.cache import PrecomputeConfig, Rows, Stored, Work
from bird_pipelines.config.reading import resolve, resolve_precompute
from bird_pipelines.config.run import CHOOSE, Place, RunConfig, Source, Training, Weights

__all__ = [
    "CHOOSE",
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

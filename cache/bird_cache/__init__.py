"""A feature cache that accounts for every row: write a frozen model's vectors once, read them checked.

Numpy in, numpy out; never imports torch. `open_cache(path)` is where a reader starts, `write_cache` where a writer does. The
format is specified in cache/README.md of the source tree. Each name is imported at its first use: `import bird_cache` loads
no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bird_cache.create import write_cache
    from bird_cache.dataset import CacheDataset
    from bird_cache.generations import append, drop, subset
    from bird_cache.parquet import to_parquet
    from bird_cache.search import near_duplicates, nearest, nearest_to
    from bird_cache.store import FeatureStore, open_cache
    from bird_cache.vectors import Vectors

__all__ = [
    "CacheDataset",
    "FeatureStore",
    "Vectors",
    "append",
    "drop",
    "near_duplicates",
    "nearest",
    "nearest_to",
    "open_cache",
    "subset",
    "to_parquet",
    "write_cache",
]

WHERE = {
    "CacheDataset": "dataset",
    "FeatureStore": "store",
    "Vectors": "vectors",
    "append": "generations",
    "drop": "generations",
    "near_duplicates": "search",
    "nearest": "search",
    "nearest_to": "search",
    "open_cache": "store",
    "subset": "generations",
    "to_parquet": "parquet",
    "write_cache": "create",
}


def __getattr__(name: str) -> Any:
    if name in WHERE:
        return getattr(import_module(f"bird_cache.{WHERE[name]}"), name)
    raise AttributeError(f"module 'bird_cache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]

"""How a cache's bytes are arranged: what a store's layout decides, and nothing else does.

Layout
├── ZarrLayout          one Zarr v3 array a layer; images stay in the data set
└── WebDatasetLayout    one tar a shard; images and vectors travel together
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bird_cache.manifest import Layer, Manifest, Plan, Receipt
from bird_cache.samples import Samples

__all__ = ["COMMITS", "SAMPLES", "Layout", "Rows", "Source", "receipt_name", "row_shape"]

SAMPLES, COMMITS = "samples.parquet", "commits"

Rows = slice | NDArray[np.int64]
Source = Callable[[int], bytes | None]
"""Row -> the sample's encoded source, or None where it cannot be read."""


class Layout(ABC):
    """Names and bytes of one kind of store. Everything here is a pure function."""

    name: str
    manifest_path: str
    """where the manifest is; which of the known ones a folder holds tells its layout"""

    @abstractmethod
    def render(
        self, manifest: Manifest, described: Mapping[str, bytes] = MappingProxyType({}), there: bytes = b""
    ) -> bytes:
        """The manifest's file. `described` are the layers' descriptions as they lie in the cache (path -> bytes), `there`
        the file that it replaces, whose foreign parts stay."""

    @abstractmethod
    def check_manifest(self, data: bytes, manifest: Manifest, described: Mapping[str, bytes]) -> str | None:
        """What is wrong with the bytes in which `manifest` was found; None where that is nothing."""

    @abstractmethod
    def parse(self, data: bytes) -> Mapping[str, Any] | None:
        """The sealed manifest in its file; None where the file is another program's. Raises ValueError."""

    @abstractmethod
    def describe(self, plan: Plan) -> dict[str, bytes]:
        """The files beside the shards that describe the plan's layers: path -> bytes."""

    def older_descriptions(self, plan: Plan) -> dict[str, bytes]:
        """`describe` as it was in older caches."""
        return {}

    @abstractmethod
    def file_key(self, layer: str) -> str:
        """Under which key of a receipt's `files` a layer's bytes are found."""

    @abstractmethod
    def paths(self, plan: Plan, part: str, shard: int) -> dict[str, str]:
        """The files of one shard: key -> path."""

    @abstractmethod
    def encode(
        self,
        plan: Plan,
        shard: int,
        stored: Mapping[str, NDArray[np.generic]],
        samples: Samples,
        failed: Mapping[int, str],
        source: Source | None,
    ) -> dict[str, bytes]:
        """The bytes of one shard's files: key -> bytes. The same input gives the same bytes."""

    @abstractmethod
    def decode(self, data: memoryview, plan: Plan, layer: str, shard: int, rows: Rows) -> NDArray[np.generic]:
        """The given rows (counted from the shard's first) of a layer from the shard's file, as stored,
        (rows, views, *shape). `data` was found to be what was committed. Raises ValueError where it makes no sense."""

    def sources(self, data: memoryview, plan: Plan, shard: int) -> list[bytes | None]:
        """The encoded source of each row of a shard; nothing where the layout holds none."""
        return []

    @abstractmethod
    def check(self, data: memoryview, plan: Plan, receipt: Receipt, samples: Samples) -> list[str]:
        """What is wrong with a shard's file beyond its layers' vectors."""


def receipt_name(shard: int, part: str = "") -> str:
    """Path of a commit record inside the cache; layers that were added later have a folder of their own."""
    return f"{COMMITS}/{part}/{shard:06d}.json" if part else f"{COMMITS}/{shard:06d}.json"


def row_shape(plan: Plan, spec: Layer) -> tuple[int, ...]:
    """(views, *shape) of one row."""
    return (plan.views, *spec.shape)

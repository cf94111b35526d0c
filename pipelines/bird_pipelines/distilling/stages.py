"""What a cache holds of the teacher's residual stages: spatial maps, or attention alone."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bird.errors import DataError, UsageError
from bird.losses.attention import attention
from bird_cache.numbers import absent, from_storage
from bird_cache.store import FeatureStore

__all__ = ["Stages"]

STAGES_IN_MEMORY_BYTES = 4 << 30
ROWS_CHECKED = 4096


@final
class Stages:
    """maps.STAGE or attention.STAGE of the given rows of a cache, from the shallowest stage; held in memory as stored if
    they fit, else read batch by batch."""

    def __init__(self, store: FeatureStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows
        self._layers: tuple[str, ...] = ()
        self._held: dict[str, NDArray[np.generic]] = {}
        self._attention = False

    def open(self, kind: Literal["attention", "maps"]) -> list[int]:
        """Choose the layers that `get` returns; returns the stages' channels (empty for attention). Attention is taken
        from maps where the cache holds those alone.

        Raises UsageError if it holds neither, DataError for rows that failed when the layer was added.
        """
        layers = self._store.manifest.layers()
        stored = {
            what: sorted(name for name in layers if name.startswith(f"{what}.")) for what in ("attention", "maps")
        }
        chosen = stored[kind] or (stored["maps"] if kind == "attention" else [])
        if not chosen:
            raise UsageError(
                where=f"cache {self._store.path}",
                found=f"the layers {', '.join(layers)}",
                wanted=f"{kind}.STAGE of a teacher with residual stages",
                fix=f"add them: the same `bird precompute` command with --layers penultimate,{kind}",
            )
        self._layers, self._attention = tuple(chosen), kind == "attention" and not stored["attention"]
        row_bytes = sum(int(np.prod(layers[name].shape)) * 4 for name in chosen) * self._store.manifest.plan.views
        hold = len(self._rows) * row_bytes <= STAGES_IN_MEMORY_BYTES
        for name in chosen:
            for start in range(0, len(self._rows), ROWS_CHECKED):
                self._check(name, self._rows[start : start + ROWS_CHECKED])
            if hold:
                self._held[name] = self._store.take(name, self._rows)
        return [layers[name].shape[0] for name in chosen] if kind == "maps" else []

    def get(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None) -> tuple[Float[Tensor, "batch ..."], ...]:
        """The stages of the given rows of the run, (batch, channels, height, width) or (batch, height, width); `views` says
        which stored view of each (default: the deterministic one)."""
        which = np.zeros(len(rows), dtype=np.int64) if views is None else views
        found = []
        for name in self._layers:
            stored = self._held[name][rows] if name in self._held else self._store.take(name, self._rows[rows])
            values = from_storage(stored[np.arange(len(rows)), which], self._store.manifest.layers()[name].dtype)
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            found.append(attention(tensor) if self._attention else tensor)
        return tuple(found)

    def _check(self, name: str, rows: NDArray[np.int64]) -> None:
        failed = absent(self._store.take(name, rows), self._store.manifest.layers()[name].dtype)
        if failed.any():
            raise DataError(
                where=f"cache {self._store.path}, layer {name}",
                found=f"no values for {int(failed.sum())} of {len(rows)} rows",
                wanted="values for every row that the run reads",
                fix="make the cache anew with that layer from the start, so that such rows are left out",
            )

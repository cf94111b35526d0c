"""The local default: one Zarr v3 array a layer, beside the data set. `zarr.open(CACHE)["penultimate"]` reads it plainly.

A shard is encoded by zarr in memory and published as one file. It is read back without zarr: its chunks are not
compressed, so that a mapped file is an array already, once its hash was found to be the committed one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.layout import Layout, Rows, Source, row_shape
from bird_cache.manifest import Layer, Manifest, Plan, Receipt, seal
from bird_cache.numbers import fill_value, storage_dtype
from bird_cache.samples import Samples

__all__ = ["ZarrLayout"]

ATTRIBUTE = "bird_cache"
CRC_BYTES = 4
NOT_WRITTEN = np.uint64(2**64 - 1)


@final
class ZarrLayout(Layout):
    """CACHE/zarr.json, CACHE/LAYER/zarr.json, CACHE/LAYER/c/SHARD/0/..."""

    name = "zarr"
    manifest_path = "zarr.json"

    def render(self, manifest: Manifest) -> bytes:
        """The root zarr.json: a Zarr v3 group whose attributes hold the manifest."""
        group = {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: seal(manifest)}}
        return json.dumps(group, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    def parse(self, data: bytes) -> Mapping[str, Any] | None:
        """See Layout.parse."""
        attributes = json.loads(data).get("attributes", {})
        return attributes.get(ATTRIBUTE)  # type: ignore[no-any-return]

    def describe(self, plan: Plan) -> dict[str, bytes]:
        """Each layer's zarr.json."""
        described = {}
        for name, spec in plan.layers.items():
            memory: dict[str, Any] = {}
            _new_array(memory, spec, plan, plan.rows, False)
            described[f"{name}/zarr.json"] = bytes(memory["zarr.json"].to_bytes())
        return described

    def file_key(self, layer: str) -> str:
        """A file a layer."""
        return layer

    def paths(self, plan: Plan, part: str, shard: int) -> dict[str, str]:
        """zarr's own chunk keys."""
        return {name: f"{name}/c/{shard}{'/0' * (1 + len(spec.shape))}" for name, spec in plan.layers.items()}

    def encode(
        self,
        plan: Plan,
        shard: int,
        stored: Mapping[str, NDArray[np.generic]],
        samples: Samples,
        failed: Mapping[int, str],
        source: Source | None,
    ) -> dict[str, bytes]:
        """What zarr would write at those places, made in memory."""
        return {name: _encode(stored[name], spec, plan) for name, spec in plan.layers.items()}

    def decode(self, data: memoryview, plan: Plan, layer: str, shard: int, rows: Rows) -> NDArray[np.generic]:
        """See Layout.decode."""
        chunks, size = _chunks(data, plan, plan.layers[layer], shard), plan.chunk_rows
        if not isinstance(rows, slice):
            return chunks[rows // size, rows % size]
        start, stop, _ = rows.indices(plan.bounds(shard)[1] - plan.bounds(shard)[0])
        first = start // size
        picked = chunks[first : -(-stop // size)]
        joined = picked[0] if len(picked) == 1 else picked.reshape(-1, *picked.shape[2:])  # copies at chunk borders
        return joined[start - first * size : stop - first * size]

    def check(self, data: memoryview, plan: Plan, receipt: Receipt, samples: Samples) -> list[str]:
        """Nothing: the file holds vectors alone."""
        return []


def _chunks(data: memoryview, plan: Plan, spec: Layer, shard: int) -> NDArray[Any]:
    """The chunks of a shard file as one array (chunks, chunk_rows, views, *shape), without a copy where all are there
    side by side, which is the usual case. The file ends with an index: offset and size of each chunk, and a checksum."""
    planned = plan.shard_rows // plan.chunk_rows
    start, stop = plan.bounds(shard)
    used = -(-(stop - start) // plan.chunk_rows)
    shape, dtype = (plan.chunk_rows, *row_shape(plan, spec)), storage_dtype(spec.dtype)
    chunk_bytes = int(np.prod(shape)) * dtype.itemsize
    end = len(data) - CRC_BYTES
    if end < planned * 16:
        raise ValueError("a shard without an index")
    index = np.frombuffer(data[end - planned * 16 : end], "<u8").reshape(planned, 2)[:used]
    offsets, step = index[:, 0], chunk_bytes + CRC_BYTES
    if not ((index[:, 1] == step) | (offsets == NOT_WRITTEN)).all():  # before anything is allocated
        raise ValueError(f"chunks of {int(index[0, 1]):,} bytes instead of {step:,}")
    if np.array_equal(offsets, offsets[0] + step * np.arange(used, dtype=np.uint64)) and offsets[0] != NOT_WRITTEN:
        return np.ndarray((used, *shape), dtype, data, int(offsets[0]), (step, *_strides(shape, dtype)))
    chunks = np.full((used, *shape), fill_value(spec.dtype), dtype)
    for chunk in range(used):
        if offsets[chunk] != NOT_WRITTEN:
            chunks[chunk] = np.ndarray(shape, dtype, data, int(offsets[chunk]))
    return chunks


def _strides(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> list[int]:
    """Bytes from one item to the next along each axis of a contiguous array."""
    return [int(np.prod(shape[axis + 1 :])) * dtype.itemsize for axis in range(len(shape))]


def _encode(stored: NDArray[np.generic], spec: Layer, plan: Plan) -> bytes:
    memory: dict[str, Any] = {}
    for write_empty in (False, True):  # a shard of nothing but NaN is a file too
        array = _new_array(memory, spec, plan, plan.shard_rows, write_empty)
        array[: len(stored)] = stored
        keys = [key for key in memory if not key.endswith("zarr.json")]
        if keys:
            return bytes(memory[keys[0]].to_bytes())
    raise AssertionError("zarr wrote no chunk")


def _new_array(memory: dict[str, Any], spec: Layer, plan: Plan, rows: int, write_empty: bool) -> Any:
    """An array of a layer's layout in memory: Crc32c on inner chunks, no compression, NaN fill."""
    import zarr  # the larger part of a second: not for a reader
    from zarr.codecs import Crc32cCodec

    return zarr.create_array(
        zarr.storage.MemoryStore(store_dict=memory),
        shape=(rows, *row_shape(plan, spec)),
        chunks=(plan.chunk_rows, *row_shape(plan, spec)),
        shards=(plan.shard_rows, *row_shape(plan, spec)),
        dtype=storage_dtype(spec.dtype),
        fill_value=fill_value(spec.dtype),
        compressors=(Crc32cCodec(),),
        config={"write_empty_chunks": write_empty},
        attributes={"dtype": spec.dtype, "kind": spec.kind},
        overwrite=True,
    )

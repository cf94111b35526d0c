"""The local default: one Zarr v3 array a layer, beside the data set. `zarr.open(CACHE)["penultimate"]` reads it plainly.

A shard is encoded by zarr in memory and published as one file. It is read back without zarr: unless the plan says so its
chunks are not compressed, so that a mapped file is an array already, once its hash was found to be the committed one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.codecs import decompress, zarr_codecs
from bird_cache.layout import Layout, Rows, Source, row_shape
from bird_cache.manifest import Layer, Manifest, Plan, Receipt, seal
from bird_cache.numbers import fill_value, storage_dtype
from bird_cache.samples import Samples

__all__ = ["ZarrLayout"]

ATTRIBUTE = "bird_cache"
TOP = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}
CRC_BYTES = 4
NOT_WRITTEN = np.uint64(2**64 - 1)


@final
class ZarrLayout(Layout):
    """CACHE/zarr.json, CACHE/LAYER/zarr.json, CACHE/LAYER/c/SHARD/0/..."""

    name = "zarr"
    manifest_path = "zarr.json"

    def render(
        self, manifest: Manifest, described: Mapping[str, bytes] = MappingProxyType({}), there: bytes = b""
    ) -> bytes:
        """The root zarr.json: a Zarr v3 group whose attributes hold the manifest, beside any that others have put there, and
        which lists its layers: whoever asks for them need not look at the files that are no arrays."""
        attributes = json.loads(there)["attributes"] if there else {}
        group: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
        group["attributes"] = {**attributes, ATTRIBUTE: seal(manifest)}
        if described:
            group["consolidated_metadata"] = _consolidated(described)
        return json.dumps(group, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    def check_manifest(self, data: bytes, manifest: Manifest, described: Mapping[str, bytes]) -> str | None:
        """Others may have written the file again, as `zarr.consolidate_metadata` does or whoever sets an attribute."""
        if data in (self.render(manifest, described), self.render(manifest)):
            return None
        group = json.loads(data)
        if not {"zarr_format", "node_type"} < group.keys() <= TOP or (group["zarr_format"], group["node_type"]) != (
            3,
            "group",
        ):
            return "it is not the group that was written"
        listed, right = group.get("consolidated_metadata"), _consolidated(described)
        if listed is not None:
            known = {name: layer for name, layer in listed.get("metadata", {}).items() if name in right["metadata"]}
            if {**listed, "metadata": known} != right:
                return "its list of layers says other things than their own zarr.json"
        if group["attributes"].keys() == {ATTRIBUTE} and json.dumps(group, indent=2).encode() != data:  # as zarr writes
            return "bytes differ from what its own content is written as"
        return None

    def parse(self, data: bytes) -> Mapping[str, Any] | None:
        """See Layout.parse."""
        attributes = json.loads(data).get("attributes", {})
        return attributes.get(ATTRIBUTE)  # type: ignore[no-any-return]  # JSON is Any

    def describe(self, plan: Plan) -> dict[str, bytes]:
        """Each layer's zarr.json."""
        return _described(plan, named=True)

    def older_descriptions(self, plan: Plan) -> dict[str, bytes]:
        """Without the names of the dimensions."""
        return _described(plan, named=False)

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
        if plan.compress != "none":
            return _decompressed(data, plan, plan.layers[layer], shard, rows)
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
    index = _index(data, plan, shard)
    used = len(index)
    shape, dtype = (plan.chunk_rows, *row_shape(plan, spec)), storage_dtype(spec.dtype)
    chunk_bytes = int(np.prod(shape)) * dtype.itemsize
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


def _index(data: memoryview, plan: Plan, shard: int) -> NDArray[np.uint64]:
    """Offset and size of each chunk of a shard that holds rows."""
    planned = plan.shard_rows // plan.chunk_rows
    start, stop = plan.bounds(shard)
    end = len(data) - CRC_BYTES
    if end < planned * 16:
        raise ValueError("a shard without an index")
    index = np.frombuffer(data[end - planned * 16 : end], "<u8").reshape(planned, 2)
    return index[: -(-(stop - start) // plan.chunk_rows)]


def _decompressed(data: memoryview, plan: Plan, spec: Layer, shard: int, rows: Rows) -> NDArray[np.generic]:
    """The given rows of a shard of compressed chunks."""
    index, size = _index(data, plan, shard), plan.chunk_rows
    start, stop = plan.bounds(shard)
    picked = np.arange(stop - start)[rows]
    out = np.empty((len(picked), *row_shape(plan, spec)), storage_dtype(spec.dtype))
    chunk = np.empty((size, *out.shape[1:]), out.dtype)
    for number in np.unique(picked // size).tolist():
        offset, length = (int(value) for value in index[number])
        if offset + length > len(data) or length <= CRC_BYTES:
            raise ValueError(f"chunk {number} beyond the shard's end")
        chunk.fill(fill_value(spec.dtype))  # a frame of fewer numbers leaves the rest: no vectors
        decompress(data[offset : offset + length - CRC_BYTES], plan.compress, chunk)
        mine = picked // size == number
        out[mine] = chunk[picked[mine] % size]
    return out


def _strides(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> list[int]:
    """Bytes from one item to the next along each axis of a contiguous array."""
    return [int(np.prod(shape[axis + 1 :])) * dtype.itemsize for axis in range(len(shape))]


def _consolidated(described: Mapping[str, bytes]) -> dict[str, Any]:
    """What zarr calls consolidated metadata: each layer's zarr.json, but for damaged ones."""
    layers = {}
    for path, data in described.items():
        with contextlib.suppress(ValueError):
            layers[path.removesuffix("/zarr.json")] = json.loads(data)
    return {"kind": "inline", "must_understand": False, "metadata": layers}


def _described(plan: Plan, *, named: bool) -> dict[str, bytes]:
    described = {}
    for name, spec in plan.layers.items():
        memory: dict[str, Any] = {}
        _new_array(memory, spec, plan, plan.rows, _dimensions(name, spec) if named else None)
        described[f"{name}/zarr.json"] = bytes(memory["zarr.json"].to_bytes())
    return described


def _dimensions(name: str, spec: Layer) -> tuple[str, ...]:
    """The dimensions' names. Readers such as xarray take two of one name for one, so that each layer needs its own."""
    if name == "penultimate" and len(spec.shape) == 1:
        return ("row", "view", "feature")
    axes = (f"{name}.{axis}" for axis in range(len(spec.shape)))
    return ("row", "view", *((f"{name}.feature",) if len(spec.shape) == 1 else axes))


def _encode(stored: NDArray[np.generic], spec: Layer, plan: Plan) -> bytes:
    memory: dict[str, Any] = {}
    array = _new_array(memory, spec, plan, plan.shard_rows)
    array[: len(stored)] = stored
    return next(bytes(data.to_bytes()) for key, data in memory.items() if not key.endswith("zarr.json"))


def _new_array(memory: dict[str, Any], spec: Layer, plan: Plan, rows: int, names: tuple[str, ...] | None = None) -> Any:
    """An array of a layer's layout in memory: Crc32c on inner chunks, compression if planned, NaN fill. A chunk of failed
    rows alone is written too, so that strict readers can tell it from a lost one."""
    import zarr  # the larger part of a second: not for a reader

    return zarr.create_array(
        zarr.storage.MemoryStore(store_dict=memory),
        shape=(rows, *row_shape(plan, spec)),
        chunks=(plan.chunk_rows, *row_shape(plan, spec)),
        shards=(plan.shard_rows, *row_shape(plan, spec)),
        dtype=storage_dtype(spec.dtype),
        fill_value=fill_value(spec.dtype),
        **zarr_codecs(plan.compress),
        config={"write_empty_chunks": True},
        dimension_names=names,
        attributes={"dtype": spec.dtype, "kind": spec.kind},
        overwrite=True,
    )

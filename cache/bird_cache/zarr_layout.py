"""The files of a Zarr cache: their names, and their bytes. What is specified in cache/README.md is written down here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from bird_cache.errors import DamagedCacheError, NotACacheError
from bird_cache.files import canonical_json, digest, file_digest
from bird_cache.manifest import FileRecord, Layer, Manifest, Plan, Receipt, open_sealed, seal
from bird_cache.numbers import fill_value, storage_dtype
from bird_cache.samples import Samples

MANIFEST, SAMPLES, COMMITS = "zarr.json", "samples.parquet", "commits"
ATTRIBUTE = "bird_cache"


def read_manifest(path: Path) -> Manifest:
    """The manifest in the group's attributes. Raises NotACacheError, DamagedCacheError."""
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError:
        raise NotACacheError(
            where=str(path),
            found=f"no {MANIFEST}",
            wanted="a feature cache",
            fix="make one with `bird precompute --out`",
        ) from None
    try:
        group = json.loads(data)
        if ATTRIBUTE not in group.get("attributes", {}):
            raise NotACacheError(
                where=str(path),
                found="a Zarr group of another program",
                wanted="a feature cache",
                fix="choose another path",
            )
        return open_sealed(Manifest, group["attributes"][ATTRIBUTE]).checked()
    except (ValueError, AttributeError, TypeError) as error:
        raise damaged(path, f"a manifest that cannot be trusted ({error})") from error


def read_receipts(path: Path, plan: Plan, *, strict: bool) -> dict[int, Receipt]:
    """The valid commit records. With `strict`, one that is missing or invalid raises DamagedCacheError."""
    receipts = {}
    for shard in range(plan.shards):
        try:
            receipt = open_sealed(Receipt, json.loads((path / receipt_name(shard)).read_bytes()))
            if (
                receipt.shard != shard
                or (receipt.start, receipt.stop) != plan.bounds(shard)
                or receipt.files.keys() != plan.layers.keys()
            ):
                raise ValueError("a receipt for other rows or layers")
            receipts[shard] = receipt
        except (OSError, ValueError, AttributeError) as error:
            if strict:
                start, stop = plan.bounds(shard)
                raise damaged(
                    path, f"{receipt_name(shard)} (rows {start}..{stop - 1}) missing or altered ({error})"
                ) from error
    return receipts


def encode_shard(stored: NDArray[np.generic], spec: Layer, plan: Plan) -> bytes:
    """The bytes of one shard file: what zarr would write at that place, made in memory."""
    memory: dict[str, Any] = {}
    for write_empty in (False, True):  # a shard of nothing but NaN is a file too
        array = new_array(memory, spec, plan, plan.shard_rows, write_empty)
        array[: len(stored)] = stored
        keys = [key for key in memory if not key.endswith("zarr.json")]
        if keys:
            return bytes(memory[keys[0]].to_bytes())
    raise AssertionError("zarr wrote no chunk")


def describe_array(spec: Layer, plan: Plan, rows: int) -> bytes:
    """The zarr.json of a layer."""
    memory: dict[str, Any] = {}
    new_array(memory, spec, plan, rows, False)
    return bytes(memory["zarr.json"].to_bytes())


def new_array(memory: dict[str, Any], spec: Layer, plan: Plan, rows: int, write_empty: bool) -> Any:
    """An array of a layer's layout in memory: Crc32c on inner chunks, no compression, NaN fill."""
    return zarr.create_array(
        zarr.storage.MemoryStore(store_dict=memory),
        shape=(rows, plan.views, *spec.shape),
        chunks=(plan.chunk_rows, plan.views, *spec.shape),
        shards=(plan.shard_rows, plan.views, *spec.shape),
        dtype=storage_dtype(spec.dtype),
        fill_value=fill_value(spec.dtype),
        compressors=(Crc32cCodec(),),
        config={"write_empty_chunks": write_empty},
        attributes={"dtype": spec.dtype, "kind": spec.kind},
        overwrite=True,
    )


def render(receipt: Receipt) -> bytes:
    """A receipt's file."""
    return canonical_json(seal(receipt)) + b"\n"


def render_group(manifest: Manifest) -> bytes:
    """The root zarr.json: a Zarr v3 group whose attributes hold the manifest."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: seal(manifest)}}
    return json.dumps(group, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def shard_name(layer: str, shard: int, plan: Plan) -> str:
    """Path of a shard file inside the cache: zarr's own chunk key."""
    zeros = "/0" * (1 + len(plan.layers[layer].shape))
    return f"{layer}/c/{shard}{zeros}"


def receipt_name(shard: int) -> str:
    """Path of a commit record inside the cache."""
    return f"{COMMITS}/{shard:06d}.json"


def ids_digest(samples: Samples, start: int, stop: int) -> str:
    """Digest of the ids of rows start..stop, in order."""
    return digest(canonical_json(samples.ids[start:stop].tolist()))


def record_of(path: str, data: bytes) -> FileRecord:
    """The record of a file that holds `data`."""
    return FileRecord(path=path, bytes=len(data), xxh3=digest(data))


def same_bytes(root: Path, record: FileRecord) -> bool:
    """Whether a file is there with the bytes that were recorded."""
    file = root / record.path
    return file.is_file() and file.stat().st_size == record.bytes and file_digest(file) == record.xxh3


def damaged(path: Path, found: str) -> DamagedCacheError:
    """The error for a cache whose bytes are not what was committed."""
    return DamagedCacheError(
        where=str(path),
        found=found,
        wanted="the bytes that were committed",
        fix="see all of it with `bird cache verify`; recompute into a new folder, or restore the file",
    )

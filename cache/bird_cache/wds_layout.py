"""The portable store: one tar a shard, as `webdataset` reads it. Images and vectors travel together.

    000000.tar      000000000.jpg  000000000.penultimate.npy  000000000.json  000000001.jpg ...
    NAME-000000.tar the same for layers that were added later, without the images

The key is the row number; the sample's id is in its json. A row that failed is not in the tar: readers such as webdataset
and Ray ask the same fields of every sample. (In older tars it is there, with NaN.) Reading follows the tar's plain headers
and takes an array only behind the very .npy header that writing put there: nothing in a tar is ever executed or guessed at.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.files import canonical_json
from bird_cache.layout import Layout, Rows, Source, row_shape
from bird_cache.manifest import Layer, Manifest, Plan, Receipt, seal
from bird_cache.numbers import fill_value, storage_dtype
from bird_cache.samples import OK, Samples

__all__ = ["WebDatasetLayout"]

TAR = "tar"
BLOCK = 512
KINDS = {"json", "jpg", "png", "bmp", "webp", "bin"}
"""what a member may be beside an array"""
MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"))


@final
class WebDatasetLayout(Layout):
    """CACHE/manifest.json, CACHE/000000.tar, ..."""

    name = "webdataset"
    manifest_path = "manifest.json"

    def render(
        self, manifest: Manifest, described: Mapping[str, bytes] = MappingProxyType({}), there: bytes = b""
    ) -> bytes:
        """The sealed manifest."""
        return json.dumps({"bird_cache": seal(manifest)}, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    def parse(self, data: bytes) -> Mapping[str, Any] | None:
        """See Layout.parse."""
        return json.loads(data).get("bird_cache")  # type: ignore[no-any-return]  # JSON is Any

    def check_manifest(self, data: bytes, manifest: Manifest, described: Mapping[str, bytes]) -> str | None:
        """See Layout.check_manifest."""
        return None if data == self.render(manifest) else "bytes differ from what its own content is written as"

    def describe(self, plan: Plan) -> dict[str, bytes]:
        """Nothing: each array in a tar describes itself."""
        return {}

    def file_key(self, layer: str) -> str:
        """One file holds all layers."""
        return TAR

    def paths(self, plan: Plan, part: str, shard: int) -> dict[str, str]:
        """NNNNNN.tar."""
        return {TAR: f"{part}-{shard:06d}.tar" if part else f"{shard:06d}.tar"}

    def encode(
        self,
        plan: Plan,
        shard: int,
        stored: Mapping[str, NDArray[np.generic]],
        samples: Samples,
        failed: Mapping[int, str],
        source: Source | None,
    ) -> dict[str, bytes]:
        """Samples in order but for those that failed, each with its image, its vectors and its json. No times, no owners."""
        start, stop = plan.bounds(shard)
        headers = {name: _npy_header(plan, spec) for name, spec in plan.layers.items()}
        buffer = io.BytesIO()
        for row, described in enumerate(_described(samples, start, stop, {}), start):
            if row in failed:
                continue
            key = f"{row:09d}"
            image = source(row) if source is not None and plan.images else None
            if image is not None:
                _add(buffer, f"{key}.{extension(image)}", image)
            for name in plan.layers:
                _add(buffer, f"{key}.{name}.npy", headers[name] + stored[name][row - start].tobytes())
            _add(buffer, f"{key}.json", canonical_json(described))
        buffer.write(bytes(2 * BLOCK))
        return {TAR: buffer.getvalue()}

    def decode(self, data: memoryview, plan: Plan, layer: str, shard: int, rows: Rows) -> NDArray[np.generic]:
        """See Layout.decode."""
        spec = plan.layers[layer]
        header, shape, dtype = _npy_header(plan, spec), row_shape(plan, spec), storage_dtype(spec.dtype)
        size = len(header) + int(np.prod(shape)) * dtype.itemsize
        start, stop = plan.bounds(shard)
        bodies: dict[int, memoryview] = {}
        last = start - 1
        for name, body in _members(data):
            kind = name.split(".", 1)[1]
            if kind not in KINDS and not kind.endswith(".npy"):
                raise ValueError(f"{name}, which was not planned")
            if kind == f"{layer}.npy":
                row = int(name[:9])
                if len(body) != size or bytes(body[: len(header)]) != header or not last < row < stop:
                    raise ValueError(f"{name} is not the array that was planned")
                bodies[row - start], last = body[len(header) :], row
        lost = np.full(shape, fill_value(spec.dtype), dtype).tobytes()  # rows that failed
        picked = range(stop - start)[rows] if isinstance(rows, slice) else rows.tolist()
        return np.frombuffer(b"".join(bodies.get(row, lost) for row in picked), dtype).reshape(len(picked), *shape)

    def sources(self, data: memoryview, plan: Plan, shard: int) -> list[bytes | None]:
        """See Layout.sources."""
        start, stop = plan.bounds(shard)
        found: list[bytes | None] = [None] * (stop - start)
        for name, body in _members(data):
            if not name.endswith((".npy", ".json")):
                found[int(name[:9]) - start] = bytes(body)
        return found

    def check(self, data: memoryview, plan: Plan, receipt: Receipt, samples: Samples) -> list[str]:
        """Whether each sample's json says what the sample table says, and every sample but those that failed has one."""
        described = enumerate(_described(samples, receipt.start, receipt.stop, receipt.failed), receipt.start)
        expected = {f"{row:09d}.json": canonical_json(said) for row, said in described}
        failed = {f"{row:09d}.json" for row in receipt.failed}
        try:
            for name, body in _members(data):
                if name.endswith(".json") and bytes(body) != expected.pop(name, None):
                    return [f"{name} says other things of its sample than samples.parquet"]
        except ValueError as error:
            return [f"a tar that cannot be followed ({error})"]
        missing = sorted({*expected} - failed)
        return [f"no {missing[0]} in the tar, and {len(missing) - 1} more"] if missing else []


def extension(image: bytes) -> str:
    """What the encoded bytes are, by their first ones; "bin" for anything unknown."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in MAGIC if image.startswith(magic)), "bin")


def _described(samples: Samples, start: int, stop: int, failed: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """What a shard's samples are, one after the other."""
    columns = [samples.text(name, start, stop) for name in ("id", "split", "digest")]
    columns += [samples.numbers(name, slice(start, stop)).tolist() for name in ("label", "group")]
    for row, (id, split, digest, label, group) in enumerate(zip(*columns, strict=True), start):
        yield {
            "row": row,
            "id": id,
            "label": label,
            "group": group,
            "split": split,
            "digest": digest,
            "status": failed.get(row, OK),
        }


def _npy_header(plan: Plan, spec: Layer) -> bytes:
    """What numpy writes before an array of one row."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(storage_dtype(spec.dtype))
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": row_shape(plan, spec)}
    )
    return buffer.getvalue()


def _add(buffer: io.BytesIO, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(body), 0, 0o644
    buffer.write(member.tobuf(tarfile.USTAR_FORMAT))
    buffer.write(body)
    buffer.write(bytes(-len(body) % BLOCK))


def _members(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Name and bytes of each plain file. Raises ValueError for anything else in the tar."""
    position = 0
    while position + BLOCK <= len(data):
        header = bytes(data[position : position + BLOCK])
        name, kind = header[:100].rstrip(b"\0").decode("ascii"), header[156:157]
        if not name:
            return
        size = int(header[124:135], 8)
        if kind != b"0" or "/" in name or "." not in name or position + BLOCK + size > len(data):
            raise ValueError(f"a member {name!r} of kind {kind!r}, {size:,} bytes")
        yield name, data[position + BLOCK : position + BLOCK + size]
        position += BLOCK + size + -size % BLOCK
    raise ValueError("a tar without an end")

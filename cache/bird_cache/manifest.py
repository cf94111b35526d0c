"""What a cache says of itself: the plan it was started with, one receipt per committed shard, the manifest.

All three are JSON in canonical form with a checksum inside, so that a changed bit anywhere is found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar, final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from bird_cache.errors import StaleCacheError
from bird_cache.files import canonical_json, digest
from bird_cache.numbers import Dtype

__all__ = [
    "FORMAT",
    "CellAudit",
    "Compress",
    "Factor",
    "FileRecord",
    "Kind",
    "Layer",
    "LeftOut",
    "Manifest",
    "Part",
    "Plan",
    "Receipt",
    "Store",
    "Summary",
    "open_sealed",
    "seal",
]

FORMAT: Literal["bird-cache-1"] = "bird-cache-1"
Kind = Literal["penultimate", "projection", "projection_l2", "logits", "attention", "maps", "token", "boxes"]
Store = Literal["zarr", "webdataset"]
Compress = Literal["none", "zstd", "pcodec"]
"""how the chunks of a Zarr store are compressed, without loss; not part of a fingerprint"""


class Record(BaseModel):
    """A frozen record that refuses unknown fields. Fields that are newer than the first caches (`NEWER`) are written only
    where they say something, so that an older cache is written as it was."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    NEWER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in values.items()
            if name not in self.NEWER or getattr(self, name) != fields[name].default
        }


@final
class LeftOut(Record):
    """Samples that were listed and got no row: why, of which class and group (-1: unknown) and split ("": none yet)."""

    reason: str
    label: int
    group: int
    split: str
    rows: int

    @staticmethod
    def of(counts: Mapping[tuple[str, int, int, str], int]) -> tuple[LeftOut, ...]:
        """One for each reason, label, group and split."""
        return tuple(
            LeftOut(reason=reason, label=label, group=group, split=split, rows=rows)
            for (reason, label, group, split), rows in counts.items()
        )


@final
class Factor(Record):
    """One of several group columns that were crossed: its name, those of its values, and which of them each group has, in
    the order of `Plan.group_names`."""

    name: str
    names: tuple[str, ...]
    codes: tuple[int, ...]


@final
class Layer(Record):
    """One array of the cache: the shape of a row, how it is stored, and what kind of vector it is."""

    shape: tuple[int, ...]
    dtype: Dtype
    kind: Kind


@final
class Plan(Record):
    """Everything that is fixed before the first vector is computed.

    `causes` is what the vectors follow from (teacher weights, preprocessing, precision, layers, views, data set): its
    hash is the fingerprint. No paths and no times.
    """

    causes: dict[str, JsonValue]
    layers: dict[str, Layer]
    rows: int = Field(ge=1)
    views: int = Field(default=1, ge=1)
    shard_rows: int = Field(ge=1)
    chunk_rows: int = Field(ge=1)
    store: Store = "zarr"
    images: bool = False
    """whether the shards hold the samples' encoded sources too"""
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    notes: dict[str, str] = {}
    """what a reader wants to know but no vector depends on, such as the teacher's name"""
    left_out: tuple[LeftOut, ...] | None = None
    """what was listed and is not among the rows; None in caches that do not record it"""
    compress: Compress = "none"
    factors: tuple[Factor, ...] = ()
    """the columns that the groups are crossed from, where there are several"""
    NEWER: ClassVar[frozenset[str]] = frozenset({"left_out", "compress", "factors"})

    @property
    def fingerprint(self) -> str:
        """sha256 of the causes, in hex."""
        import hashlib

        return hashlib.sha256(canonical_json(self.causes)).hexdigest()

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.rows / self.shard_rows)

    @property
    def audited(self) -> str:
        """The layer whose norms and rounding the receipts record: the penultimate one, else the first by name."""
        return "penultimate" if "penultimate" in self.layers else min(self.layers)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row and end of a shard."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def require(self, other: Plan, where: str) -> None:
        """Raise StaleCacheError, naming the first field that differs, unless `other` asks for the same cache."""
        mine, theirs = flatten(self.causes), flatten(other.causes)
        for name in ("store", "images", "shard_rows", "chunk_rows", "compress"):
            mine[name], theirs[name] = getattr(self, name), getattr(other, name)
        names = [plan.notes.get("teacher") for plan in (self, other)]
        here, there = [f"vectors of {name} with " if names[0] != names[1] and name else "" for name in names]
        for field in sorted({*mine, *theirs}):
            if mine.get(field) != theirs.get(field):
                raise StaleCacheError(
                    where=where,
                    found=f"{here}{field} = {mine.get(field, 'absent')}",
                    wanted=f"{there}{field} = {theirs.get(field, 'absent')}",
                    fix="ask for the same, or write to another folder",
                )


@final
class FileRecord(Record):
    """A file of the cache, by its path inside it: size and xxh3-128 of its bytes."""

    path: str
    bytes: int
    xxh3: str


@final
class CellAudit(Record):
    """What one (class, group) cell got: rows, failures, L2 norms of its vectors, and the worst relative rounding error
    |x - stored(x)| / |x| of a row. Sums and extremes, so that shards add up."""

    rows: int = 0
    failed: int = 0
    norm_sum: float = 0.0
    norm_min: float | None = None
    norm_max: float | None = None
    rounding_max: float = 0.0

    def __add__(self, other: CellAudit) -> CellAudit:
        def pick(choose: Any, a: float | None, b: float | None) -> float | None:
            known = [value for value in (a, b) if value is not None]
            return choose(known) if known else None

        return CellAudit(
            rows=self.rows + other.rows,
            failed=self.failed + other.failed,
            norm_sum=self.norm_sum + other.norm_sum,
            norm_min=pick(min, self.norm_min, other.norm_min),
            norm_max=pick(max, self.norm_max, other.norm_max),
            rounding_max=max(self.rounding_max, other.rounding_max),
        )


@final
class Receipt(Record):
    """The commit record of one shard: it counts from the moment this file exists and its checksum holds."""

    shard: int
    start: int
    stop: int
    ids: str
    files: dict[str, FileRecord]
    failed: dict[int, str]
    audit: dict[str, CellAudit]
    doubtful: dict[int, str] = {}
    """rows with a vector whose image carries little: nearly black, nearly constant"""
    NEWER: ClassVar[frozenset[str]] = frozenset({"doubtful"})


@final
class Summary(Record):
    """The receipts of one part, added up. Cells are keyed "class,group"."""

    written: int
    failed: int
    cells: dict[str, CellAudit]


@final
class Part(Record):
    """Layers that were added to a finished cache, with their own causes (which name the fingerprint of the cache they
    were added to), fingerprint and receipts. What was there before stays as it was."""

    complete: bool
    fingerprint: str
    causes: dict[str, JsonValue]
    layers: dict[str, Layer]
    files: tuple[FileRecord, ...] = ()
    summary: Summary | None = None


@final
class Manifest(Record):
    """The cache's last word: written when the plan is fixed (complete = false) and once more when every row is there."""

    format: Literal["bird-cache-1"] = FORMAT
    complete: bool
    fingerprint: str
    plan: Plan
    identity: str
    """digest of the sample table without its status column"""
    files: tuple[FileRecord, ...] = ()
    """samples.parquet and the layers' metadata"""
    summary: Summary | None = None
    parts: dict[str, Part] = {}

    def checked(self) -> Self:
        """Itself. Raises ValueError where its parts contradict each other."""
        for part in ("", *self.parts):
            said = self.parts[part] if part else self
            if said.fingerprint != self.plan_of(part).fingerprint:
                raise ValueError("a fingerprint is not the hash of its causes")
            if said.complete and (said.summary is None or said.summary.written + said.summary.failed != self.plan.rows):
                raise ValueError("complete, but written + failed is not the number of rows")
        return self

    def plan_of(self, part: str) -> Plan:
        """The plan of the layers that were added as `part`; "" is the cache's own."""
        if not part:
            return self.plan
        added = self.parts[part]
        return self.plan.model_copy(update={"causes": added.causes, "layers": added.layers})

    def part_of(self, layer: str) -> str:
        """Which part holds a layer. Raises KeyError naming the layers there are."""
        for part in ("", *self.parts):
            if layer in self.plan_of(part).layers and (not part or self.parts[part].complete):
                return part
        raise KeyError(f"no layer {layer!r}; there are {', '.join(self.layers())}")

    def layers(self) -> dict[str, Layer]:
        """All layers that can be read."""
        found = dict(self.plan.layers)
        for added in self.parts.values():
            found |= added.layers if added.complete else {}
        return found


R = TypeVar("R", bound=BaseModel)


def seal(record: BaseModel) -> dict[str, Any]:
    """A record as JSON values with the checksum of its canonical form inside."""
    values = record.model_dump(mode="json")
    return values | {"checksum": digest(canonical_json(values))}


def open_sealed(kind: type[R], values: Mapping[str, Any]) -> R:
    """The record that `seal` sealed. Raises ValueError if a value was changed or does not fit."""
    body = {name: value for name, value in values.items() if name != "checksum"}
    if values.get("checksum") != digest(canonical_json(body)):
        raise ValueError("the checksum does not hold")
    try:
        return kind.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise ValueError(str(error)) from error


def flatten(value: JsonValue | Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """{"teacher": {"name": "x"}} -> {"teacher.name": "x"}: fields that a message can name."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = (flatten(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}

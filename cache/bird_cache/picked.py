"""Rows of other caches on their way into a new one, as they are stored: what `bird_cache.generations` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.errors import StaleCacheError
from bird_cache.layout import Source
from bird_cache.manifest import CellAudit, LeftOut, Manifest, Part, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import FeatureStore
from bird_cache.summary import add_cells, audit_cells, norms_of
from bird_cache.writer import FeatureWriter, open_part, open_writer

__all__ = ["Advance", "Picked", "write"]

Ints = NDArray[np.int64]
Advance = Callable[[int], None]


@final
class Picked:
    """The rows of a new generation: row i is row `rows[i]` of `stores[of[i]]`."""

    def __init__(self, stores: Sequence[FeatureStore], of: Ints, rows: Ints) -> None:
        self.stores, self.of, self.rows = stores, of, rows
        self._held: dict[int, tuple[int, list[bytes | None]]] = {}

    def samples(self) -> Samples:
        """Their table, nothing written yet."""

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(store.samples, name) for store in self.stores])[self._places()]

        status = np.full(len(self.rows), PENDING, object)
        numbers = column("labels"), column("groups")
        return Samples(column("ids"), *numbers, column("splits"), column("digests"), status)

    def _places(self) -> Ints:
        starts = np.cumsum([0, *(len(store) for store in self.stores)])
        return np.asarray(starts[self.of] + self.rows)

    def among(self, start: int, stop: int) -> Iterator[tuple[int, Ints, Ints]]:
        """For each cache that rows start..stop are from: its number, their places, counted from start, and its rows."""
        for number in range(len(self.stores)):
            places = np.flatnonzero(self.of[start:stop] == number)
            if len(places):
                yield number, places, self.rows[start:stop][places]

    def take(self, layer: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows start..stop of a layer as they are stored."""
        pieces = [(places, self.stores[number].take(layer, rows)) for number, places, rows in self.among(start, stop)]
        out = np.empty((stop - start, *pieces[0][1].shape[1:]), pieces[0][1].dtype)
        for places, piece in pieces:
            out[places] = piece
        return out

    def noted(self, notes: Sequence[Mapping[int, str]], start: int, stop: int) -> dict[int, str]:
        """What `notes` of each cache (row -> text) say of rows start..stop, by the new rows."""
        found = {}
        for number, places, rows in self.among(start, stop):
            pairs = zip(places.tolist(), rows.tolist(), strict=True)
            found.update({start + place: notes[number][row] for place, row in pairs if row in notes[number]})
        return dict(sorted(found.items()))

    def source(self, row: int) -> bytes | None:
        """A row's encoded image; the shard that it lies in is held until the next one is asked for."""
        number, there = int(self.of[row]), int(self.rows[row])
        store = self.stores[number]
        shard, place = divmod(there, store.manifest.plan.shard_rows)
        if self._held.get(number, (-1, []))[0] != shard:
            self._held[number] = (shard, store.sources(shard))
        return self._held[number][1][place]


def write(
    picked: Picked,
    target: str | Path,
    by: str,
    left_out: tuple[LeftOut, ...] | None,
    parts: Mapping[str, Part],
    advance: Advance,
) -> Manifest:
    """Write (or finish writing) the picked rows to `target`, with the layers that were added as `parts`. Raises
    StaleCacheError where another cache is in the way, and what `open_writer` raises."""
    samples = picked.samples()
    plan = _plan(picked, samples, by, left_out)
    try:
        with open_writer(target, plan, samples) as writer:
            _write_shards(picked, writer, advance)
            manifest = writer.finish()
    except StaleCacheError as error:
        found = f"another cache (other {error.found.split(' = ')[0]})"
        wanted = "a new folder, or what the same command began"
        raise StaleCacheError(where=str(target), found=found, wanted=wanted, fix="give another folder") from error
    for name, part in parts.items():
        causes = {key: value for key, value in part.causes.items() if key != "base"}
        with open_part(target, name, part.layers, {**causes, "generation": {"from": _origin(picked, name)}}) as writer:
            _write_shards(picked, writer, advance)
            manifest = writer.finish()
    return manifest


def _plan(picked: Picked, samples: Samples, by: str, left_out: tuple[LeftOut, ...] | None) -> Plan:
    """The plan of the first cache, for the picked rows."""
    plan, identity = picked.stores[0].manifest.plan, samples.identity()
    causes: dict[str, Any] = dict(plan.causes)
    causes["generation"] = {"by": by, "from": _origin(picked, ""), "identity": identity}
    dataset = plan.causes.get("dataset")
    if isinstance(dataset, dict):
        causes["dataset"] = {**dataset, "rows": len(samples), "identity": identity}
    notes = {**plan.notes, "generation": f"{by}: {len(samples):,} rows, of {' and '.join(_rows(picked))}"}
    return plan.model_copy(update={"causes": causes, "rows": len(samples), "left_out": left_out, "notes": notes})


def _rows(picked: Picked) -> list[str]:
    return [f"{len(store):,}" for store in picked.stores]


def _origin(picked: Picked, part: str) -> list[str]:
    """The fingerprints of what is taken, cache by cache."""
    return [store.manifest.parts[part].fingerprint if part else store.fingerprint for store in picked.stores]


def _write_shards(picked: Picked, writer: FeatureWriter, advance: Advance) -> None:
    """Write the pending shards of a writer's part with the picked rows, as they are stored."""
    plan, part = writer.plan, writer.part
    receipts = [store.part_receipts[part].values() for store in picked.stores]
    failed = [{row: why for each in of for row, why in each.failed.items()} for of in receipts]
    doubtful = [{row: what for each in of for row, what in each.doubtful.items()} for of in receipts]
    known = add_cells(each.audit for of in receipts for each in of)
    for shard in writer.pending():
        start, stop = plan.bounds(shard)
        stored = {layer: picked.take(layer, start, stop) for layer in plan.layers}
        lost = picked.noted(failed, start, stop)
        audit = _audit(writer, start, stored[plan.audited], lost, known)
        source: Source | None = picked.source if plan.images and not part else None
        writer.write_stored(shard, stored, lost, audit, source, picked.noted(doubtful, start, stop))
        advance(stop - start)


def _audit(
    writer: FeatureWriter,
    start: int,
    stored: NDArray[np.generic],
    lost: Mapping[int, str],
    known: Mapping[str, CellAudit],
) -> dict[str, CellAudit]:
    """Rows and norms of each cell; the rounding error is the worst one known of it, for the vectors before they were rounded
    are not there."""
    plan = writer.plan
    norms, skip = norms_of(stored, plan.layers[plan.audited].dtype), np.zeros(len(stored), bool)
    skip[[row - start for row in lost]] = True
    cells = audit_cells(writer.samples, start, norms, np.zeros_like(norms), skip)
    return {
        key: cell.model_copy(update={"rounding_max": known[key].rounding_max}) if cell.rows > cell.failed else cell
        for key, cell in cells.items()
    }

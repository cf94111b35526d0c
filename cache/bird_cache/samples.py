"""samples.parquet, the ordering contract: row i of every layer is sample i of this table."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird_cache.files import canonical_json, digest, digest_of_pieces
from bird_cache.table import GROUP_ROWS, UNIQUE, TableFile, as_integers, json_of, of_integers, to_parquet

__all__ = ["OK", "PENDING", "Samples"]

OK, PENDING = "ok", "pending"
IDENTITY = ("id", "label", "group", "split", "digest")
"""what a cache's rows are: every column but the status"""
Pieces = list[bytes | memoryview]


@final
class Few:
    """A column of few values: row i has the value number `places[i]` of `values`."""

    def __init__(self, values: list[str], places: NDArray[np.signedinteger[Any]]) -> None:
        self.values, self.places = values, places

    def text(self) -> NDArray[np.object_]:
        """Each row's value."""
        words = np.empty(len(self.values), object)
        words[:] = self.values
        return np.asarray(words[self.places])


@final
class Samples:
    """One entry per row. `ids` are stable names, never positions; `digests` hash each image's encoded source;
    `status` is "ok", "pending" before the row is written, or why it failed.

    Of a table that was read from Parquet, labels, groups, splits and status are held in a byte or two a row; ids and
    digests stay in the file. A whole column is made for whoever asks for it and then kept: a large cache is read by
    `text`, `numbers` and `having` instead.
    """

    def __init__(
        self,
        ids: NDArray[np.object_],
        labels: NDArray[np.int64],
        groups: NDArray[np.int64],
        splits: NDArray[np.object_],
        digests: NDArray[np.object_],
        status: NDArray[np.object_],
    ) -> None:
        self._rows = len(labels)
        self._whole: dict[str, NDArray[Any]] = {
            "id": ids,
            "label": labels,
            "group": groups,
            "split": splits,
            "digest": digests,
            "status": status,
        }
        self._few: dict[str, Few] = {}
        self._numbers: dict[str, NDArray[np.signedinteger[Any]]] = {}
        self._file: TableFile | None = None
        self._identity: str | None = None

    @property
    def ids(self) -> NDArray[np.object_]:
        """Stable names."""
        return self._column("id")

    @property
    def labels(self) -> NDArray[np.int64]:
        """Task classes."""
        return self._column("label")

    @property
    def groups(self) -> NDArray[np.int64]:
        """Protected groups."""
        return self._column("group")

    @property
    def splits(self) -> NDArray[np.object_]:
        """train, meta or test."""
        return self._column("split")

    @property
    def digests(self) -> NDArray[np.object_]:
        """xxh3-128 of each sample's encoded source, in hex."""
        return self._column("digest")

    @property
    def status(self) -> NDArray[np.object_]:
        """ "ok", "pending", or why a row has no vector."""
        return self._column("status")

    def __len__(self) -> int:
        return self._rows

    def text(self, name: str, start: int, stop: int) -> list[str]:
        """The rows start..stop of a column of text ("id", "split", "digest", "status")."""
        if name in self._whole:
            return self._whole[name][start:stop].tolist()  # type: ignore[no-any-return]  # pyarrow is untyped
        if name in self._few:
            few = self._few[name]
            return [few.values[place] for place in few.places[start:stop].tolist()]
        return self.arrow(name, start, stop).to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped

    def arrow(self, name: str, start: int, stop: int) -> Any:
        """`text` as an Arrow array: of a table that was read from Parquet without a Python object a row."""
        import pyarrow as pa

        if self._file is not None and name in UNIQUE:
            return self._file.rows(name, start, min(stop, len(self)))
        return pa.array(self.text(name, start, stop), pa.large_string())

    def pick(self, name: str, rows: NDArray[np.int64]) -> Any:
        """A column of text of some rows, ascending, as an Arrow array. All from the first to the last of them is read."""
        first, end = int(rows[0]), int(rows[-1]) + 1
        found = self.arrow(name, first, end)
        return found if len(rows) == end - first else found.take(of_integers(rows - first))

    def numbers(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """The "label" or "group" of the given rows."""
        column = self._whole[name] if name in self._whole else self._numbers[name]
        return column[rows].astype(np.int64, copy=False)

    def having(self, name: str, value: str) -> NDArray[np.bool_]:
        """Which rows have that "split" or "status"."""
        if name in self._whole:
            return np.asarray(self._whole[name] == value)
        few = self._few[name]
        return np.asarray(few.places == few.values.index(value)) if value in few.values else np.zeros(len(self), bool)

    def counts(self, name: str) -> dict[str, int]:
        """How many rows have each "split" or "status"."""
        if name in self._whole:
            values, counts = np.unique(self._whole[name].astype(str), return_counts=True)
            return dict(zip(values.tolist(), counts.tolist(), strict=True))
        few = self._few[name]
        return {value: int((few.places == number).sum()) for number, value in enumerate(few.values)}

    def with_status(self, failed: Mapping[int, str]) -> Samples:
        """The same samples, every row "ok" but those of `failed`, which have that reason."""
        words = {OK: 0}
        reasons = _narrow(np.array([words.setdefault(reason, len(words)) for reason in failed.values()], np.int64))
        places = np.zeros(len(self), reasons.dtype)
        places[list(failed)] = reasons
        other = copy.copy(self)
        other._whole = {name: column for name, column in self._whole.items() if name != "status"}
        other._few = self._few | {"status": Few([*words], places)}
        return other

    def identity(self) -> str:
        """Digest of everything but the status: what the cache's rows are, in order. It is that of the canonical JSON of
        the list of the five columns, made piece by piece."""
        if self._identity is not None:
            return self._identity
        return digest_of_pieces(_json_of_columns({name: self._json(name) for name in IDENTITY}))

    def ids_digest(self, start: int, stop: int) -> str:
        """Digest of the canonical JSON of the ids of rows start..stop, in order."""
        if self._file is not None:
            return digest_of_pieces([b"[", *json_of(self.arrow("id", start, stop)), b"]"])
        return digest(canonical_json(self.text("id", start, stop)))

    def to_parquet(self) -> bytes:
        """The table as Parquet."""
        import pyarrow as pa

        def block(start: int) -> dict[str, Any]:
            rows = slice(start, min(start + GROUP_ROWS, len(self)))
            text = {n: self.arrow(n, start, rows.stop).cast(pa.string()) for n in ("id", "split", "digest", "status")}
            numbers = {name: of_integers(self.numbers(name, rows)) for name in ("label", "group")}
            return {**text, **numbers, "row": of_integers(np.arange(start, rows.stop))}

        return to_parquet(block(start) for start in range(0, len(self), GROUP_ROWS))

    @staticmethod
    def from_parquet(source: bytes | Path) -> Samples:
        """The table in a Parquet file, or in its bytes. Raises ValueError where it is not one, or its rows are out of
        order; FileNotFoundError."""
        return Samples.of_file(TableFile(source))

    @staticmethod
    def of_file(file: TableFile) -> Samples:
        """The table of an open file: every column is looked at once, block by block. Raises ValueError."""
        samples = Samples(*[np.empty(0, object)] * 6)
        samples._file, samples._whole = file, {}
        samples._rows = _require_numbered(file.blocks("row"))
        kept: dict[str, list[NDArray[np.signedinteger[Any]]]] = {n: [] for n in ("label", "group", "split", "status")}
        words: dict[str, dict[str, int]] = {"split": {}, "status": {}}

        def keeping(name: str) -> Iterator[Pieces]:
            for block in file.blocks(name):
                if name in words:
                    kept[name].append(_narrow(_places(block, words[name])))
                elif name in kept:
                    kept[name].append(_narrow(as_integers(block)))
                yield json_of(block)

        samples._identity = digest_of_pieces(_json_of_columns({name: keeping(name) for name in IDENTITY}))
        for _ in keeping("status"):
            pass
        whole = {name: np.concatenate([np.empty(0, np.int8), *kept.pop(name)]) for name in [*kept]}
        samples._numbers = {name: whole[name] for name in ("label", "group")}
        samples._few = {name: Few([*values], whole[name]) for name, values in words.items()}
        return samples

    def _column(self, name: str) -> NDArray[Any]:
        """A whole column, kept from then on."""
        if name not in self._whole:
            if name in self._numbers:
                self._whole[name] = self._numbers[name].astype(np.int64)
            elif name in self._few:
                self._whole[name] = self._few[name].text()
            else:
                column = np.empty(len(self), object)
                for start in range(0, len(self), GROUP_ROWS):
                    column[start : start + GROUP_ROWS] = self.text(name, start, start + GROUP_ROWS)
                self._whole[name] = column
        return self._whole[name]

    def _json(self, name: str) -> Iterator[Pieces]:
        """The JSON of a column that is in memory, block by block."""
        for start in range(0, len(self), GROUP_ROWS):
            rows = slice(start, start + GROUP_ROWS)
            if name in ("label", "group"):
                yield json_of(of_integers(self.numbers(name, rows)))
            else:
                yield [_json_of_strings(self.text(name, start, rows.stop))]


def _json_of_columns(columns: Mapping[str, Iterator[Pieces]]) -> Iterator[bytes | memoryview]:
    """The canonical JSON of a list of columns, in pieces."""
    for number, blocks in enumerate(columns.values()):
        yield b",[" if number else b"[["
        for place, block in enumerate(blocks):
            if place:
                yield b","
            yield from block
        yield b"]"
    yield b"]"


def _json_of_strings(values: list[str]) -> bytes:
    """Strings as JSON, joined by commas. Where nothing is to be escaped, several times faster than the encoder."""
    text = "".join(values)
    if text.isprintable() and '"' not in text and "\\" not in text:
        return ('"' + '","'.join(values) + '"').encode()
    return canonical_json(values)[1:-1]


def _require_numbered(blocks: Iterator[Any]) -> int:
    """How many rows there are. Raises ValueError unless they are numbered 0, 1, 2, ..."""
    count = 0
    for block in blocks:
        if not np.array_equal(as_integers(block), np.arange(count, count + len(block))):
            raise ValueError("rows are not numbered 0, 1, 2, ...")
        count += len(block)
    return count


def _places(block: Any, words: dict[str, int]) -> NDArray[np.int64]:
    """Each row's place among `words`, to which those of the block are added."""
    import pyarrow as pa

    places = np.array([words.setdefault(word, len(words)) for word in block.dictionary.to_pylist()], np.int64)
    return places[as_integers(block.indices.cast(pa.int64()))]


def _narrow(values: NDArray[np.int64]) -> NDArray[np.signedinteger[Any]]:
    """Integers in the smallest type that holds them."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))

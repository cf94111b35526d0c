"""Images of your own: a folder and a CSV or Parquet table with the columns path, label, group and perhaps split, id.

The table is taken at its word or refused: nothing is guessed, dropped or filled in.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.base import SPLITS, Dataset, Listing, SampleTable
from bird.errors import DataError, UsageError, nearest

__all__ = ["TableDataset", "read_parquet"]

_INTEGER = re.compile(r"-?[0-9]+")
_NEEDS_TWO = {
    "label": "two classes or more: with one there is nothing to learn, and no answer can be wrong",
    "group": "two groups or more: a gap is between two",
}
_NEEDED, _OPTIONAL = ("path", "label", "group"), ("split", "id")


@final
class TableDataset(Dataset):
    """The images that `table` (relative to the folder; by default samples.csv or samples.parquet) lists.

    Labels and groups are integers 0..K-1 or strings, which are numbered in sorted order; in CSV, values that all
    look like integers are integers. Without an id column the path is the id. Without a split column (train, meta,
    test), `test_fraction` of each (class, group) cell is test, chosen by content hash.
    """

    name = "table"

    def __init__(
        self,
        root: Path,
        *,
        table: str = "",
        test_fraction: float = 0.2,
        image_size: int = 64,
        flip: bool = True,
    ) -> None:
        if not 0.0 < test_fraction < 1.0:
            raise UsageError(
                where="data set table, setting test_fraction",
                found=str(test_fraction),
                wanted="a share above 0 and below 1",
                fix="correct the setting",
            )
        if image_size < 1:
            raise UsageError(
                where="data set table, setting image_size",
                found=str(image_size),
                wanted="a number of pixels",
                fix="correct the setting",
            )
        file = _find_table(root, table)
        columns = _read_csv(file) if file.suffix == ".csv" else _read_table_parquet(file)
        self.image_size, self.flip, self._test_fraction = image_size, flip, test_fraction
        self.settings = {
            "table": file.relative_to(root).as_posix(),
            "test_fraction": test_fraction,
            "image_size": image_size,
            "flip": flip,
        }
        paths = _texts(file, "path", columns["path"])
        ids = _texts(file, "id", columns["id"]) if "id" in columns else paths
        _refuse_twins(file, ids)
        self._files = dict(zip(ids, _resolved(file, root, paths), strict=True))
        labels, self.class_names = _numbered(file, "label", columns["label"], ids)
        groups, self.group_names = _numbered(file, "group", columns["group"], ids)
        splits = _splits(file, columns["split"], ids) if "split" in columns else [""] * len(ids)
        self._draws_splits = "split" not in columns
        self._listing = Listing.of(list(zip(ids, labels, groups, splits, strict=True)))
        for column, names in (("label", self.class_names), ("group", self.group_names)):
            if len(names) == 1:
                raise DataError(
                    where=f"{file}, column {column}",
                    found=f"one value, {names[0]!r}, in all {len(ids)} rows",
                    wanted=_NEEDS_TWO[column],
                    fix=f"add rows with another {column}",
                )

    def listing(self) -> Listing:
        """All rows of the table, in its order."""
        return self._listing

    def read(self, id: str) -> bytes:
        """The image file."""
        path = self._files[id]
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would block for ever
            raise OSError(errno.EINVAL, "not a regular file")
        return path.read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """The table's own splits, or `test_fraction` of each cell as test (at least one, never all) by content hash."""
        if not self._draws_splits:
            return table.splits
        splits = np.full(len(table), "train", dtype=object)
        cells: dict[tuple[int, int], list[int]] = {}
        for row, cell in enumerate(zip(table.labels.tolist(), table.groups.tolist(), strict=True)):
            cells.setdefault(cell, []).append(row)
        for rows in cells.values():
            rows.sort(key=lambda row: (xxhash.xxh3_64_intdigest(str(table.digests[row]).encode()), table.ids[row]))
            splits[rows[: min(max(1, round(self._test_fraction * len(rows))), len(rows) - 1)]] = "test"
        return splits


def read_parquet(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The named columns of a Parquet file as pyarrow arrays. Raises DataError for an unreadable file or a lacking one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _need_columns(path, names, needed)
        wanted = [name for name in (*needed, *optional) if name in names]
        table = pq.read_table(path, columns=wanted, partitioning=None)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            where=str(path),
            found=f"an unreadable Parquet file ({str(error)[:200]})",
            wanted=f"columns {', '.join(needed)}",
            fix="write it again",
        ) from error
    return {name: table[name] for name in wanted}


def _need_columns(file: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    lacking = [name for name in needed if name not in names]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if lacking or twice:
        meant = [f"{close[0]!r} to {name}" for name in lacking if (close := nearest(name, set(names) - set(needed)))]
        raise DataError(
            where=str(file),
            found=f"columns {', '.join(map(repr, names)) or 'none'}",
            wanted=f"columns {', '.join(needed)}, each once",
            fix=f"rename {', '.join(meant)}?"
            if meant
            else f"add {', '.join(lacking)}"
            if lacking
            else f"rename one {', '.join(twice)}",
        )


def _find_table(root: Path, table: str) -> Path:
    names = [table] if table else [n for n in ("samples.csv", "samples.parquet") if (root / n).is_file()]
    kinds = (".csv", ".parquet")
    if len(names) != 1 or not names[0].endswith(kinds) or not (root / names[0]).is_file():
        close = (
            nearest(table, sorted(each.name for each in root.iterdir() if each.name.endswith(kinds))) if table else []
        )
        raise DataError(
            where=f"data set table, {root}",
            found=" and ".join(names) if len(names) > 1 else f"no table {table}".rstrip(),
            wanted="one samples.csv or samples.parquet, or the setting table (a .csv or .parquet file there)",
            fix=f"did you mean {close[0]}?" if close else "write the table, or name it with the setting table",
        )
    _resolved(root / names[0], root, names)
    return root / PurePosixPath(names[0])


def _read_csv(file: Path) -> dict[str, list[Any]]:
    def refuse(line: int, found: str, wanted: str) -> DataError:
        return DataError(where=f"{file}, line {line}", found=found, wanted=wanted, fix="correct the table")

    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            _need_columns(file, header, _NEEDED)
            rows: list[list[str]] = []
            for row in reader:
                line = reader.line_num
                if row and len(row) != len(header):  # an empty line is no row
                    raise refuse(line, f"{len(row)} values", f"{len(header)}, as in the header")
                rows += [row] if row else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refuse(line, f"unreadable text ({error})", "CSV in UTF-8") from error
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    for name in ("label", "group"):
        if all(_INTEGER.fullmatch(value) for value in columns[name]):
            columns[name] = [int(value) for value in columns[name]]  # type: ignore[misc]
    return columns


def _read_table_parquet(file: Path) -> dict[str, list[Any]]:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    for name, column in read_parquet(file, _NEEDED, _OPTIONAL).items():
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not text and not (pa.types.is_integer(kind) and name in ("label", "group", "id")):
            raise DataError(
                where=f"{file}, column {name}",
                found=f"values of type {kind}",
                wanted="strings" if name in ("path", "split") else "strings or integers",
                fix="cast the column",
            )
        columns[name] = column.to_pylist()
    return columns


def _refuse(file: Path, what: str, bad: Sequence[str], wanted: str, total: int) -> None:
    if bad:
        raise DataError(
            where=str(file),
            found=f"{len(bad)} of {total} rows with {what}: {', '.join(bad[:10])}",
            wanted=wanted,
            fix="correct or remove these rows",
        )


def _texts(file: Path, column: str, values: Sequence[Any]) -> list[str]:
    empty = [f"row {row}" for row, value in enumerate(values, start=1) if value is None or value == ""]
    _refuse(file, f"no {column}", empty, f"a {column} in every row", len(values))
    return [str(value) for value in values]


def _refuse_twins(file: Path, ids: Sequence[str]) -> None:
    plain = [unicodedata.normalize("NFC", id) for id in ids]  # two spellings of one accent look the same
    count = Counter(plain)
    twins = [f"{id!r} (row {row})" for row, id in enumerate(plain, start=1) if count[id] > 1]
    _refuse(file, "an id that another row has too", twins, "every id once", len(ids))


def _resolved(file: Path, root: Path, paths: Sequence[str]) -> list[Path]:
    """The files that the paths lead to, links followed; all of them inside `root`."""
    top = Path(os.path.realpath(root))
    targets: list[Path] = []
    outside: list[str] = []
    for path in paths:
        pure = PurePosixPath(path)
        target = top
        if "\0" not in path and not pure.is_absolute() and ".." not in pure.parts:
            target = Path(os.path.realpath(top / pure))
        if target == top or not target.is_relative_to(top):
            outside.append(repr(path))
        targets.append(target)
    wanted = "relative paths, without .., that stay inside the folder when links are followed"
    _refuse(file, f"a path that leaves {root}", outside, wanted, len(paths))
    return targets


def _numbered(file: Path, column: str, values: Sequence[Any], ids: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The values as 0..K-1, and their K names."""
    empty = [repr(id) for id, v in zip(ids, values, strict=True) if v is None or not str(v).strip()]
    _refuse(file, f"no {column}", empty, f"a {column} in every row", len(ids))
    kinds = sorted(set(values))
    if all(isinstance(value, int) for value in kinds):
        if kinds != list(range(len(kinds))):
            shown = ", ".join(map(str, kinds[:10])) + (", ..." if len(kinds) > 10 else "")
            raise DataError(
                where=f"{file}, column {column}",
                found=f"the {len(kinds)} integers {shown}",
                wanted=f"0..{len(kinds) - 1}, none left out",
                fix="renumber them, or use names",
            )
        return list(values), tuple(map(str, kinds))
    number = {name: place for place, name in enumerate(kinds)}
    return [number[value] for value in values], tuple(kinds)


def _splits(file: Path, values: Sequence[Any], ids: Sequence[str]) -> list[str]:
    unknown = [f"{id!r} ({v!r})" for id, v in zip(ids, values, strict=True) if v not in SPLITS]
    _refuse(file, "an unknown split", unknown, f"one of {', '.join(SPLITS)}", len(ids))
    return [str(value) for value in values]

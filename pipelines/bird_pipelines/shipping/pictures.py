"""The images that `bird predict` is asked about: files, folders, and tables of paths or of image bytes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

from bird.datasets.reading import need_commas
from bird.errors import DataError

__all__ = ["Picture", "not_taken", "pictures"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TABLES = (".csv", ".parquet")
INSIDE = ("image", "img")  # columns of encoded bytes, or of {bytes, path}


@final
class Picture(NamedTuple):
    """One image: what it is called, and how its encoded bytes are read (OSError where they cannot be)."""

    id: str
    read: Callable[[], bytes]


def pictures(inputs: Sequence[Path]) -> list[Picture]:
    """The images of files, of folders (all below them, in the order of their names, by suffix) and of tables: CSV or Parquet
    with a column path (relative to the table's folder), or Parquet with images inside. Ids are paths as given, or the
    column id. Raises DataError for what is not there, for a table without such a column, and where no image is found."""
    found = [each for path in inputs for each in _of(path)]
    if not found:
        raise _refuse(", ".join(map(str, inputs)) or "no input", "no image", f"files ending in {', '.join(SUFFIXES)}")
    return found


def not_taken(inputs: Sequence[Path]) -> dict[str, int]:
    """How many files of the folders are left out because of their suffix, by suffix; hidden files are not counted."""
    below = (each for path in inputs if path.is_dir() for each in path.rglob("*"))
    files = (each for each in below if not each.name.startswith(".") and each.is_file())
    left = Counter(each.suffix.lower() or "no suffix" for each in files if each.suffix.lower() not in SUFFIXES)
    return dict(sorted(left.items()))


def _of(path: Path) -> Iterator[Picture]:
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        yield from (Picture(str(each), each.read_bytes) for each in files)
    elif not path.is_file():
        raise _refuse(str(path), "no file or folder", "images, folders of images, or a table of paths")
    elif path.suffix.lower() in TABLES:
        yield from (_from_csv if path.suffix.lower() == ".csv" else _from_parquet)(path)
    else:
        yield Picture(str(path), path.read_bytes)


def _from_csv(table: Path) -> Iterator[Picture]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, strict=True)
            names = rows.fieldnames or []
            need_commas(table, names)
            if "path" not in names:
                raise _refuse(str(table), f"columns {', '.join(map(repr, names))}", "a column path, and perhaps id")
            for row in rows:
                if not row["path"]:
                    raise _refuse(f"{table}, line {rows.line_num}", "no path", "a path in every row")
                yield Picture(row.get("id") or row["path"], (table.parent / row["path"]).read_bytes)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refuse(str(table), f"unreadable text ({error})", "CSV in UTF-8") from None


def _from_parquet(table: Path) -> Iterator[Picture]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(table).names
        column = next((name for name in ("path", *INSIDE) if name in names), None)
        if column is None:
            raise _refuse(
                str(table), f"columns {', '.join(map(repr, names))}", "a column path, or image with the bytes"
            )
        held = pq.read_table(table, columns=[name for name in ("id", column) if name in names])
    except (pa.ArrowException, OSError) as error:
        raise _refuse(str(table), f"an unreadable Parquet file ({str(error)[:160]})", "Parquet") from None
    values = held[column]
    ids = held["id"].to_pylist() if "id" in held.column_names else None
    for row in range(len(values)):
        if column == "path":
            value = values[row].as_py()
            yield Picture(str(ids[row] if ids else value), (table.parent / str(value)).read_bytes)
        else:
            yield Picture(str(ids[row]) if ids else f"row-{row}", partial(_inside, values, row))


def _inside(values: Any, row: int) -> bytes:
    value = values[row].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise OSError("no image bytes in this row")
    return data


def _refuse(where: str, found: str, wanted: str) -> DataError:
    return DataError(where=where, found=found, wanted=wanted, fix="correct the path or the table")

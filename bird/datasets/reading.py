"""A table as a file: CSV and Parquet, with every column that is needed, each once."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bird.errors import DataError, nearest

__all__ = ["read_csv", "read_parquet"]


def read_parquet(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The named columns of a Parquet file as pyarrow arrays. Raises DataError for an unreadable file or a lacking one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.OSFile(os.fsencode(path))  # of a name that is not UTF-8 only its bytes are taken
        names = pq.read_schema(source).names
        _need_columns(path, names, needed)
        wanted = [name for name in (*needed, *optional) if name in names]
        table = pq.read_table(source, columns=wanted, partitioning=None)
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
    if len(names) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in names[0]]):
        raise DataError(
            where=str(file),
            found=f"one column, {names[0]!r}",
            wanted=f"columns {', '.join(needed)}, with commas between them",
            fix=f"write the table with commas in the place of {marks[0]!r}",
        )
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


def read_csv(file: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The named columns of a CSV file as text; under "" the names of the others. Raises DataError with the line."""

    def refuse(line: int, found: str, wanted: str, fix: str = "correct the table") -> DataError:
        return DataError(where=f"{file}, line {line}", found=found, wanted=wanted, fix=fix)

    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            _need_columns(file, header, needed)
            rows: list[list[str]] = []
            for row in reader:
                line = reader.line_num
                if row and len(row) != len(header):  # an empty line is no row
                    raise refuse(line, f"{len(row)} values", f"{len(header)}, as in the header")
                rows += [row] if row else []
    except UnicodeDecodeError as error:
        raise refuse(line, f"unreadable text ({error})", "CSV in UTF-8", "save the table as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise refuse(line, f"unreadable text ({error})", "CSV in UTF-8") from error
    columns: dict[str, list[Any]] = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    kept = {name: values for name, values in columns.items() if name in (*needed, *optional)}
    return kept | {"": [name for name in header if name not in kept]}

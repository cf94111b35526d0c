"""A table as a file: CSV and Parquet, with every column that is needed, each once."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bird.errors import DataError, nearest

__all__ = [
    "bytes_inside",
    "holds_bytes",
    "names_inside",
    "need_commas",
    "parquet_names",
    "plain_values",
    "read_csv",
    "read_csv_header",
    "read_parquet",
    "read_table",
]


def read_parquet(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), roles: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The named columns of a Parquet file as pyarrow arrays. Raises DataError for an unreadable file or a lacking one;
    `roles` are the settings that name columns, for the error about the latter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.OSFile(os.fsencode(path))  # of a name that is not UTF-8 only its bytes are taken
        names = pq.read_schema(source).names
        _need_columns(path, names, needed, roles)
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


def read_csv_header(file: Path) -> list[str]:
    """What the columns of a CSV file are called; nothing where it cannot be read: `read_csv` says why."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def read_table(
    file: Path, needed: Sequence[str], optional: Sequence[str] = (), roles: Mapping[str, str] | None = None
) -> dict[str, list[Any]]:
    """The named columns of a CSV or Parquet file as text and integers. Raises DataError as `read_csv` and `read_parquet`."""
    if file.suffix == ".csv":
        columns = read_csv(file, needed, optional, roles)
        del columns[""]
        return columns
    found = read_parquet(file, needed, optional, roles)
    return {name: plain_values(file, name, column, flags=True) for name, column in found.items()}


def need_commas(file: Path, names: Sequence[str]) -> None:
    """Raise DataError for a table of one column whose name holds several, with another mark between them."""
    if len(names) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in names[0]]):
        raise DataError(
            where=str(file),
            found=f"one column, {names[0]!r}",
            wanted="several columns, with commas between them",
            fix=f"write the table with commas in the place of {marks[0]!r}",
        )


def _need_columns(file: Path, names: Sequence[str], needed: Sequence[str], roles: Mapping[str, str] | None) -> None:
    need_commas(file, names)
    lacking = [name for name in needed if name not in names]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if lacking or twice:
        settings = {name: (roles or {}).get(name, name) for name in lacking}
        meant = [
            f"rename {close[0]!r} to {name}" if role == name else f"did you mean {close[0]!r} in --setting {role}?"
            for name, role in settings.items() if (close := nearest(name, set(names) - set(needed)))
        ]  # fmt: skip
        said = [role for name, role in settings.items() if name in (roles or {})]
        advice = f"; or say which column it is, such as --setting {said[0]}=COLUMN" if said else ""
        raise DataError(
            where=str(file),
            found=f"columns {', '.join(map(repr, names)) or 'none'}",
            wanted=f"columns {', '.join(needed)}, each once",
            fix=f"{'; '.join(meant)}{advice}"
            if meant
            else f"add {', '.join(lacking)}{advice}"
            if lacking
            else f"rename one {', '.join(twice)}",
        )


def read_csv(
    file: Path, needed: Sequence[str], optional: Sequence[str] = (), roles: Mapping[str, str] | None = None
) -> dict[str, list[Any]]:
    """The named columns of a CSV file as text; under "" the names of the others. Raises DataError with the line; `roles` as
    for `read_parquet`."""

    def refuse(line: int, found: str, wanted: str, fix: str = "correct the table") -> DataError:
        return DataError(where=f"{file}, line {line}", found=found, wanted=wanted, fix=fix)

    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            _need_columns(file, header, needed, roles)
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


def plain_values(file: Path, name: str, column: Any, *, numbers: bool = True, flags: bool = False) -> list[Any]:
    """A Parquet column of strings; of integers, too, with `numbers`; True and False as strings with `flags`. Raises
    DataError for another type."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    flag = flags and pa.types.is_boolean(kind)
    if not text and not flag and not (numbers and pa.types.is_integer(kind)):
        raise DataError(
            where=f"{file}, column {name}",
            found=f"values of type {kind}",
            wanted="strings or integers" if numbers else "strings",
            fix="cast the column",
        )
    values = column.to_pylist()
    return [None if value is None else str(value) for value in values] if flag else list(values)


def parquet_names(file: Path) -> list[str]:
    """What its columns are called."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return list(pq.read_schema(pa.OSFile(os.fsencode(file))).names)


def holds_bytes(kind: Any) -> bool:
    """Whether a column of that type holds bytes, or {bytes, path}."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def bytes_inside(column: Any, row: int) -> bytes | None:
    """One image of a column that `holds_bytes`; None for an empty one."""
    value = column[row].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    return bytes(data) if data else None


def names_inside(column: Any, rows: int) -> list[str]:
    """The paths beside the images' bytes, "" where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return [""] * rows
    return [str(name or "") for name in pc.struct_field(column, "path").to_pylist()]

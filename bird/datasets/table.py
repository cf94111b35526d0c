"""Images of your own: a folder and a CSV or Parquet table of path, label, group and perhaps split, id, subject.

The table is taken at its word or refused: nothing is dropped or filled in, and whatever is read in another way than it
stands there is told (`remarks`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing, SampleTable
from bird.datasets.columns import (
    categories,
    categories_or_unknown,
    refuse,
    refuse_twins,
    splits_of,
    subjects_of,
    texts,
)
from bird.datasets.finding import Neighbours, link_out, resolve, told_links
from bird.datasets.reading import read_csv, read_parquet
from bird.datasets.subjects import whole_subjects
from bird.errors import DataError, UsageError, nearest

__all__ = ["TableDataset"]

_NEEDS_TWO = {
    "label": "two classes or more: with one there is nothing to learn, and no answer can be wrong",
    "group": "two groups or more: a gap is between two",
}
_NEEDED, _OPTIONAL = ("path", "label", "group"), ("split", "id", "subject")
_IMAGES = ("image", "img")  # of encoded bytes, or of {bytes, path}, as hubs write them
WHITE = 65535  # as bird.images has it, which is imported when an image is read


@final
class TableDataset(Dataset):
    """The images that `table` (relative to the folder; by default samples.csv or samples.parquet) lists, or, where it is
    Parquet with a column image or img of encoded bytes or of {bytes, path}, holds.

    Labels and groups are integers 0..K-1 or strings, which are numbered in sorted order; in CSV, values that all
    look like integers are integers. Without an id column the path is the id. Without a split column (train, meta,
    test), `test_fraction` of each (class, group) cell is test, chosen by content hash. With a subject column all images
    of a subject stay in one split. `white_level` is the value of a 16-bit gray pixel that is shown as white: 65535, or
    4095 for images of 12 bits. With `unknown_groups` an empty cell of the column group says that nobody knows it: such a row
    trains, and is never in meta or test.
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
        white_level: int = WHITE,
        unknown_groups: bool = False,
    ) -> None:
        _check_settings(test_fraction, image_size, white_level)
        file = _find_table(root, table)
        columns = read_csv(file, _NEEDED, _OPTIONAL) if file.suffix == ".csv" else _read_table_parquet(file)
        self.image_size, self.flip, self._test_fraction = image_size, flip, test_fraction
        self._white_level = white_level
        self.settings = {
            "table": file.relative_to(root).as_posix(),
            "test_fraction": test_fraction,
            "image_size": image_size,
            "flip": flip,
        }
        if white_level != WHITE:  # caches that are older than the setting do not name it
            self.settings |= {"white_level": white_level}
        self.unknown_groups = unknown_groups
        if unknown_groups:
            self.settings |= {"unknown_groups": True}
        self._inside = columns.pop("image", None)
        ids, remarks = _ids(file, columns, self._inside)
        self._rows = {id: row for row, id in enumerate(ids)}
        files: Sequence[Path | None]
        if "path" in columns:
            files, told = _resolved(file, root, columns["path"])
            remarks += told
        else:
            files = [root / name if name else None for name in _names_inside(self._inside, len(ids))]
        self._files = dict(zip(ids, files, strict=True))
        labels, self.class_names, told = categories(file, "label", columns["label"], ids)
        read = categories_or_unknown if unknown_groups else categories
        groups, self.group_names, doubts = read(file, "group", columns["group"], ids)
        splits, renamed = splits_of(file, columns["split"], ids) if "split" in columns else ([""] * len(ids), [])
        self._draws_splits = "split" not in columns
        if "subject" in columns:
            subjects, persons = subjects_of(file, columns["subject"], ids)
            self.subjects, doubts = dict(zip(ids, subjects, strict=True)), doubts + persons
        if unread := columns.get("", []):
            remarks.append(f"columns that are not read: {', '.join(map(repr, unread))}")
        self.remarks = (*remarks, *told, *doubts, *renamed)
        self._listing = Listing.of(list(zip(ids, labels, groups, splits, strict=True)))
        _need_two(file, len(ids), self.class_names, self.group_names)

    def listing(self) -> Listing:
        """All rows of the table, in its order."""
        return self._listing

    def file(self, id: str) -> Path | None:
        """The image's file; None where the table holds the image."""
        return self._files[id]

    def read(self, id: str) -> bytes:
        """The image file, or the bytes in the table."""
        path = self._files[id]
        if self._inside is not None and (data := _bytes_inside(self._inside, self._rows[id])):
            return data
        if path is None:
            raise OSError(errno.ENODATA, "no image bytes in the table")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would block for ever
            raise OSError(errno.EINVAL, "not a regular file")
        return path.read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels, self._white_level)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """The table's own splits, or `test_fraction` of each cell as test (at least one, never all) by content hash.
        Raises DataError where the table's own splits have a subject on two sides."""
        if not self._draws_splits:
            _refuse_torn(table, self.subjects)
            return table.splits
        splits = np.full(len(table), "train", dtype=object)
        cells: dict[tuple[int, int], list[int]] = {}
        for row, cell in enumerate(zip(table.labels.tolist(), table.groups.tolist(), strict=True)):
            if cell[1] >= 0:
                cells.setdefault(cell, []).append(row)
        for rows in cells.values():
            rows.sort(key=lambda row: (xxhash.xxh3_64_intdigest(str(table.digests[row]).encode()), table.ids[row]))
            splits[rows[: min(max(1, round(self._test_fraction * len(rows))), len(rows) - 1)]] = "test"
        return splits if self.subjects is None else whole_subjects(table, splits, self.subjects, "test")


def _check_settings(test_fraction: float, image_size: int, white_level: int) -> None:
    def refuse(setting: str, value: float, wanted: str) -> UsageError:
        where = f"data set table, setting {setting}"
        return UsageError(where=where, found=str(value), wanted=wanted, fix="correct the setting")

    if not 0.0 < test_fraction < 1.0:
        raise refuse("test_fraction", test_fraction, "a share above 0 and below 1")
    if image_size < 1:
        raise refuse("image_size", image_size, "a number of pixels")
    if not 1 <= white_level <= WHITE:
        raise refuse("white_level", white_level, f"a pixel value from 1 to {WHITE}, such as 4095 for 12 bits")


def _need_two(file: Path, rows: int, class_names: Sequence[str], group_names: Sequence[str]) -> None:
    for column, names in (("label", class_names), ("group", group_names)):
        if len(names) == 1:
            raise DataError(
                where=f"{file}, column {column}",
                found=f"one value, {names[0]!r}, in all {rows} rows",
                wanted=_NEEDS_TWO[column],
                fix=f"add rows with another {column}",
            )


def _refuse_torn(table: SampleTable, subjects: Any) -> None:
    sides: dict[str, set[str]] = {}
    for id, split in zip(table.ids.tolist() if subjects else [], table.splits.tolist(), strict=False):
        sides.setdefault(subjects[id], set()).add(split)
    if torn := [f"{subject!r} ({', '.join(sorted(where))})" for subject, where in sides.items() if len(where) > 1]:
        raise DataError(
            where="data set table, column split",
            found=f"{len(torn)} of {len(sides)} subjects in several splits: {', '.join(torn[:10])}",
            wanted="all images of a subject in one split",
            fix="correct the splits, or leave the column split out: then subjects are kept whole; without the column"
            " subject nobody looks",
        )


def _find_table(root: Path, table: str) -> Path:
    names = [table] if table else [n for n in ("samples.csv", "samples.parquet") if (root / n).is_file()]
    kinds = (".csv", ".parquet")
    if len(names) != 1 or not names[0].endswith(kinds) or not (root / names[0]).is_file():
        places = [path for kind in kinds for depth in ("*", "*/*") for path in root.glob(depth + kind)]
        others = sorted(path.relative_to(root).as_posix() for path in places)
        there = f"; {', '.join(others[:5])} {'is' if len(others) == 1 else 'are'} there" if others else ""
        close = nearest(table, others) if table else []
        raise DataError(
            where=f"data set table, {root}",
            found=" and ".join(names) if len(names) > 1 else f"no table {table}".rstrip() + there,
            wanted="one samples.csv or samples.parquet, or the setting table (a .csv or .parquet file there)",
            fix=f"did you mean {close[0]}?" if close else "write the table, or name it with --setting table=FILE",
        )
    _refuse_leaving(root / names[0], root, names)
    return root / PurePosixPath(names[0])


def _read_table_parquet(file: Path) -> dict[str, Any]:
    import pyarrow as pa

    image = _image_column(file)
    needed = _NEEDED if image is None else (*_NEEDED[1:], image)
    found, names = read_parquet(file, needed, (*_OPTIONAL, *({"path"} - {*needed}))), _parquet_names(file)
    columns: dict[str, Any] = {} if image is None else {"image": found.pop(image)}
    for name, column in found.items():
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        flag = pa.types.is_boolean(kind) and name in ("label", "group")
        if not text and not flag and not (pa.types.is_integer(kind) and name not in ("path", "split")):
            raise DataError(
                where=f"{file}, column {name}",
                found=f"values of type {kind}",
                wanted="strings" if name in ("path", "split") else "strings or integers",
                fix="cast the column",
            )
        values = column.to_pylist()
        columns[name] = [None if value is None else str(value) for value in values] if flag else values
    unread = [name for name in names if name not in columns and name != image]
    return columns | {"": unread}


def _parquet_names(file: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return list(pq.read_schema(pa.OSFile(os.fsencode(file))).names)


def _image_column(file: Path) -> str | None:
    """The column of encoded images, where the table has one. Raises DataError for a table without paths whose images are
    there in another form, or under another name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(pa.OSFile(os.fsencode(file)))
    except (OSError, ValueError, pa.ArrowException):
        return None  # `read_parquet` says why
    holds = [field.name for field in schema if _holds_bytes(field.type)]
    if named := [name for name in holds if name in _IMAGES]:
        return str(named[0])
    if "path" in schema.names:
        return None
    for name in (*holds, *(name for name in _IMAGES if name in schema.names)):
        kind = schema.field(name).type
        advice = f"rename {name!r} to image" if name in holds else "write the encoded bytes (JPEG, PNG) into the column"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            advice = f"where these are paths of files, rename {name!r} to path; encoded images are bytes, not text"
        raise DataError(
            where=f"{file}, column {name}",
            found=f"no column path, and values of type {str(kind)[:80]}",
            wanted=f"encoded images in a column {' or '.join(_IMAGES)}, as bytes or {{bytes, path}}; or paths of files",
            fix=advice,
        )
    return None


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _bytes_inside(column: Any, row: int) -> bytes | None:
    value = column[row].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    return bytes(data) if data else None


def _names_inside(column: Any, rows: int) -> list[str]:
    """The paths beside the images' bytes, "" where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return [""] * rows
    return [str(name or "") for name in pc.struct_field(column, "path").to_pylist()]


def _ids(file: Path, columns: dict[str, Any], inside: Any) -> tuple[list[str], list[str]]:
    """An id a row, and a sentence where it is no column's. Raises DataError."""
    if "id" in columns or "path" in columns:
        name = "id" if "id" in columns else "path"
        ids = texts(file, name, columns[name])
        refuse_twins(file, ids)
        texts(file, "path", columns.get("path", ids))
        return ids, []
    names = _names_inside(inside, len(columns["label"]))
    if all(names) and len(set(names)) == len(names):
        return names, ["no column id: the paths beside the images are the ids"]
    width = len(str(max(len(names) - 1, 0)))
    return [f"row-{row:0{width}d}" for row in range(len(names))], ["no column id: the rows' numbers are the ids"]


def _refuse_leaving(file: Path, root: Path, paths: Sequence[str]) -> None:
    """Raise DataError for paths that are not below the folder as they are written."""
    bad = []
    for path in paths:
        parts = PurePosixPath(path.replace("\\", "/")).parts
        absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
        if "\0" in path or absolute or ".." in parts or not PurePosixPath(path).parts:
            bad.append(repr(path))
    wanted = "relative paths of files below the folder, without .."
    fix = "write the paths relative to the folder of the table"
    refuse(file, f"a path that leaves {root}", bad, wanted, len(paths), fix)


def _resolved(file: Path, root: Path, paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that the paths mean, and sentences on those that are not where they say, and on links that lead away."""
    _refuse_leaving(file, root, paths)
    neighbours = Neighbours()
    found = [resolve(root, path, neighbours) for path in paths]
    counts = Counter(how for _, how in found if how)
    remarks = [f"{count:,} of {len(paths):,} paths were found {how}" for how, count in sorted(counts.items())]
    remarks += told_links(root, Counter(away for target, _ in found if (away := link_out(target, root))))
    return [target for target, _ in found], remarks

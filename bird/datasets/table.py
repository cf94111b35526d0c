"""Images of your own: a folder and a CSV or Parquet table of path, label, group and perhaps split, id, subject."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, final

from bird.datasets.columns import refuse, refuse_twins, texts
from bird.datasets.crossing import groups_named
from bird.datasets.finding import Neighbours, link_out, resolve, told_links
from bird.datasets.listed import WHITE, ListedImages, Options, Rows, unlike
from bird.datasets.reading import (
    bytes_inside,
    holds_bytes,
    names_inside,
    parquet_names,
    plain_values,
    read_csv,
    read_parquet,
)
from bird.errors import DataError, UsageError, nearest, unknown_name

__all__ = ["IMAGE_COLUMNS", "Names", "TableDataset", "need_inside", "refuse_leaving"]

IMAGE_COLUMNS = ("image", "img")  # of encoded bytes, or of {bytes, path}, as hubs write them


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """What the columns are called. "" is the usual name (path, split, subject, id; image or img), read where it is there."""

    label: str = "label"
    group: str = "group"
    split: str = ""
    subject: str = ""
    id: str = ""
    path: str = ""
    image: str = ""

    def recorded(self) -> dict[str, str]:
        """As settings: those that are not the usual ones."""
        return unlike({each.name: (getattr(self, each.name), each.default) for each in dataclasses.fields(self)})

    def groups(self, name: str) -> tuple[str, ...]:
        """The group columns. Raises DataError for names that are none, UsageError where one is the label's too."""
        found = groups_named(f"data set {name}, setting group", self.group)
        if self.label in found:
            raise UsageError(
                where=f"data set {name}, settings label and group",
                found=f"column {self.label!r} for both",
                wanted="two columns: a gap is between groups within a class",
                fix="name another column",
            )
        return found

    def called(self, role: str) -> str:
        """The column of a role that may be missing; "" where the usual one has another role."""
        taken = role in (self.label, *self.group.split(","))
        return str(getattr(self, role)) or ("" if taken else role)

    def roles(self) -> dict[str, str]:
        """The setting that names each column."""
        others = {self.called(role): role for role in ("split", "subject", "id", "path", "image")}
        return {**others, **dict.fromkeys(self.group.split(","), "group"), self.label: "label"}

    def needed(self, name: str) -> tuple[str, ...]:
        """The columns that must be there, but for path and image."""
        others = [getattr(self, role) for role in ("split", "subject", "id") if getattr(self, role)]
        return tuple(dict.fromkeys((self.label, *self.groups(name), *others)))


@final
class TableDataset(ListedImages):
    """The images that `table` (relative to the folder; by default samples.csv or samples.parquet) lists, or, where it is
    Parquet with a column image or img of encoded bytes or of {bytes, path}, holds.

    Labels and groups are integers 0..K-1 or strings, which are numbered in sorted order; in CSV, values that all
    look like integers are integers. Without an id column the path is the id. Without a split column (train, meta,
    test), the splits are drawn. `label`, `group` (several with commas: they are crossed), `split`, `subject`, `path`, `id`
    and `image` name columns that are called otherwise. `bird.datasets.listed.Options` says what the other settings do.
    """

    name = "table"

    def __init__(
        self,
        root: Path,
        *,
        table: str = "",
        label: str = "label",
        group: str = "group",
        split: str = "",
        subject: str = "",
        path: str = "",
        id: str = "",
        image: str = "",
        split_names: str = "",
        test_fraction: float = 0.2,
        image_size: int = 64,
        flip: bool = True,
        white_level: int = WHITE,
        unknown_groups: bool = False,
    ) -> None:
        options = Options(
            test_fraction=test_fraction,
            image_size=image_size,
            flip=flip,
            white_level=white_level,
            unknown_groups=unknown_groups,
            split_names=split_names,
        )
        options.check(self.name)
        names = Names(label=label, group=group, split=split, subject=subject, id=id, path=path, image=image)
        groups = names.groups(self.name)
        file = _find_table(root, table)
        columns, unread = _read(file, names, split_names=bool(split_names))
        self.settings = {"table": file.relative_to(root).as_posix(), **options.recorded(), **names.recorded()}
        self._inside = columns.pop("image", None)
        ids, remarks = _ids(file, names, columns, self._inside)
        self._rows = {id: row for row, id in enumerate(ids)}
        files: Sequence[Path | None]
        if (paths := columns.get(names.called("path"))) is not None:
            files, told = _resolved(file, root, paths)
            remarks += told
        else:
            files = [root / name if name else None for name in names_inside(self._inside, len(ids))]
        self._files = dict(zip(ids, files, strict=True))
        if unread:
            remarks.append(f"columns that are not read: {', '.join(map(repr, unread))}")
        rows = Rows(
            source=file,
            ids=ids,
            label_name=label,
            labels=columns[label],
            groups={name: columns[name] for name in groups},
            splits=columns.get(names.called("split")),
            subject_name=names.called("subject"),
            subjects=columns.get(names.called("subject")),
        )
        self._take(rows, options, remarks)

    def file(self, id: str) -> Path | None:
        """The image's file; None where the table holds the image."""
        return self._files[id]

    def read(self, id: str) -> bytes:
        """The image file, or the bytes in the table."""
        row = self._rows[id]
        if self._inside is not None and (data := bytes_inside(self._inside, row)):
            return data
        return super().read(id)


def need_inside(root: Path, table: str) -> None:
    """Raise DataError for a setting `table` that leaves the folder."""
    if _leaves(table):
        raise DataError(
            where="--setting table",
            found=f"{table!r}, which leaves the folder",
            wanted=f"a table inside --data-root ({root}), by its path relative to that folder",
            fix="put the table into that folder, or give a folder that holds table and images as --data-root",
        )


def _find_table(root: Path, table: str) -> Path:
    if table:
        need_inside(root, table)
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
    return root / PurePosixPath(names[0])


def _read(file: Path, names: Names, *, split_names: bool) -> tuple[dict[str, Any], list[str]]:
    """The columns by their names in the table, the images under image; and the names of those that are not read."""
    needed, path = names.needed("table"), names.called("path")
    usual = tuple({names.called(role) for role in ("split", "subject", "id")} - {*needed})
    if file.suffix == ".csv":
        if names.image:
            raise DataError(
                where=f"data set table, setting image, {file}",
                found="a CSV file",
                wanted="a Parquet file: CSV holds no images",
                fix="name the column of paths with --setting path=COLUMN",
            )
        columns: dict[str, Any] = read_csv(file, tuple(dict.fromkeys((path, *needed))), usual, names.roles())
        return columns, list(columns.pop(""))
    image = _image_column(file, names)
    if image is None:
        needed = tuple(dict.fromkeys((path, *needed)))
    found = read_parquet(file, (*needed, *([image] if image else [])), (*usual, *({path} - {*needed})), names.roles())
    columns = {} if image is None else {"image": found.pop(image)}
    for name, column in found.items():
        numbers = name != path and (name != names.called("split") or split_names)
        flags = numbers and name in (names.label, *names.groups("table"), names.called("split"))
        columns[name] = plain_values(file, name, column, numbers=numbers, flags=flags)
    return columns, [name for name in parquet_names(file) if name not in columns and name != image]


def _image_column(file: Path, names: Names) -> str | None:
    """The column of encoded images, where the table has one. Raises DataError for a table without paths whose images are
    there in another form, or under another name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(pa.OSFile(os.fsencode(file)))
    except (OSError, ValueError, pa.ArrowException):
        return None  # `read_parquet` says why
    holds = [field.name for field in schema if holds_bytes(field.type)]
    usual = (names.image,) if names.image else IMAGE_COLUMNS
    if named := [name for name in holds if name in usual]:
        return str(named[0])
    if names.called("path") in schema.names and not names.image:
        return None
    if names.image and names.image not in schema.names:
        raise unknown_name(f"data set table, setting image, {file}", names.image, schema.names)
    for name in (*holds, *(name for name in usual if name in schema.names)):
        kind = schema.field(name).type
        advice = (
            f"rename {name!r} to image, or say --setting image={name}"
            if name in holds
            else "write the encoded bytes (JPEG, PNG) into the column"
        )
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            advice = f"where these are paths of files, rename {name!r} to path; encoded images are bytes, not text"
        raise DataError(
            where=f"{file}, column {name}",
            found=f"no column path, and values of type {str(kind)[:80]}",
            wanted=f"encoded images in a column {' or '.join(IMAGE_COLUMNS)}: bytes or {{bytes, path}}; or paths of files",
            fix=advice,
        )
    return None


def _ids(file: Path, names: Names, columns: Mapping[str, Any], inside: Any) -> tuple[list[str], list[str]]:
    """An id a row, and a sentence where it is no column's. Raises DataError."""
    id, path = names.called("id"), names.called("path")
    if id in columns or path in columns:
        name = id if id in columns else path
        ids = texts(file, name, columns[name])
        refuse_twins(file, ids)
        texts(file, path, columns.get(path, ids))
        return ids, []
    beside = names_inside(inside, len(columns[names.label]))
    if all(beside) and len(set(beside)) == len(beside):
        return beside, ["no column id: the paths beside the images are the ids"]
    width = len(str(max(len(beside) - 1, 0)))
    return [f"row-{row:0{width}d}" for row in range(len(beside))], ["no column id: the rows' numbers are the ids"]


def _leaves(path: str) -> bool:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return "\0" in path or absolute or ".." in parts or not PurePosixPath(path).parts


def refuse_leaving(file: Path, root: Path, paths: Sequence[str]) -> None:
    """Raise DataError for paths that are not below the folder as they are written."""
    bad = [repr(path) for path in paths if _leaves(path)]
    wanted = "relative paths of files below the folder, without .."
    fix = "write the paths relative to the folder of the table"
    refuse(file, f"a path that leaves {root}", bad, wanted, len(paths), fix)


def _resolved(file: Path, root: Path, paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that the paths mean, and sentences on those that are not where they say, and on links that lead away."""
    refuse_leaving(file, root, paths)
    neighbours = Neighbours()
    found = [resolve(root, path, neighbours) for path in paths]
    counts = Counter(how for _, how in found if how)
    remarks = [f"{count:,} of {len(paths):,} paths were found {how}" for how, count in sorted(counts.items())]
    remarks += told_links(root, Counter(away for target, _ in found if (away := link_out(target, root))))
    return [target for target, _ in found], remarks

"""Images in folders that are named after their classes, and a table that says the group of each: torchvision's ImageFolder,
and the imagefolder of Hugging Face's datasets with its metadata.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, final

from bird.datasets.columns import read_split_names, refuse, refuse_twins, split_named, texts
from bird.datasets.finding import Neighbours, images_below, printable, resolve
from bird.datasets.listed import WHITE, ListedImages, Options, Rows
from bird.datasets.reading import parquet_names, read_csv_header, read_table
from bird.datasets.samples import Problem
from bird.datasets.table import Names, need_inside, refuse_leaving
from bird.errors import DataError, nearest

__all__ = ["ImageFolder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TABLES = ("groups.csv", "groups.parquet", "metadata.csv", "metadata.parquet")
PATHS = ("path", "file_name")
CLASS = "class folder"
SHOWN = 5


@final
class _Place(NamedTuple):
    """Where an image lies: the folder of its split and of its class, None where there is none."""

    split: str | None
    label: str | None


@final
class ImageFolder(ListedImages):
    """CLASS/x.jpg, or SPLIT/CLASS/x.jpg with folders named train, val, test ...; folders in a class folder are of its class.

    `table` says the groups: a CSV or Parquet file in the folder with the columns path (or file_name; relative to the table)
    and group. By default it is groups.csv, groups.parquet or metadata.csv, in the folder or in each split's. `path`, `group`
    (several with commas: they are crossed) and `subject` name its columns; with `label` a column is the class, and the
    folders are not. Where the folders name no split, or train alone, the splits are drawn. `bird.datasets.listed.Options`
    says what the other settings do.
    """

    name = "imagefolder"

    def __init__(
        self,
        root: Path,
        *,
        table: str = "",
        group: str = "group",
        path: str = "",
        subject: str = "",
        label: str = "",
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
        names = Names(label=label or CLASS, group=group, path=path, subject=subject)
        groups = names.groups(self.name)
        self._root = root
        named = read_split_names("split_names", split_names)
        places, problems, remarks = _places(root, named)
        tables = _tables(root, table, {place.split for place in places.values() if place.split}, places)
        told = _read_tables(root, tables, names, [*groups, *(name for name in (label, subject) if name)])
        found, unmatched = _matched(root, tables, told, places)
        self.settings = {"table": table, **options.recorded(), **names.recorded(), "label": label}
        if not label:
            _need_class(root, places)
            del self.settings["label"]
        splits, drawn = _splits(places, named)
        self._ids = {*places}
        rows = Rows(
            source=tables[0],
            ids=[*places],
            label_name=label or CLASS,
            labels=found[label] if label else [place.label for place in places.values()],
            label_source=None if label else root,
            groups={name: found[name] for name in groups},
            splits=splits,
            subject_name=subject,
            subjects=found[subject] if subject else None,
            problems=problems,
        )
        self._take(rows, options, [*remarks, *unmatched, *drawn])

    def file(self, id: str) -> Path | None:
        """The image's file."""
        if id not in self._ids:
            raise KeyError(id)
        return self._root / id


def _places(root: Path, named: Mapping[str, str]) -> tuple[dict[str, _Place], list[Problem], list[str]]:
    """Where each image lies, by its path; names that are not UTF-8; and what was told. Raises DataError for no image, and
    for folders of which some are splits."""
    paths, remarks = images_below(root, "data set imagefolder", SUFFIXES)
    problems = [
        Problem(printable(path), "a name that is not UTF-8: rename it", kind="bad name")
        for path in paths
        if printable(path) != path
    ]
    paths = [path for path in paths if printable(path) == path]
    if not paths:
        raise DataError(
            where=f"data set imagefolder, {root}",
            found="no image",
            wanted=f"images ({', '.join(SUFFIXES)}) in folders named after their classes",
            fix="correct --data-root",
        )
    tops = sorted({parts[0] for path in paths if len(parts := path.split("/")) > 1})
    splits = [top for top in tops if split_named(top, named)]
    if splits and len(splits) < len(tops):
        others = [top for top in tops if top not in splits]
        raise DataError(
            where=f"data set imagefolder, {root}",
            found=f"folders of splits ({', '.join(splits)}) beside others ({', '.join(others[:SHOWN])})",
            wanted="folders of splits, or of classes",
            fix=f"move the others away, or say what they are: --setting split_names={others[0]}:train",
        )
    places = {}
    for path in paths:
        folders = path.split("/")[:-1]
        split = folders.pop(0) if splits and folders else None
        places[path] = _Place(split, folders[0] if folders else None)
    return places, problems, [*remarks]


def _splits(places: Mapping[str, _Place], named: Mapping[str, str]) -> tuple[list[str | None] | None, list[str]]:
    """The word of each image's split, None where they are drawn; and a sentence where the folders name train alone."""
    words = [place.split for place in places.values()]
    if not {split_named(word, named) for word in words if word} <= {"train"}:
        return words, []
    return None, ["one split, train: the test rows are drawn from it"] if any(words) else []


def _need_class(root: Path, places: Mapping[str, _Place]) -> None:
    loose = [repr(path) for path, place in places.items() if place.label is None]
    fix = "put them there, or name a column of the table with --setting label=COLUMN"
    refuse(root, "no class folder", loose, "every image in the folder of its class", len(places), fix)


def _tables(root: Path, table: str, splits: set[str], places: Mapping[str, _Place]) -> list[Path]:
    """The tables of groups: the one that is named, the usual one, or one in each split's folder. Raises DataError."""
    if table:
        need_inside(root, table)
        if (file := root / PurePosixPath(table)).is_file() and file.suffix in (".csv", ".parquet"):
            return [file]
    else:
        found = [root / name for name in TABLES if (root / name).is_file()][:1]
        found = found or [
            root / split / name for split in sorted(splits) for name in TABLES if (root / split / name).is_file()
        ]
        if found:
            return found
    others = sorted(path.name for kind in ("*.csv", "*.parquet") for path in root.glob(kind))
    close = nearest(table, others) if table else others[:1]
    some = next(iter(places))
    there = f"; {', '.join(others[:SHOWN])} {'is' if len(others) == 1 else 'are'} there" if others else ""
    raise DataError(
        where=f"data set imagefolder, {root}",
        found=f"{len(places):,} images, but no table {table or 'of their groups'}{there}",
        wanted=f"groups.csv with the columns path and group, and a line such as {some},women: gaps are between groups",
        fix=(f"did you mean --setting table={close[0]}? " if close else "write it; ")
        + "images that it leaves out, or whose group is empty, train with --setting unknown_groups=true",
    )


def _read_tables(root: Path, tables: Sequence[Path], names: Names, needed: Sequence[str]) -> dict[str, list[Any]]:
    """The needed columns of all tables, and, under "", the path of each row's image relative to the folder."""
    columns: dict[str, list[Any]] = {name: [] for name in ("", *needed)}
    neighbours = Neighbours()
    for file in tables:
        there = read_csv_header(file) if file.suffix == ".csv" else parquet_names(file)
        path = names.path or next((name for name in PATHS if name in there), PATHS[0])
        found = read_table(file, tuple(dict.fromkeys((path, *needed))), (), names.roles())
        paths = texts(file, path, found[path])
        refuse_leaving(file, file.parent, paths)
        columns[""] += [resolve(file.parent, each, neighbours)[0].relative_to(root).as_posix() for each in paths]
        for name in needed:
            columns[name] += found[name]
    refuse_twins(tables[0], columns[""])
    return columns


def _matched(
    root: Path, tables: Sequence[Path], told: Mapping[str, list[Any]], places: Mapping[str, _Place]
) -> tuple[dict[str, list[Any]], list[str]]:
    """The columns in the order of the images, None for one that no row names; and what was told. Raises DataError where
    no row fits an image."""
    row_of = {path: row for row, path in enumerate(told[""])}
    rows = [row_of.get(path) for path in places]
    if told[""] and all(row is None for row in rows):
        raise DataError(
            where=str(tables[0]),
            found=f"paths such as {told[''][0]}; none of them is an image below {root}, such as {next(iter(places))}",
            wanted="the paths of images, relative to the folder of the table",
            fix="correct the paths, or name their column with --setting path=COLUMN",
        )
    found = {name: [None if row is None else values[row] for row in rows] for name, values in told.items() if name}
    remarks = []
    if left := len(row_of) - sum(row is not None for row in rows):
        first = next(path for path in row_of if path not in places)
        remarks.append(f"{left:,} of {len(row_of):,} rows of {tables[0].name} name no image here, such as {first}")
    return found, remarks

"""A folder of Parquet shards as Hugging Face's datasets writes it and the hub serves it, read with pyarrow alone.

The splits are said by the names of the files (data/train-00000-of-00002.parquet), the names of classes by the features in
the Parquet schema, under "huggingface".
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from bird.datasets.columns import read_split_names, refuse_twins, split_named, texts
from bird.datasets.listed import WHITE, ListedImages, Options, Rows
from bird.datasets.reading import bytes_inside, holds_bytes, names_inside, parquet_names, plain_values, read_parquet
from bird.datasets.table import IMAGE_COLUMNS, Names
from bird.errors import DataError

__all__ = ["HubFolder"]

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
_NUMBERED = re.compile(r"[-_.]?\d+$")
_NO_SPLIT = ("", "data", "default", "part", "shard")
KEPT = 8  # row groups in memory; datasets writes 100 images into one


@final
class HubFolder(ListedImages):
    """All Parquet files below a folder: a column of images ({bytes, path}, or bytes), one of labels, one of groups.

    `label`, `group` (several with commas: they are crossed), `split`, `subject`, `id` and `image` name the columns. A
    ClassLabel's numbers are read as its names, in its order. Without a split column the files' names say the split: train,
    validation, test ...; where they say none, or train alone, the splits are drawn. `bird.datasets.listed.Options` says
    what the other settings do.
    """

    name = "hf"

    def __init__(
        self,
        root: Path,
        *,
        label: str = "label",
        group: str = "group",
        split: str = "",
        subject: str = "",
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
        names = Names(label=label, group=group, split=split, subject=subject, id=id, image=image)
        groups, named = names.groups(self.name), read_split_names("split_names", split_names)
        self.settings = {**options.recorded(), **names.recorded()}
        shards = _shards(root)
        pictures = _image_column(shards[0], image)
        features = _features(shards[0])
        columns, remarks, words = _columns(root, shards, names, pictures, features)
        splits: list[Any] | None = columns.get(split) if split else words
        if not split and {split_named(word, named) for word in words if word} <= {"train"}:
            remarks.append("the files name no test split: it is drawn")
            splits = None
        self._images = _Images(shards, pictures)
        ids = _ids(shards[0], columns, id, words)
        self._rows = {each: row for row, each in enumerate(ids)}
        rows = Rows(
            source=shards[0],
            ids=ids,
            label_name=label,
            labels=columns[label],
            groups={name: columns[name] for name in groups},
            splits=splits,
            subject_name=subject,
            subjects=columns[subject] if subject else None,
            orders={name: features[name] for name in (label, *groups) if name in features},
        )
        self._take(rows, options, remarks)

    def file(self, id: str) -> Path | None:
        """None: the shards hold the images."""
        return None

    def read(self, id: str) -> bytes:
        """The encoded image."""
        data = self._images[self._rows[id]]
        if data is None:
            raise OSError(errno.ENODATA, "no image bytes in the shard")
        return data


@final
class _Images:
    """The images of all rows, read from disk a row group at a time. The last ones are kept; threads may ask at once."""

    def __init__(self, shards: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self._column, self._lock = column, threading.Lock()
        self._parts: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        rows = 0
        for shard in shards:
            about = pq.read_metadata(os.fspath(shard))
            for number in range(about.num_row_groups):
                self._parts.append((shard, number))
                self._starts.append(rows)
                rows += about.row_group(number).num_rows
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, row: int) -> bytes | None:
        part = bisect_right(self._starts, row) - 1
        return bytes_inside(self._group(part), row - self._starts[part])

    def _group(self, part: int) -> Any:
        import pyarrow.parquet as pq

        with self._lock:
            if part not in self._held:
                shard, number = self._parts[part]
                with pq.ParquetFile(os.fspath(shard)) as file:
                    self._held[part] = file.read_row_group(number, columns=[self._column])[self._column]
                if len(self._held) > KEPT:
                    self._held.popitem(last=False)
            self._held.move_to_end(part)
            return self._held[part]


def _shards(root: Path) -> list[Path]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.parquet"))
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if shown:
        return [root / name for name in shown]
    arrow = next(root.rglob("*.arrow"), None)
    raise DataError(
        where=f"data set hf, {root}",
        found="no Parquet file" + (f", but {arrow.relative_to(root)}" if arrow else ""),
        wanted="Parquet shards as the hub serves them, such as data/train-00000-of-00001.parquet",
        fix="write them with Dataset.to_parquet: what save_to_disk wrote is datasets' own format"
        if arrow
        else "download the repository's Parquet files, or correct the folder",
    )


def _word(root: Path, shard: Path) -> str:
    """What a shard's name, or else its folder's, says of the split; "" where they say nothing."""
    folders = shard.relative_to(root).parts[:-1]
    whole = _SHARD.fullmatch(shard.stem)
    word = whole[1] if whole else _NUMBERED.sub("", shard.stem)
    for each in (word, *reversed(folders)):
        if each.casefold() not in _NO_SPLIT:
            return each
    return ""


def _features(shard: Path) -> dict[str, list[str]]:
    """The names of each ClassLabel column, in their order."""
    import pyarrow.parquet as pq

    text = (pq.read_schema(os.fspath(shard)).metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        return {name: [str(each) for each in kind["names"]] for name, kind in features.items() if _is_class(kind)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_class(kind: object) -> bool:
    return isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and bool(kind.get("names"))


def _image_column(shard: Path, image: str) -> str:
    """The column of images: the one that is named, the usual one, or the only one. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(os.fspath(shard))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            where=str(shard),
            found=f"an unreadable Parquet file ({str(error)[:200]})",
            wanted="a shard of images",
            fix="download it again",
        ) from error
    held = [field.name for field in schema if holds_bytes(field.type)]
    chosen = [name for name in held if name == image or (not image and name in IMAGE_COLUMNS)]
    chosen = chosen or ([] if image else held)
    if len(chosen) != 1:
        raise DataError(
            where=f"{shard}, column {image}" if image else str(shard),
            found=f"columns of images: {', '.join(held) or 'none'}, of {', '.join(schema.names)}",
            wanted="one column of images, as bytes or {bytes, path}",
            fix="name it with --setting image=COLUMN",
        )
    return str(chosen[0])


def _columns(
    root: Path, shards: Sequence[Path], names: Names, pictures: str, features: Mapping[str, list[str]]
) -> tuple[dict[str, list[Any]], list[str], list[str]]:
    """The needed columns of all shards, one after the other, and the paths beside the images under ""; what was told; and
    the word of each row's shard. Raises DataError for a shard that lacks one, or has other classes."""
    needed = names.needed("hf")
    columns: dict[str, list[Any]] = {name: [] for name in needed}
    words: list[str] = []
    for shard in shards:
        found = read_parquet(shard, (*needed, pictures), (), names.roles())
        if _features(shard) != dict(features):
            raise DataError(
                where=str(shard),
                found=f"other classes than {shards[0].relative_to(root)} has",
                wanted="shards of one data set",
                fix="name the folder of one of them",
            )
        for name in needed:
            values = plain_values(shard, name, found[name], flags=True)
            columns[name] += [_named(value, features.get(name)) for value in values]
        columns.setdefault("", []).extend(names_inside(found[pictures], len(found[pictures])))
        words += [_word(root, shard)] * len(found[pictures])
    unread = [name for name in parquet_names(shards[0]) if name not in (*needed, pictures)]
    remarks = [f"columns that are not read: {', '.join(map(repr, unread))}"] if unread else []
    return columns, remarks, words


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """A ClassLabel's number as its name; None for -1, which stands for no label."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _ids(file: Path, columns: Mapping[str, list[Any]], id: str, words: Sequence[str]) -> list[str]:
    """An id a row: the named column, the paths beside the images where each is there once, or its number in its
    split."""
    if id:
        ids = texts(file, id, columns[id])
        refuse_twins(file, ids)
        return ids
    beside = columns[""]
    if all(beside) and len({*beside}) == len(beside):
        return beside
    seen: Counter[str] = Counter()
    numbered = []
    for word in words:
        numbered.append(f"{word or 'row'}-{seen[word]:07d}")
        seen[word] += 1
    return numbered

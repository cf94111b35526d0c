"""CelebA (Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015): one attribute by another.

The default is Attractive by Male on the official partition, with the test part cut to cells of equal size as in Java,
Jandial and Agarwal (2023). The attributes are annotators' judgements of photographs, not facts about people.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing, SampleTable
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["CelebA"]


@final
class CelebA(Dataset):
    """`target` by `protected` from torchvision's on-disk layout. Class and group 1 have the attribute, 0 lack it.

    `validation` says what the official validation part is for: "unused", or "meta" to make it the meta split.
    The test part is cut, in file order, to `test_per_cell` samples a (class, group) cell: 1600 is the published
    number, 0 means as many as the smallest cell has.
    """

    name = "celeba"
    image_size = 176
    flip = True

    def __init__(
        self,
        root: Path,
        *,
        target: str = "Attractive",
        protected: str = "Male",
        validation: str = "unused",
        test_per_cell: int = 0,
    ) -> None:
        if validation not in ("unused", "meta"):
            raise unknown_name("data set celeba, setting validation", validation, ("unused", "meta"))
        if test_per_cell < 0:
            raise UsageError(
                where="data set celeba, setting test_per_cell",
                found=str(test_per_cell),
                wanted="0 (all that equal cells allow) or a number of samples",
                fix="1600 is the published number",
            )
        self.settings = {
            "target": target,
            "protected": protected,
            "validation": validation,
            "test_per_cell": test_per_cell,
        }
        self.class_names = (f"not {target}", target)
        self.group_names = (f"not {protected}", protected)
        self._test_per_cell = test_per_cell
        folder = root if (root / "list_attr_celeba.txt").is_file() else root / "celeba"
        self._images = folder / "img_align_celeba"
        values = _attributes(folder / "list_attr_celeba.txt", target, protected)
        parts = _partition(folder / "list_eval_partition.txt")
        _same_names(folder, set(values), set(parts))
        splits = {0: "train", 2: "test"} | ({1: "meta"} if validation == "meta" else {})
        rows = [(id, *values[id], splits[part]) for id, part in parts.items() if part in splits]
        self._ids = {row[0] for row in rows}
        self._listing = Listing.of(rows)

    def listing(self) -> Listing:
        """All images of the parts in use, in file order."""
        return self._listing

    def read(self, id: str) -> bytes:
        """The JPEG file."""
        if id not in self._ids:
            raise KeyError(id)
        return (self._images / id).read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels, (218, 178, 3) in the aligned images."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """The official parts, test cut to equal cells in file order. Raises DataError for a cell too small."""
        splits = table.splits.copy()
        cells = {
            (label, group): np.flatnonzero((splits == "test") & (table.labels == label) & (table.groups == group))
            for label in (0, 1)
            for group in (0, 1)
        }
        size = self._test_per_cell or min(len(rows) for rows in cells.values())
        for (label, group), rows in cells.items():
            if len(rows) < max(size, 1):
                raise DataError(
                    where=f"data set celeba, test cell {self.class_names[label]} / {self.group_names[group]}",
                    found=f"{len(rows)} samples",
                    wanted=f"at least {max(size, 1)}",
                    fix="complete the images, or lower the setting test_per_cell",
                )
            splits[rows[size:]] = ""
        return splits


def _malformed(path: Path, line: int, found: str, wanted: str) -> DataError:
    return DataError(where=f"{path}, line {line}", found=found, wanted=wanted, fix="fetch the original file again")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            where=str(path),
            found=f"an unreadable file ({error})",
            wanted="CelebA's img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt in one folder",
            fix="put it there, or correct --data-root",
        ) from error


def _file_name(path: Path, line: int, name: str) -> str:
    if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise _malformed(path, line, f"the image name {name!r}", "a bare file name")
    return name


def _attributes(path: Path, target: str, protected: str) -> dict[str, tuple[int, int]]:
    """Image name -> (target, protected) as 0 or 1."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    for setting, name in (("target", target), ("protected", protected)):
        if name not in names:
            wanted = f"an attribute in line 2 of {path}: {', '.join(names) or 'none there'}"
            where = f"data set celeba, setting {setting}"
            raise unknown_name(where, name, names, "correct the setting", wanted=wanted)
    if target == protected:
        raise UsageError(
            where="data set celeba, setting protected",
            found=f"{protected!r}, the target itself",
            wanted="two different attributes",
            fix="choose another one",
        )
    if lines[0].strip() != str(len(lines) - 2):
        raise _malformed(path, 1, f"{lines[0]!r} before {len(lines) - 2} images", "their number")
    columns = 1 + names.index(target), 1 + names.index(protected)
    values: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(lines[2:], start=3):
        fields = line.split()
        if len(fields) != 1 + len(names) or not set(fields[1:]) <= {"1", "-1"}:
            wanted = f"an image name and {len(names)} values 1 or -1"
            raise _malformed(path, number, repr(line[:80]), wanted)
        name = _file_name(path, number, fields[0])
        if name in values:
            raise _malformed(path, number, f"{name} a second time", "every image once")
        values[name] = int(fields[columns[0]] == "1"), int(fields[columns[1]] == "1")
    return values


def _partition(path: Path) -> dict[str, int]:
    """Image name -> 0 (train), 1 (validation) or 2 (test)."""
    parts: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise _malformed(path, number, repr(line[:80]), "an image name and 0, 1 or 2")
        name = _file_name(path, number, fields[0])
        if name in parts:
            raise _malformed(path, number, f"{name} a second time", "every image once")
        parts[name] = int(fields[1])
    return parts


def _same_names(folder: Path, first: set[str], second: set[str]) -> None:
    odd = sorted(first ^ second)
    if odd:
        raise DataError(
            where=str(folder),
            found=f"{len(odd)} images in only one of the two lists: {', '.join(odd[:10])}",
            wanted="the same images in list_attr_celeba.txt and list_eval_partition.txt",
            fix="fetch both files again",
        )

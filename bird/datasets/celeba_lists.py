"""CelebA's two lists and its folder of images, where the common copies of the data set have them.

| copy | lists | images |
|---|---|---|
| torchvision | list_attr_celeba.txt, list_eval_partition.txt | img_align_celeba/ |
| the authors' folders | the same in Anno/ and Eval/ | Img/img_align_celeba/, Img/img_align_celeba_png/ |
| mirrors | list_attr_celeba.csv, list_eval_partition.csv | img_align_celeba/img_align_celeba/ |

Any list goes with any folder, directly below the root or in celeba/ or CelebA/. CSV may be called .txt and may have
semicolons or tabs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bird.datasets.finding import beside
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["LISTS", "find_images", "find_list", "read_attributes", "read_partition", "same_names"]

LISTS = ("list_attr_celeba", "list_eval_partition")
FOLDERS = (".", "Anno", "Eval")
IMAGES = (
    "img_align_celeba",
    "img_align_celeba/img_align_celeba",
    "img_align_celeba_png",
    "Img/img_align_celeba",
    "Img/img_align_celeba/img_align_celeba",
    "Img/img_align_celeba_png",
)
SUFFIXES = ("", ".png", ".JPG", ".jpeg", ".PNG", ".JPEG")
TRIED = 100  # images of the list that are looked for: a copy may lack some
WANTED = "CelebA's img_align_celeba/, list_attr_celeba.txt (or .csv) and list_eval_partition.txt (or .csv)"


def find_list(base: Path, name: str) -> Path | None:
    """The list of that name, as text or CSV; None where there is none."""
    places = [base / folder / f"{name}{suffix}" for folder in FOLDERS for suffix in (".txt", ".csv")]
    return next((path for path in places if path.is_file()), None)


def find_images(base: Path, names: Sequence[str]) -> tuple[Path, str]:
    """The folder that has the listed images, and the suffix that they have there, "" as listed. Where none has them: the
    usual folder."""
    for folder in (base / place for place in IMAGES):
        for suffix in SUFFIXES if folder.is_dir() else ():
            if any((folder / (Path(name).stem + suffix if suffix else name)).is_file() for name in names[:TRIED]):
                return folder, suffix
    return base / IMAGES[0], ""


def _malformed(path: Path, line: int, found: str, wanted: str) -> DataError:
    return DataError(where=f"{path}, line {line}", found=found, wanted=wanted, fix="fetch the original file again")


def _rows(path: Path) -> tuple[list[list[str]], bool]:
    """The fields of each line, and whether separators stand between them (CSV, under any suffix). Raises DataError for a
    file that is not there or not text."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except FileNotFoundError as error:
        raise DataError(
            where=str(path),
            found=f"no such file; {beside(path)}",
            wanted=WANTED,
            fix="put it there, or correct --data-root",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            where=str(path), found=f"an unreadable file ({error})", wanted=WANTED, fix="fetch the original file again"
        ) from error
    lines = text.split("\n")
    if mark := next((mark for mark in ",;\t" if mark in lines[-1]), None):
        return [[field.strip() for field in row] for row in csv.reader(lines, delimiter=mark)], True
    return [line.split() for line in lines], False


def _file_name(path: Path, line: int, name: str) -> str:
    if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise _malformed(path, line, f"the image name {name!r}", "a bare file name")
    return name


def read_attributes(path: Path, target: str, protected: str) -> dict[str, tuple[int, int]]:
    """Image name -> (target, protected) as 0 or 1. The line with the number of images may be absent. Raises DataError for a
    malformed list, UsageError for an attribute that it does not have."""
    rows, separated = _rows(path)
    first = rows[0] if rows else []
    counted = len(first) == 1 and first[0].lstrip("-").isdigit()
    head = int(counted)  # the line with the names
    names = rows[head] if len(rows) > head else []
    names = names[1:] if separated and len(names) == len(rows[-1]) else names  # the images' column has a name, too
    if not names or set(names) & {"1", "-1", "0"}:
        raise _malformed(path, head + 1, repr(" ".join(names)[:80]), "a line with the names of the attributes")
    _check_names(path, head + 1, names, target, protected)
    if counted and first[0] != str(len(rows) - 2):
        raise _malformed(path, 1, f"{first[0]!r} before {len(rows) - 2} images", "their number")
    columns = 1 + names.index(target), 1 + names.index(protected)
    values: dict[str, tuple[int, int]] = {}
    marks = ({"1", "-1"}, {"1", "0"}) if separated else ({"1", "-1"},)
    seen: set[str] = set()
    for number, fields in enumerate(rows[head + 1 :], start=head + 2):
        seen |= set(fields[1:])
        if len(fields) != 1 + len(names) or not any(seen <= each for each in marks):
            wanted = f"an image name and {len(names)} values 1 or -1"
            raise _malformed(path, number, repr(" ".join(fields)[:80]), wanted)
        name = _file_name(path, number, fields[0])
        if name in values:
            raise _malformed(path, number, f"{name} a second time", "every image once")
        values[name] = int(fields[columns[0]] == "1"), int(fields[columns[1]] == "1")
    return values


def _check_names(path: Path, line: int, names: Sequence[str], target: str, protected: str) -> None:
    for setting, name in (("target", target), ("protected", protected)):
        if name not in names:
            wanted = f"an attribute in line {line} of {path}: {', '.join(names)}"
            where = f"data set celeba, setting {setting}"
            raise unknown_name(where, name, names, "correct the setting", wanted=wanted)
    if target == protected:
        raise UsageError(
            where="data set celeba, setting protected",
            found=f"{protected!r}, the target itself",
            wanted="two different attributes",
            fix="choose another one",
        )


def read_partition(path: Path) -> dict[str, int]:
    """Image name -> 0 (train), 1 (validation) or 2 (test). Raises DataError for a malformed list."""
    parts: dict[str, int] = {}
    rows, separated = _rows(path)
    skipped = int(separated and rows[0][-1] not in ("0", "1", "2"))  # the line with the columns' names
    for number, fields in enumerate(rows[skipped:], start=1 + skipped):
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise _malformed(path, number, repr(" ".join(fields)[:80]), "an image name and 0, 1 or 2")
        name = _file_name(path, number, fields[0])
        if name in parts:
            raise _malformed(path, number, f"{name} a second time", "every image once")
        parts[name] = int(fields[1])
    return parts


def same_names(attributes: Path, first: set[str], partition: Path, second: set[str]) -> None:
    """Raise DataError unless both lists name the same images."""
    odd = sorted(first ^ second)
    if odd:
        raise DataError(
            where=str(attributes.parent),
            found=f"{len(odd)} images in only one of the two lists: {', '.join(odd[:10])}",
            wanted=f"the same images in {attributes.name} and {partition.name}",
            fix="fetch both files again",
        )

"""Where a data set's files are: folders searched with their links followed, and what lies there where a file is missing.

One rule for links, in every data set: they are followed, wherever they lead; a folder is searched once, whatever the number
of links to it, so that circles end; a link that leads nowhere is refused. Links that leave the data set's folder are named.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import final

from bird.errors import DataError

__all__ = ["Neighbours", "beside", "images_below", "link_out", "printable", "resolve"]

IMAGES = (".jpg", ".jpeg", ".png")
SHOWN = 3


def printable(name: str) -> str:
    """A file name as text that every terminal, JSON and Parquet take: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def images_below(root: Path, where: str) -> tuple[list[str], tuple[str, ...]]:
    """Paths of all image files below `root`, relative to it, with forward slashes, sorted; and sentences on the links that
    lead out of it. Hidden files and folders are left out. Names that are not UTF-8 hold surrogates.

    Raises DataError, starting with `where`, for a folder that cannot be read and a link that leads nowhere.
    """

    def stop(error: OSError) -> None:
        raise DataError(
            where=f"{where}, {printable(str(error.filename))}",
            found=error.strerror or str(error),
            wanted="a readable folder",
            fix="correct its permissions: skipping it would change the data set unnoticed",
        ) from error

    found: list[str] = []
    remarks: list[str] = []
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        top = waiting.pop(0)
        links: list[Path] = []
        before = len(found)
        for folder, folders, files in os.walk(top, onerror=stop):
            if (real := os.path.realpath(folder)) in seen:
                folders[:] = []
                continue
            seen.add(real)
            here = Path(folder)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # A link to a folder above the data set leads back to it, through whatever else lies there.
            leads = {name: os.path.realpath(here / name) for name in folders if os.path.islink(here / name)}
            links += [
                here / name for name, target in leads.items() if not Path(os.path.realpath(root)).is_relative_to(target)
            ]
            _refuse_dangling(here, files, where)
            base = here.relative_to(root)
            images = [name for name in files if name.lower().endswith(IMAGES) and not name.startswith(".")]
            found += [(base / name).as_posix() for name in images]
        if len(found) > before and (away := link_out(top, root)):
            remarks.append(f"link followed out of {root}: {away}, {len(found) - before:,} images")
        waiting += links  # real folders first: a link gives nothing that has been found without it
    return sorted(found), tuple(remarks)


def _refuse_dangling(folder: Path, files: Sequence[str], where: str) -> None:
    """A link to a folder that is not mounted looks like a file without a suffix."""
    for name in files:
        path = folder / name
        if not name.startswith(".") and path.is_symlink() and not os.path.exists(path):
            raise DataError(
                where=f"{where}, {printable(str(path))}",
                found=f"a link to {printable(os.readlink(path))}, which is not there",
                wanted="a link that leads to a file or folder",
                fix="mount what it leads to, or delete the link",
            )


def link_out(path: Path, root: Path) -> str | None:
    """The first link on the way from `root` to `path` that leads out of it, and where it leads; None where none does."""
    here, top = root, Path(os.path.realpath(root))
    for part in path.relative_to(root).parts:
        here = here / part
        if here.is_symlink() and not (target := Path(os.path.realpath(here))).is_relative_to(top):
            return f"{printable(str(here.relative_to(root)))} -> {printable(str(target))}"
    return None


@final
class Neighbours:
    """The names in the folders that were asked about, each folder read once."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def like(self, path: Path) -> str | None:
        """The one name in the path's folder that is `path.name` in another unicode form or with its suffix in another
        case; None where there is none, or several."""
        if path.parent not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(path.parent):
                    names.setdefault(_form(name), []).append(name)
            except OSError:
                pass
            self._names[path.parent] = names
        found = self._names[path.parent].get(_form(path.name), [])
        return found[0] if len(found) == 1 else None


def _form(name: str) -> str:
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


def resolve(root: Path, path: str, neighbours: Neighbours) -> tuple[Path, str]:
    """The file that a table's relative path means, and how it had to be read: "" (as it stands), or in words. A file that is
    not there keeps its path."""
    plain = root / PurePosixPath(path)
    if os.path.lexists(plain):
        return plain, ""
    how = []
    if "\\" in path:
        path = path.replace("\\", "/")
        how.append("with / for \\")
    here = root
    for part in PurePosixPath(path).parts:
        if os.path.lexists(here / part):
            here = here / part
            continue
        name = neighbours.like(here / part)
        if name is None:
            return plain, ""
        same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", part)
        words = "in another unicode form" if same else "with the suffix in another case"
        how += [words] if words not in how else []
        here = here / name
    return here, " and ".join(how)


def beside(path: Path) -> str:
    """In words: what lies where `path` is missing."""
    folder = path.parent
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{printable(str(folder))} cannot be read ({error.strerror})"
    if folder == path.parent:
        wanted = path.name.casefold()
        same = [name for name in names if name.casefold() == wanted]
        stem = [name for name in names if Path(name).stem.casefold() == Path(wanted).stem]
        if close := same or stem:
            return f"{printable(close[0])} is there"
    shown = ", ".join(printable(name) for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{printable(str(folder))} holds {shown or 'nothing'}{more}"

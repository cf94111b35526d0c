"""Where a data set's files are: folders searched with their links followed, and what lies there where a file is missing.

One rule for links, in every data set: they are followed, wherever they lead; a folder is searched once, whatever the number
of links to it, so that circles end; a link that leads nowhere is refused. Links that leave the data set's folder are named.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import final

from bird.errors import DataError

__all__ = [
    "Neighbours",
    "beside",
    "images_below",
    "link_out",
    "printable",
    "refuse_dead_link",
    "resolve",
    "told_links",
]

IMAGES = (".jpg", ".jpeg", ".png")
SHOWN, LINKS = 3, 10


def printable(name: str) -> str:
    """A file name as text that every terminal, JSON and Parquet take: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def images_below(root: Path, where: str, suffixes: tuple[str, ...] = IMAGES) -> tuple[list[str], tuple[str, ...]]:
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
    away: Counter[str] = Counter()
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
            files = [name for name in files if not name.startswith(".")]
            linked = {name for name in files if os.path.islink(here / name)}
            for name in linked:  # a link to a folder that is not mounted looks like a file without a suffix
                refuse_dead_link(here / name, where)
            base = here.relative_to(root)
            images = [name for name in files if name.lower().endswith(suffixes)]
            found += [(base / name).as_posix() for name in images]
            if linked and link_out(here, root) is None:
                away.update(out for name in images if name in linked and (out := link_out(here / name, root)))
        if len(found) > before and (out := link_out(top, root)):
            away[out] += len(found) - before
        waiting += links  # real folders first: a link gives nothing that has been found without it
    return sorted(found), tuple(told_links(root, away))


def told_links(root: Path, away: Mapping[str, int]) -> list[str]:
    """Sentences on the links that lead out of the data, with the number of images behind each."""
    links = sorted(away.items())
    lines = [f"link followed out of {root}: {link}, {count:,} images" for link, count in links[:LINKS]]
    if more := links[LINKS:]:
        lines.append(f"{len(more):,} more links followed out of {root}: {sum(count for _, count in more):,} images")
    return lines


def refuse_dead_link(path: Path, where: str) -> None:
    """Raise DataError, starting with `where`, if `path` is, or lies behind, a link that leads nowhere: it is often a disk
    that is not mounted, and to pass over it would change the data set unnoticed."""
    for here in (*reversed(path.parents), path):
        try:
            if here.is_symlink():
                here.stat()
        except OSError as error:
            how = "which leads in a circle" if error.errno == errno.ELOOP else "which is not there"
            raise DataError(
                where=f"{where}, {printable(str(here))}",
                found=f"a link to {printable(os.readlink(here))}, {how}",
                wanted="a link that leads to a file or folder",
                fix="mount what it leads to, or delete the link",
            ) from error


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
    suffix = suffix.lower()
    return f"{stem}{dot}{'jpg' if suffix == 'jpeg' else suffix}"


def _in_another_case(name: str, part: str) -> str:
    suffixes = [Path(each).suffix.lower() for each in (name, part)]
    if suffixes[0] != suffixes[1]:
        return "with the suffix .jpg for .jpeg, or the other way round"
    return "with the suffix in another case" if suffixes[0] else "with a folder's name in another case"


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
        words = "in another unicode form" if same else _in_another_case(name, part)
        how += [words] if words not in how else []
        here = here / name
    return here, " and ".join(how)


def _latin(name: str) -> str:
    """A name that is not UTF-8, as it was probably meant; in one unicode form."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("latin-1")) if printable(name) != name else name


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
        same = [name for name in names if wanted in (name.casefold(), _latin(name).casefold())]
        stem = [name for name in names if Path(name).stem.casefold() == Path(wanted).stem]
        if close := same or stem:
            there = folder / close[0]
            odd = ", which is not UTF-8: rename it" if printable(close[0]) != close[0] else ""
            if not there.exists():
                odd = f", a link to {printable(os.readlink(there))}, which is not there"
            return f"{printable(close[0])} is there{odd}"
    shown = ", ".join(printable(name) for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{printable(str(folder))} holds {shown or 'nothing'}{more}"

"""Columns of a table as labels, groups and splits: taken at their word, told where the word is doubtful, or refused."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from bird.datasets.base import SPLITS
from bird.errors import DataError, UsageError

__all__ = [
    "MOST",
    "categories",
    "categories_or_unknown",
    "filled",
    "in_order",
    "read_split_names",
    "refuse",
    "refuse_twins",
    "split_named",
    "splits_of",
    "subjects_of",
    "texts",
]

_INTEGER = re.compile(r"-?[0-9]+")
EMPTY = {"", "nan", "-nan", "<na>", "nat", "null", "none"}  # as a cast to text writes a missing value
DOUBTFUL = {"na", "n/a", "#n/a", "?", "-", "missing", "unknown"}  # may be a name as well
SHOWN = 5
MOST = 200  # classes, or values of one group column: more is a column of something else
SPLIT_NAMES = {
    "training": "train",
    "val": "meta",
    "valid": "meta",
    "validation": "meta",
    "dev": "meta",
    "testing": "test",
}


def refuse(
    file: Path, what: str, bad: Sequence[str], wanted: str, total: int, fix: str = "correct or remove these rows"
) -> None:
    """Raise DataError if there are `bad` rows (the first ten are named)."""
    if bad:
        raise DataError(
            where=str(file),
            found=f"{len(bad)} of {total} rows with {what}: {', '.join(bad[:10])}",
            wanted=wanted,
            fix=fix,
        )


def texts(file: Path, column: str, values: Sequence[Any]) -> list[str]:
    """The values as text. Raises DataError for empty and blank ones."""
    empty = [f"row {row}" for row, value in enumerate(values, start=1) if value is None or not str(value).strip()]
    refuse(file, f"no {column}", empty, f"a value of {column} in every row", len(values))
    return [str(value) for value in values]


def subjects_of(file: Path, column: str, values: Sequence[Any], ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Who is in each image, and a sentence on names that may be one. Raises DataError, with counts, for empty values and
    for spellings that differ only in blanks or unicode form, as `categories` does: the images of all who have no name
    would be those of one person, and one person in two spellings could be on two sides of a split."""
    counts = _filled(file, column, values, ids)
    if alike := _alike(counts, _visible):
        raise _several_spellings(file, column, alike)
    doubts = _alike(counts, _loose)
    more = f" and {len(doubts) - SHOWN} more" if len(doubts) > SHOWN else ""
    shown = "; ".join(_listed(each) for each in doubts[:SHOWN])
    remarks = [f"column {column}: these are taken as different persons: {shown}{more}"] if doubts else []
    return [str(value) for value in values], remarks


def refuse_twins(file: Path, ids: Sequence[str]) -> None:
    """Raise DataError for ids that are there twice, or look the same."""
    plain = [unicodedata.normalize("NFC", id) for id in ids]  # two spellings of one accent look the same
    count = Counter(plain)
    twins = [f"{id!r} (row {row})" for row, id in enumerate(plain, start=1) if count[id] > 1]
    refuse(
        file,
        "an id that another row has too",
        twins,
        "every id once",
        len(ids),
        "remove the rows that are there twice, or give every row an id of its own (a column id)",
    )


def categories(
    file: Path, column: str, values: Sequence[Any], ids: Sequence[str], *, hint: str = ""
) -> tuple[list[int], tuple[str, ...], list[str]]:
    """The values as 0..K-1, their K names, and sentences on names that may not be what they seem. In CSV, values that all
    look like integers are integers. `hint` says what else can be done about empty values.

    Raises DataError, with counts, for more than MOST names, for empty values (also as a cast to text writes them: nan, <NA>,
    NaT, null, None), for spellings that differ only in blanks or unicode form, for one integer in two spellings, and for
    integers that are not 0..K-1. Names that differ only in case, or are one number, may be meant: those are told.
    """
    counts = _filled(file, column, values, ids, hint)
    if len(counts) > MOST:
        raise DataError(
            where=f"{file}, column {column}",
            found=f"{len(counts):,} values in {len(values):,} rows",
            wanted=f"at most {MOST} classes or groups",
            fix="name another column, or put its values into few classes",
        )
    if alike := _alike(counts, _visible):
        raise _several_spellings(file, column, alike)
    remarks = _doubts(column, counts)
    text = file.suffix == ".csv"
    if all(isinstance(value, int) or (text and _INTEGER.fullmatch(value)) for value in values):
        numbers = [int(value) for value in values]
        kinds = sorted(set(numbers))
        if len(kinds) != len(counts):
            raise _several_spellings(file, column, _alike(counts, int))
        if kinds != list(range(len(kinds))):
            shown = ", ".join(map(str, kinds[:10])) + (", ..." if len(kinds) > 10 else "")
            raise DataError(
                where=f"{file}, column {column}",
                found=f"the {len(kinds)} integers {shown}",
                wanted=f"0..{len(kinds) - 1}, none left out",
                fix="renumber them, or use names",
            )
        return numbers, tuple(map(str, kinds)), remarks
    names = sorted(set(values))
    number = {name: place for place, name in enumerate(names)}
    return [number[value] for value in values], tuple(names), remarks


def in_order(codes: Sequence[int], names: Sequence[str], order: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """What `categories` found, renumbered: names stand in `order`, which holds them all."""
    kept = sorted(range(len(names)), key=lambda code: order.index(names[code]))
    place = {code: number for number, code in enumerate(kept)} | {-1: -1}
    return [place[code] for code in codes], tuple(names[code] for code in kept)


def _filled(file: Path, column: str, values: Sequence[Any], ids: Sequence[str], hint: str = "") -> Counter[str]:
    """How often each value is there. Raises DataError for empty ones."""
    empty = [repr(id) for id, value in zip(ids, values, strict=True) if _plain(value) in EMPTY]
    if empty:
        count = Counter(str(value) for value in values if _plain(value) in EMPTY and value not in (None, ""))
        read = f" (read as empty: {_listed(count)})" if count else ""
        fix = f"write the {column} of these rows, or leave the rows out"
        fix += f"; if a {column} really has this name, give it another name" if count else ""
        refuse(file, f"no {column}", empty, f"a {column} in every row{read}", len(ids), fix + hint)
    return Counter(str(value) for value in values)


def categories_or_unknown(
    file: Path, column: str, values: Sequence[Any], ids: Sequence[str], *, hint: str = ""
) -> tuple[list[int], tuple[str, ...], list[str]]:
    """`categories`, with -1 for an empty value: what stands there is not known."""
    known = [row for row, value in enumerate(values) if _plain(value) not in EMPTY]
    numbers, names, remarks = categories(
        file, column, [values[row] for row in known], [ids[row] for row in known], hint=hint
    )
    out = [-1] * len(values)
    for row, number in zip(known, numbers, strict=True):
        out[row] = number
    if left := len(values) - len(known):
        remarks = [*remarks, f"column {column}: not known in {left:,} of {len(values):,} rows"]
    return out, names, remarks


def _plain(value: object) -> str:
    return "" if value is None else str(value).strip().casefold()


def filled(value: object) -> bool:
    """Whether the value says something: it is not missing, nor a missing value as a cast to text writes it."""
    return _plain(value) not in EMPTY


def _visible(name: str) -> str:
    """The name as a reader sees it: one unicode form, single blanks, no marks without a shape."""
    text = unicodedata.normalize("NFC", name)
    return " ".join("".join(each for each in text if unicodedata.category(each) != "Cf").split())


def _loose(name: str) -> str:
    """`_visible`, without case and compatibility forms; a number as its value."""
    text = unicodedata.normalize("NFKC", _visible(name)).casefold()
    return str(Fraction(text)) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) else text


def _several_spellings(file: Path, column: str, alike: Sequence[Mapping[str, int]]) -> DataError:
    return DataError(
        where=f"{file}, column {column}",
        found="one name in several spellings: " + "; ".join(_listed(each) for each in alike[:SHOWN]),
        wanted="one spelling of each name (also of its blanks, its unicode form and its digits)",
        fix="write each name in one way",
    )


def _doubts(column: str, counts: Mapping[str, int]) -> list[str]:
    remarks = [
        f"column {column}: these are taken as different names: {_listed(each)}" for each in _alike(counts, _loose)
    ]
    if doubtful := {name: count for name, count in counts.items() if _plain(name) in DOUBTFUL}:
        remarks.append(
            f"column {column}: taken as a name, though it may stand for a missing value: {_listed(doubtful)}"
        )
    return remarks


def _alike(counts: Mapping[str, int], form: Callable[[str], Hashable]) -> list[dict[str, int]]:
    """The names that `form` makes one of."""
    groups: dict[Hashable, dict[str, int]] = {}
    for name, count in sorted(counts.items()):
        groups.setdefault(form(name), {})[name] = count
    return [each for each in groups.values() if len(each) > 1]


def _listed(counts: Mapping[str, int]) -> str:
    """Names in quotes with their counts; escaped where another one looks the same."""
    looks = Counter(_visible(name) for name in counts)
    return ", ".join(
        f"{ascii(name) if looks[_visible(name)] > 1 else repr(name)} ({count:,} rows)" for name, count in counts.items()
    )


def read_split_names(where: str, text: str) -> dict[str, str]:
    """ "0:train,1:meta" -> {"0": "train", "1": "meta"}. Raises UsageError."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        word, colon, split = (part.strip() for part in pair.rpartition(":"))
        if not (word and colon and (read := _split(split))) or _plain(word) in found:
            raise UsageError(
                where=where,
                found=repr(text),
                wanted="WORD:SPLIT pairs with train, meta or test, each word once, such as 0:train,1:meta,2:test",
                fix="write it so",
            )
        found[_plain(word)] = read
    return found


def split_named(word: object, named: Mapping[str, str]) -> str | None:
    """The split that a word means: by `named`, else as usual; None where it means none."""
    return named.get(_plain(word)) or _split(word)


def splits_of(
    file: Path, values: Sequence[Any], ids: Sequence[str], named: Mapping[str, str] | None = None, *, code: bool = False
) -> tuple[list[str], list[str]]:
    """The values as train, meta and test, and a sentence on each other name that was taken. `named` are further words, which
    count more than the usual ones. With `code` the advice is for a class of the user's own. Raises DataError."""
    read = {value: split_named(value, named or {}) for value in set(values)}
    unknown = [f"{id!r} ({v!r})" for id, v in zip(ids, values, strict=True) if read[v] is None]
    if unknown:
        numbers = {value for value in read if isinstance(value, int) or str(value) in ("0", "1", "2")}
        known = ", ".join(sorted(SPLIT_NAMES))
        fix = f"write train, meta or test (also taken: {known})"
        if numbers:
            fix += "; numbers are not read: where they follow CelebA, 0 is train, 1 is meta (validation) and 2 is test"
        words = "0:train,1:meta,2:test" if numbers else "WORD:SPLIT,..."
        say = f'the attribute split_names = "{words}" of the class (docs/own-parts.md)'
        fix += "; or say what they mean: " + (say if code else f"--setting split_names={words}")
        if any(_plain(value) in EMPTY for value in read):
            fix += f"; leave the {'split' if code else 'column'} out to have the splits drawn"
        refuse(file, "an unknown split", unknown, f"one of {', '.join(SPLITS)}", len(ids), fix)
    counts = Counter(value for value in values if value != read[value])
    told = sorted(counts.items(), key=lambda item: str(item[0]))
    remarks = [f"split {value!r} is taken as {read[value]}: {count:,} rows" for value, count in told]
    return [str(read[value]) for value in values], remarks


def _split(value: object) -> str | None:
    name = _plain(value)
    return name if name in SPLITS else SPLIT_NAMES.get(name)

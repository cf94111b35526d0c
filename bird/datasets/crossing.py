"""Several group columns as one: their values crossed, and each column by itself (a marginal) still to be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

from bird.errors import UsageError

__all__ = ["Factor", "cross", "groups_named"]

SIGN = " × "


@final
@dataclasses.dataclass(frozen=True)
class Factor:
    """One of several group columns that were crossed: its values by name, and which of them each crossed group has, (M,)."""

    names: tuple[str, ...]
    codes: tuple[int, ...]

    def as_json(self) -> dict[str, list[str] | list[int]]:
        """The same as lists."""
        return {"names": [*self.names], "codes": [*self.codes]}


def groups_named(where: str, text: str) -> tuple[str, ...]:
    """ "sex,age" -> ("sex", "age"). Raises UsageError for an empty name or one that is there twice."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len({*names}) < len(names):
        raise UsageError(
            where=where,
            found=repr(text),
            wanted="names of columns, each once, with commas",
            fix="such as group=sex,age",
        )
    return names


def cross(
    columns: Mapping[str, tuple[Sequence[int], Sequence[str]]],
) -> tuple[list[int], tuple[str, ...], dict[str, Factor]]:
    """Codes and names of N rows by column -> the codes of the crossed groups, their names ("F × old"), and the columns as
    factors. Only combinations that are there become groups. A row with an unknown value (-1) in any column is of group -1.

    One column stays as it is and is no factor.
    """
    if len(columns) == 1:
        ((codes, names),) = columns.values()
        return [*codes], tuple(names), {}
    rows = list(zip(*(codes for codes, _ in columns.values()), strict=True))
    kinds = sorted({row for row in rows if min(row) >= 0})
    place = {kind: number for number, kind in enumerate(kinds)}
    every = [names for _, names in columns.values()]
    crossed = tuple(SIGN.join(names[code] for names, code in zip(every, kind, strict=True)) for kind in kinds)
    factors = {
        column: Factor(tuple(names), tuple(kind[number] for kind in kinds))
        for number, (column, (_, names)) in enumerate(columns.items())
    }
    return [place.get(row, -1) for row in rows], crossed, factors

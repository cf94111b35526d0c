"""One declaration of an option: type, range, default and help, for the command line, TOML and Python alike.

A record of options is a frozen dataclass whose fields are `Annotated[TYPE, Option("Its help.", ge=0)] = DEFAULT`. Outside,
an option is called as its field, without the underscore that keeps `lambda_` from being a keyword. The class's `panel` is
the heading under which `--help` lists its options. Nothing heavy is imported for it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from annotated_types import BaseMetadata

__all__ = ["Declared", "Option", "Record", "as_json", "declared", "wanted_in_words"]

WANTED: Mapping[str, str] = {
    "greater_than_equal": "a number of {ge} or more",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
}
"""What an option has to be, by the kind of pydantic's error."""


@final
@dataclasses.dataclass(frozen=True)
class Option:
    """What there is to say of an option beside its type and its default.

    `default` says in words what holds where nothing is given; left out, the default itself is said. `flag` is the command
    line's spelling, if it is not the name's. A `hidden` option is none of the command line. `place` marks what says where
    and how fast a run is made: it does not decide what comes out. `later` marks an option that is younger than some runs:
    at its default it is no part of a run's identity, so that a run from before the option is the same run.
    """

    help: str
    default: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    flag: str = ""
    hidden: bool = False
    place: bool = False
    later: bool = False
    __is_annotated_types_grouped_metadata__: ClassVar[Literal[True]] = True
    """pydantic takes it for the annotations that it yields (annotated_types.GroupedMetadata)"""

    def __iter__(self) -> Iterator[BaseMetadata]:
        """The range, as pydantic reads it."""
        from annotated_types import Ge, Gt, Le, Lt

        bounds = ((Ge, self.ge), (Gt, self.gt), (Le, self.le), (Lt, self.lt))
        return iter([bound(value) for bound, value in bounds if value is not None])


class Record(Protocol):
    """A frozen dataclass of options."""

    panel: ClassVar[str | None]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@final
class Declared(NamedTuple):
    """An option of a record: its names outside and inside, its type, its default (`dataclasses.MISSING`: none)."""

    name: str
    field: str
    type: Any
    default: Any
    option: Option
    panel: str | None


@cache
def declared(record: type[Record]) -> tuple[Declared, ...]:
    """The options of a record, in order."""
    hints, found = typing.get_type_hints(record, include_extras=True), []
    for field in dataclasses.fields(record):
        kind, *rest = typing.get_args(hints[field.name])
        option = next(each for each in rest if isinstance(each, Option))
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Declared(field.name.removesuffix("_"), field.name, kind, default, option, record.panel))
    return tuple(found)


def wanted_in_words(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors asks for, as an error of ours says it."""
    bounds = {name: f"{bound:g}" for name, bound in error.get("ctx", {}).items() if isinstance(bound, int | float)}
    return WANTED[error["type"]].format(**bounds) if error["type"] in WANTED else str(error["msg"])


def as_json(value: Any) -> Any:
    """An option's value as JSON holds it."""
    if isinstance(value, Path):
        return str(value)
    return [*value] if isinstance(value, tuple) else value

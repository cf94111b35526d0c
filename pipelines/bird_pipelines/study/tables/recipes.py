"""The paper's tables as data: recipes/NAME.toml says what each table trains, recipes/profiles.toml what stands for what."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field

from bird.errors import UsageError, unknown_name
from bird_pipelines.study.tables.published import METHOD_OF

__all__ = ["NAMES", "PROFILES", "Block", "Figure", "Profile", "Recipe", "Row", "load_recipe", "select"]

FOLDER = Path(__file__).parent / "recipes"
TABLES = tuple(f"table{number}" for number in range(1, 8))
FIGURES = ("figure2", "figure3")
NAMES = (*TABLES, *FIGURES)
PROFILES = ("paper", "demo", "cifar10s-local")
Setting = str | int | float | bool


class Strict(BaseModel):
    """A frozen record that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


@final
class Block(Strict):
    """Rows of a table that share data set, teacher and student. `teacher` is "" for a student on its own; `trains` is
    the architecture that is trained: an adapter on cached features where the student is a foundation model."""

    dataset: str
    teacher: str
    student: str
    trains: str
    methods: tuple[str, ...]
    lambda_: float = Field(alias="lambda", ge=0)
    warmup: int = Field(ge=0)
    epochs: int = Field(ge=1)
    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    """step: times .1 every 10 epochs, the defaults of `bird distill`"""

    @property
    def name(self) -> str:
        """`dataset/teacher/student`."""
        return f"{self.dataset}/{self.teacher or 'none'}/{self.student}"

    @property
    def features_of(self) -> str | None:
        """The teacher whose features the runs read: an adapter without a teacher still reads its own encoder's."""
        return self.teacher or (self.student if self.trains == "adapter" else None)


@final
class Row(Strict):
    """One line of the table: a block and a method as the paper prints it."""

    block: Block
    label: str
    reference: str | None
    """the id of the row that it is compared with"""

    @property
    def id(self) -> str:
        """`dataset/teacher/student/method`, what --only takes."""
        return row_id(self.block, self.label)

    @property
    def method(self) -> str:
        """Our name of the method."""
        return METHOD_OF[self.label]


@final
class Recipe(Strict):
    """A table of the paper."""

    name: str
    title: str
    table: str
    metrics: tuple[str, ...]
    blocks: tuple[Block, ...]
    references: Mapping[str, str] = {}
    open: tuple[str, ...] = ()
    """what the paper leaves open about this table alone (`published.OPEN` is about all of them)"""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every line of the table, in the paper's order."""
        return tuple(
            Row(block=block, label=label, reference=self._reference(block, label))
            for block in self.blocks
            for label in block.methods
        )

    def _reference(self, block: Block, label: str) -> str | None:
        """As `references` says, else the Baseline of its block, else that of its student alone."""
        wanted = self.references.get(label, "Baseline")
        if wanted == label:
            return None
        alone = [
            each
            for each in self.blocks
            if (each.dataset, each.student, each.teacher) == (block.dataset, block.student, "")
        ]
        for each in (block, *alone):
            if wanted in each.methods:
                return row_id(each, wanted)
        return None


@final
class Figure(Strict):
    """A figure: a table's numbers in one metric, drawn."""

    name: str
    title: str
    of: str
    metric: str


@final
class Profile(Strict):
    """How much of a recipe is real. `stand_ins` maps a model of the paper to an architecture that is trained here;
    `run`, `image_run` and `teacher_run` replace settings of adapters, image students and teachers trained here."""

    name: str
    about: str
    demo: bool = False
    tables: tuple[str, ...] | None = None
    dataset: str | None = None
    dataset_settings: Mapping[str, Mapping[str, Setting]] = {}
    limit: int | None = None
    run: Mapping[str, Setting] = {}
    image_run: Mapping[str, Setting] = {}
    teacher_run: Mapping[str, Setting] = {}
    stand_ins: Mapping[str, str] = {}


def row_id(block: Block, label: str) -> str:
    """`dataset/teacher/student/method` in lower case."""
    return f"{block.name}/{label.lower().replace(' ', '-').replace('-+-', '+').replace('w/o', 'no')}"


def load_recipe(name: str) -> tuple[Recipe, Figure | None]:
    """The table of that name; for a figure its table, and the figure. Raises UsageError for an unknown name."""
    if name not in NAMES:
        raise unknown_name("bird reproduce", name, NAMES)
    given = _read(name)
    if name in FIGURES:
        figure = Figure(name=name, **given)
        return load_recipe(figure.of)[0], figure
    return Recipe(name=name, **given), None


def load_profile(name: str, recipe: Recipe) -> Profile:
    """The profile of that name. Raises UsageError for an unknown one, or one that is not for this table."""
    if name not in PROFILES:
        raise unknown_name("--profile", name, PROFILES)
    profile = Profile(name=name, **_read("profiles")[name])
    if profile.tables is not None and recipe.table not in profile.tables:
        raise UsageError(
            where=f"--profile {name}",
            found=recipe.name,
            wanted=" or ".join(f"table{each}" for each in profile.tables),
            fix="use --profile paper or demo for this table",
        )
    return profile


def select(recipe: Recipe, patterns: Sequence[str]) -> list[Row]:
    """The rows that `patterns` name: ids, parts of ids between slashes, or shell patterns; all where there are none.

    Raises UsageError, with the rows there are, for a pattern that names none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {row.id for row in recipe.rows if fnmatch.fnmatch(row.id, pattern) or pattern in row.id.split("/")}
        if not found:
            ids = [row.id for row in recipe.rows]
            raise unknown_name(
                "--only",
                pattern,
                dict.fromkeys([*ids, *(part for id in ids for part in id.split("/"))]),
                "name a row, or a part of one, such as bird",
                wanted=f"a row, or a part between the slashes, of {', '.join(ids)}",
            )
        chosen |= found
    return [row for row in recipe.rows if not patterns or row.id in chosen]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))

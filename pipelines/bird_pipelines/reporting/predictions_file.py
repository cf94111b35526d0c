"""Anybody's predictions from a CSV or Parquet file: labels, groups, predicted classes and scores, checked.

Nothing is filled in and no row is dropped: a file that does not say what was predicted for whom is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from bird.datasets.reading import need_commas
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["Predictions", "read_predictions"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PREDICTED = ("prediction", "predicted")  # columns that need not be named; `bird predict` writes the second
MOST = 200  # classes, or values of one group column: more is a column of something else


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """N rows: codes of labels and predictions into `class_names`, of each group column into its `group_names`; `scores` are
    (N, C), in the order of the classes, or None."""

    class_names: list[str]
    labels: Int[Ints, " rows"]
    predictions: Int[Ints, " rows"]
    scores: Float[Floats, "rows classes"] | None
    group_names: dict[str, list[str]]
    groups: dict[str, Int[Ints, " rows"]]

    def metric_frame(self, column: str, metrics: dict[str, Any] | None = None) -> Any:
        """fairlearn's MetricFrame by one group column, names in its index; see `bird.measuring.groups.metric_frame`."""
        from bird.measuring.groups import metric_frame

        names = np.array(self.group_names[column])[self.groups[column]]
        return metric_frame(self.labels, self.predictions, names, metrics)


def read_predictions(
    path: Path, *, label: str, group: Sequence[str], prediction: str | None, scores: Sequence[str] = ()
) -> Predictions:
    """The rows of `path`, a .csv, .tsv or .parquet file, by the names of their columns.

    Where `prediction` is None, the column is prediction or else predicted; a file with neither needs scores, and the class
    with the highest score is predicted. Two classes may have one column of scores, that of the second. Several group
    columns are crossed under their joined name as well. Classes are in sorted order, numbers by value.

    Raises UsageError for a column that is not there or has two roles, DataError for a file or a value that does not fit.
    """
    whole = _whole(path)
    need_commas(path, whole.column_names)
    prediction = _column_of_predictions(path, whole.column_names, [label, *group, *scores], prediction, bool(scores))
    table = _columns(path, whole, [label, *group, *([prediction] if prediction else []), *scores])
    class_names, labels = _codes(path, label, table[label])
    values = _scores(path, table, scores, class_names) if scores else None
    if prediction is not None:
        predictions = _known(path, prediction, table[prediction], class_names)
    else:
        assert values is not None
        predictions = values.argmax(1)
    coded = {name: _codes(path, name, table[name]) for name in group}
    names = {name: each for name, (each, _) in coded.items()}
    groups = {name: each for name, (_, each) in coded.items()}
    if len(group) > 1:
        crossed = np.stack([groups[name] for name in group])
        kinds, codes = np.unique(crossed, axis=1, return_inverse=True)
        joined = " x ".join(group)
        names = {joined: [" ".join(names[n][k] for n, k in zip(group, kind, strict=True)) for kind in kinds.T]} | names
        groups = {joined: codes.ravel().astype(np.int64)} | groups
    return Predictions(class_names, labels, predictions, values, names, groups)


def _column_of_predictions(
    path: Path, columns: Sequence[str], others: Sequence[str], given: str | None, scored: bool
) -> str | None:
    """The column of predicted classes, None where scores say them. No column has two roles."""
    there = [name for name in PREDICTED if name in columns]
    free = [name for name in there if name not in others]
    found = given or next(iter(free if free or scored else there), None)
    if found is None and not scored:
        fix = "name the column of predicted classes with --prediction, or columns of scores with --scores"
        raise unknown_name(f"column of {path}", PREDICTED[0], columns, fix)
    named = [*others, *([found] if found else [])]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UsageError(
            where=f"column {twice[0]!r} of {path}",
            found="two roles for one column",
            wanted="another column for the label, each group, the prediction and each score",
            fix="correct --label, --group, --prediction or --scores",
        )
    return found


def _whole(path: Path) -> Any:
    """The file as a table of pyarrow."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    wanted = "a CSV file in UTF-8, or a Parquet file whose name ends in .parquet"
    if not path.is_file():
        raise _bad(path, "a folder" if path.is_dir() else "no such file", wanted, "check the path")
    try:
        if path.suffix != ".parquet":
            with path.open("rb") as file:
                if b"\0" in file.read(4096):
                    raise _bad(path, "not a CSV or Parquet file", wanted, "check the path and the file")
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        parse = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        return pa.csv.read_csv(path, parse_options=parse)
    except (OSError, pa.ArrowInvalid) as error:
        why = str(error).splitlines()[0][:160]
        said = f" ({why})" if path.suffix != ".parquet" and why.isprintable() else ""
        raise _bad(path, f"not a CSV or Parquet file{said}", wanted, "check the path and the file") from None


def _columns(path: Path, found: Any, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The columns, as numpy arrays without a missing value."""
    import pyarrow as pa

    if twice := sorted({name for name in wanted if found.column_names.count(name) > 1}):
        raise _bad(path, f"several columns {twice[0]!r}", "each column once", "rename or remove all but one")
    for name in wanted:
        if name not in found.column_names:
            raise unknown_name(f"column of {path}", name, found.column_names, "name the columns that the file has")
    if not found.num_rows:
        raise _bad(path, "no rows", "at least one", "check the file")
    columns = {}
    for name in wanted:
        column = found[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        empty = np.asarray(column.is_null(nan_is_null=True))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            empty |= np.array([not text or text.lower() == "nan" for text in column.to_pylist()])
        if empty.any():
            rows = f"{int(empty.sum()):,} empty or NaN values in column {name!r}, the first in row {int(empty.argmax()) + 1}"
            raise _bad(path, rows, "a value in every row", "leave these rows out, or name what is not known")
        columns[name] = np.asarray(column.to_pylist() if column.type == pa.bool_() else column.to_numpy(False))
    return columns


def _codes(path: Path, name: str, values: NDArray[Any]) -> tuple[list[str], Ints]:
    """Sorted names, and the code of each row."""
    kinds, codes = np.unique(values if values.dtype.kind in "biuf" else values.astype(str), return_inverse=True)
    if not 1 < len(kinds) <= MOST:
        some = f"1 value ({_name(kinds[0])})" if len(kinds) == 1 else f"{len(kinds):,} values"
        raise _bad(
            path,
            f"{some} in column {name!r}",
            f"2 to {MOST} classes or groups",
            "name another column, or bin its values",
        )
    return [_name(each) for each in kinds], codes.ravel().astype(np.int64)


def _known(path: Path, name: str, values: NDArray[Any], class_names: Sequence[str]) -> Ints:
    """Predictions as codes of the labels' classes."""
    kinds, codes = np.unique(values if values.dtype.kind in "biuf" else values.astype(str), return_inverse=True)
    place = {each: code for code, each in enumerate(class_names)}
    if unknown := [_name(each) for each in kinds if _name(each) not in place]:
        more = f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else ""
        raise _bad(
            path,
            f"{', '.join(unknown[:3])}{more} in column {name!r}",
            f"classes that the labels have ({', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''})",
            "predictions must be class names as in the label column; scores go with --scores",
        )
    return np.array([place[_name(each)] for each in kinds])[codes.ravel()].astype(np.int64)


def _scores(path: Path, table: dict[str, NDArray[Any]], names: Sequence[str], classes: Sequence[str]) -> Floats:
    """(N, C). Columns that end in _CLASS are matched by name, others are in the order of the classes."""
    if len(names) == 1 and len(classes) == 2:
        names, single = list(names), True
    elif len(names) != len(classes):
        wanted = f"{len(classes)}, one a class ({', '.join(classes[:8])})"
        raise _bad(path, f"{len(names)} columns of scores", wanted, "name one column of scores for each class")
    else:
        single = False
        by_class = {name.rpartition("_")[2]: name for name in names}
        names = [by_class[each] for each in classes] if {*by_class} == {*classes} else list(names)
    for name in names:
        if table[name].dtype.kind not in "iuf" or not np.isfinite(table[name]).all():
            raise _bad(path, f"values in column {name!r} that are no finite numbers", "scores", "check the column")
    values = np.stack([table[name].astype(np.float64) for name in names], axis=1)
    if single and (values.min() < 0 or values.max() > 1):
        raise _bad(
            path,
            f"one column of scores outside 0..1 ({names[0]!r})",
            "probabilities of the second class",
            "give one column a class",
        )
    return np.hstack([1 - values, values]) if single else values


def _name(value: Any) -> str:
    """A class or group as a reader writes it: 1.0 is 1."""
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def _bad(path: Path, found: str, wanted: str, fix: str) -> DataError:
    return DataError(where=str(path), found=found, wanted=wanted, fix=fix)

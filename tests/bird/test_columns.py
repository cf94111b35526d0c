"""Columns of a table that are called otherwise, several group columns, and words or numbers of splits."""

import csv
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bird.datasets import open_dataset
from bird.datasets.base import prepare, require_test_cells
from bird.datasets.crossing import cross
from bird.errors import DataError, UsageError

AGES = ("old", "young")


def people(folder, rows=48):
    """Photos and what a registry says of them, by columns."""
    folder.mkdir(exist_ok=True)
    table = {"file": [], "smiles": [], "sex": [], "age": [], "fold": [], "person": []}
    for n in range(rows):
        pixels = np.random.default_rng(n).integers(0, 255, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:02d}.png")
        said = (f"{n:02d}.png", ("no", "yes")[n % 2], "FM"[n // 2 % 2], AGES[n // 4 % 2], n // 8 % 3, f"p{n // 8}")
        for values, value in zip(table.values(), said, strict=True):
            values.append(value)
    return table


def write(folder, table, kind="csv"):
    if kind == "parquet":
        pq.write_table(pa.table(table), folder / "samples.parquet")
        return
    with (folder / "samples.csv").open("w", newline="") as file:
        csv.writer(file).writerows([tuple(table), *zip(*table.values(), strict=True)])


NAMED = {"label": "smiles", "path": "file", "group": "sex"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_named_and_splits_are_said_by_numbers(tmp_path, kind):
    write(tmp_path, people(tmp_path), kind)
    words = {"split": "fold", "split_names": "0:train, 1:val, 2:test"}
    data = open_dataset("table", tmp_path, **NAMED, **words, subject="person")
    assert (data.class_names, data.group_names) == (("no", "yes"), ("F", "M"))
    assert data.factors == {}
    assert data.settings == {
        "table": f"samples.{kind}",
        "test_fraction": 0.2,
        "image_size": 64,
        "flip": True,
        "split_names": "0:train, 1:val, 2:test",
        **NAMED,
        "split": "fold",
        "subject": "person",
    }
    table = prepare(data)
    assert Counter(table.splits.tolist()) == {"train": 16, "meta": 16, "test": 16}
    assert data.subjects is not None
    assert data.subjects["00.png"] == "p0"
    again = open_dataset("table", tmp_path, **data.settings)
    assert again.settings == data.settings
    assert "columns that are not read: 'age'" in data.remarks


def test_several_group_columns_are_crossed_and_each_is_kept(tmp_path):
    write(tmp_path, people(tmp_path))
    data = open_dataset("table", tmp_path, **{**NAMED, "group": "sex,age"})
    assert data.group_names == ("F × old", "F × young", "M × old", "M × young")
    assert {name: each.as_json() for name, each in data.factors.items()} == {
        "sex": {"names": ["F", "M"], "codes": [0, 0, 1, 1]},
        "age": {"names": ["old", "young"], "codes": [0, 1, 0, 1]},
    }
    table = prepare(data, meta_at_least=1)
    require_test_cells(data, table)
    assert table.cells(2, 4).tolist() == [[6] * 4] * 2


def test_a_row_of_which_one_value_is_unknown_is_of_no_group(tmp_path):
    table = people(tmp_path)
    table["age"][0] = table["sex"][1] = ""
    write(tmp_path, table)
    data = open_dataset("table", tmp_path, **{**NAMED, "group": "sex,age"}, unknown_groups=True)
    prepared = prepare(data, meta_at_least=1)
    assert sorted(prepared.ids[prepared.groups < 0].tolist()) == ["00.png", "01.png"]


def test_only_combinations_that_are_there_are_groups():
    codes, names, factors = cross({"a": ([0, 1, 1, -1], ["x", "y"]), "b": ([1, 0, 1, 0], ["2", "10"])})
    assert (codes, names) == ([0, 1, 2, -1], ("x × 10", "y × 2", "y × 10"))
    assert factors["b"].names == ("2", "10")
    assert factors["b"].codes == (1, 0, 1)


def test_true_and_false_are_groups_labels_and_splits(tmp_path):
    table = people(tmp_path)
    table["smiles"] = [each == "yes" for each in table["smiles"]]
    table["is_test"] = [n % 16 < 4 for n in range(48)]
    write(tmp_path, table, "parquet")
    names = {**NAMED, "split": "is_test", "split_names": "true:test,false:train"}
    data = open_dataset("table", tmp_path, **names)
    assert data.class_names == ("False", "True")
    assert Counter(prepare(data).splits.tolist())["test"] == 12


def test_images_inside_under_another_name(tmp_path):
    table = people(tmp_path)
    table["photo"] = [(tmp_path / name).read_bytes() for name in table.pop("file")]
    write(tmp_path, table, "parquet")
    data = open_dataset("table", tmp_path, label="smiles", group="sex", image="photo")
    assert data.image("row-00").shape == (12, 10, 3)
    with pytest.raises(DataError, match="--setting image=photo"):
        open_dataset("table", tmp_path, label="smiles", group="sex")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"label": "smile"}, r"columns 'file'.*did you mean 'smiles' in --setting label\?"),
        ({"group": "sex,sex"}, "'sex,sex'; wanted names of columns, each once"),
        ({"group": "sex,"}, "wanted names of columns"),
        ({"group": "smiles"}, "settings label and group: found column 'smiles' for both"),
        ({"split": "folds"}, r"did you mean 'fold' in --setting split\?"),
        ({"table": "/elsewhere/many.csv"}, "--setting table: found '/elsewhere/many.csv', which leaves .*table inside"),
        ({"split": "fold"}, r"48 of 48 rows with an unknown split.*split_names=0:train,1:meta,2:test"),
        ({"split": "fold", "split_names": "0:train,1:test"}, r"16 of 48 rows with an unknown split: '32.png' \('2'\)"),
        ({"split": "fold", "split_names": "0:train,1:meta,2:train"}, "splits '0', '1', '2': none is test"),
        ({"split_names": "0=train"}, "wanted WORD:SPLIT pairs"),
        ({"split_names": "0:fold"}, "wanted WORD:SPLIT pairs"),
        ({"split_names": "a:train,A:test"}, "each word once"),
        ({"label": "number"}, "column number: found 1,000 values in 1,000 rows; wanted at most 200 classes"),
        ({"group": "number"}, "column number: found 1,000 values"),
        ({"group": "sex,same"}, "column same: found one value, 'x', in all 1000 rows; wanted two groups"),
        ({"image": "file"}, "found a CSV file"),
    ],
)
def test_what_does_not_fit_is_told_before_an_image_is_read(tmp_path, settings, told):
    rows = 1000 if {"number", "same"} & {*",".join(settings.values()).split(",")} else 48
    table = {"file": [f"{n:02d}.png" for n in range(rows)]}
    table |= {"smiles": ["no", "yes"] * (rows // 2), "sex": ["F", "F", "M", "M"] * (rows // 4)}
    table |= {"fold": [n * 3 // rows for n in range(rows)]}
    if rows == 1000:
        table |= {"number": [f"v{n}" for n in range(rows)], "same": ["x"] * rows}
    write(tmp_path, table)
    with pytest.raises((DataError, UsageError), match=told):
        open_dataset("table", tmp_path, **{**NAMED, **settings})


def test_a_column_that_is_called_by_a_number(tmp_path):
    table = people(tmp_path)
    table["3"] = table.pop("smiles")
    write(tmp_path, table)
    assert open_dataset("table", tmp_path, **{**NAMED, "label": 3}).settings["label"] == "3"

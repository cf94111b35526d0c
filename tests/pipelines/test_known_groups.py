"""Groups known for meta alone: those of train are never looked at, and a probe stands in for them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.shell import bird, bird_json, distilled
from PIL import Image
from typer.testing import CliRunner

from bird.datasets.base import SampleTable
from bird.errors import UsageError
from bird_pipelines.cli import app
from bird_pipelines.config import resolve
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.evaluate import evaluate
from bird_pipelines.distilling.groups import estimated_groups, with_known_groups
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.distilling.training import distill

CLASSES, GROUPS, DIM = 3, 2, 12


def data_of(seed=0, rows=900, spread=1.0):
    """Features in which class and group lie in directions of their own."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, CLASSES, rows), rng.integers(0, GROUPS, rows)
    features = spread * rng.normal(size=(rows, DIM)).astype(np.float32)
    features[np.arange(rows), labels] += 3
    features[:, 5] += 4 * groups
    splits = np.where(np.arange(rows) % 3 == 0, "meta", np.where(np.arange(rows) % 3 == 1, "train", "test"))
    ids = np.array([f"{row}" for row in range(rows)], object)
    table = SampleTable(ids, labels, groups, splits.astype(object), ids)
    return RunData(
        table=table,
        class_names=("a", "b", "c"),
        group_names=("g", "h"),
        image_size=0,
        flip=False,
        images=None,
        features=torch.from_numpy(features),
        logits=None,
        logits_fingerprint=None,
        stages=None,
        boxes=None,
        fingerprint=None,
        teacher=None,
        failed={},
    )


def test_the_probe_finds_groups_and_says_how_often(tmp_path):
    data = data_of()
    found = with_known_groups(data, "meta")
    train = data.rows("train")
    agreed = (found.table.groups[train] == data.table.groups[train]).mean()
    assert agreed > 0.9
    assert found.probe == pytest.approx(agreed, abs=0.06)
    assert torch.allclose(found.posterior.sum(1), torch.ones(len(data.table)))
    rest = np.concatenate([data.rows("meta"), data.rows("test")])
    assert (found.table.groups[rest] == data.table.groups[rest]).all()
    assert torch.equal(found.posterior[rest].argmax(1), torch.from_numpy(data.table.groups[rest]))


def test_groups_of_train_are_never_looked_at(tmp_path):
    data = data_of()
    other = data.table.groups.copy()
    other[data.rows("train")] = 0
    blind = dataclasses.replace(data, table=dataclasses.replace(data.table, groups=other))
    one, two = (with_known_groups(each, "meta") for each in (data, blind))
    assert torch.equal(one.posterior, two.posterior)
    assert (one.table.groups == two.table.groups).all()
    assert torch.equal(one.cell_counts("train"), two.cell_counts("train"))


def test_probabilities_are_calibrated():
    """Where features say little, the probabilities do, too: of rows with p near .7 about .7 are right."""
    data = data_of(rows=9000, spread=4.0)
    meta, train, features = data.rows("meta"), data.rows("train"), data.features.numpy()
    labels, groups = data.table.labels, data.table.groups
    found, _ = estimated_groups(features[meta], labels[meta], groups[meta], features[train], labels[train])
    sure = found.max(1)
    right = found.argmax(1) == groups[train]
    some = (sure > 0.6) & (sure < 0.8)
    assert some.sum() > 300
    assert right[some].mean() == pytest.approx(sure[some].mean(), abs=0.06)


def test_classes_with_few_known_rows_share_a_probe():
    data = data_of(rows=600)
    meta, train, features = data.rows("meta"), data.rows("train"), data.features.numpy()
    labels, groups = data.table.labels, data.table.groups
    kept = meta[(labels[meta] != 2) | (groups[meta] == 0)]
    found, _ = estimated_groups(features[kept], labels[kept], groups[kept], features[train], labels[train])
    assert np.allclose(found.sum(1), 1)
    lonely = labels[train] == 2
    assert (found[lonely].argmax(1) == groups[train][lonely]).mean() > 0.8


def test_what_cannot_be_had_is_told(tmp_path):
    data = data_of()
    with pytest.raises(UsageError, match="no cache"):
        with_known_groups(dataclasses.replace(data, features=None), "meta")
    few = dataclasses.replace(data.table, groups=np.where(data.table.splits == "meta", 0, data.table.groups))
    with pytest.raises(UsageError, match="0 meta rows of the group h"):
        with_known_groups(dataclasses.replace(data, table=few), "meta")


def test_a_run_records_the_probe(tmp_path, cache):
    command = ["distill", "--cache", str(cache), "--student", "adapter", "--method", "bird-offsets"]
    command += ["--groups-known", "meta", "--epochs", "2", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["config"]["groups_known"] == "meta"
    assert 0.5 < told["probe_accuracy"] <= 1
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert np.shape(curve[-1]["offsets"]) == (10, 2)
    assert curve[-1]["gate"] is None


def test_a_cell_that_no_row_is_most_probably_in_is_not_called_empty(tmp_path):
    data = data_of(spread=4.0)
    found = with_known_groups(data, "meta")
    train = found.rows("train")
    rare = dataclasses.replace(found.table, groups=np.where(found.table.splits == "train", 0, found.table.groups))
    found = dataclasses.replace(found, table=rare)
    assert len(train)
    assert found.empty_cells() == {}
    assert (found.cell_counts("train") > 0).all()


def test_of_unknown_groups_the_probe_says_what_they_probably_are(tmp_path):
    data = data_of()
    train = data.rows("train")
    groups = data.table.groups.copy()
    unknown = train[::3]
    groups[unknown] = -1
    partly = dataclasses.replace(data, table=dataclasses.replace(data.table, groups=groups))
    assert partly.cell_counts("train").sum() == len(train) - len(unknown)
    assert sum(partly.cells()["train"].values()) == len(train) - len(unknown)
    found = with_known_groups(partly, "all", "bird-offsets")
    assert found.estimated == len(unknown)
    assert (found.table.groups[unknown] == data.table.groups[unknown]).mean() > 0.9
    known = np.setdiff1d(np.arange(len(data.table)), unknown)
    assert (found.table.groups[known] == data.table.groups[known]).all()
    assert torch.equal(found.posterior[known].argmax(1), torch.from_numpy(data.table.groups[known]))
    assert torch.equal(found.posterior[known].amax(1), torch.ones(len(known)))
    assert found.cell_counts("train").sum() == pytest.approx(len(train), abs=3)
    assert with_known_groups(data, "all", "bird-offsets") is data


def test_unknown_groups_without_a_cache_are_for_the_baseline_alone(tmp_path):
    data = data_of()
    groups = np.where(data.table.splits == "train", -1, data.table.groups)
    blind = dataclasses.replace(data, features=None, table=dataclasses.replace(data.table, groups=groups))
    assert with_known_groups(blind, "all", "baseline") is blind
    with pytest.raises(UsageError, match="300 train rows without a group: found no cache"):
        with_known_groups(blind, "all", "reweight")


def test_rows_without_a_group_from_the_table_to_the_student(teacher, tmp_path):
    """A third of the train rows has no group: every method trains, and what was done is recorded."""
    rng, lines = np.random.default_rng(0), ["path,label,group,split"]
    for number in range(240):
        label, group, split = number % 2, number // 2 % 2, ("train", "train", "meta", "test")[number // 4 % 4]
        pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., label] += 60
        pixels[..., 2] += 70 * group
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        unknown = split == "train" and number % 3 == 0
        lines.append(f"{number}.png,{['no', 'yes'][label]},{'' if unknown else 'ab'[group]},{split}")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    data = ("--dataset", "table", "--data-root", tmp_path, "--setting", "unknown_groups=true")
    info = bird_json("precompute", "--teacher", f"run:{teacher}", *data, "--out", tmp_path / "cache")
    assert info["cells"]["train"]["no, unknown"] + info["cells"]["train"]["yes, unknown"] == 40
    assert "unknown" in bird("cache", "info", tmp_path / "cache").stdout
    for method in ("bird-offsets", "reweight", "bird"):
        told = distilled(tmp_path / "cache", tmp_path / method, dataset="table", method=method, epochs=2, warmup=1)
        assert told["estimated_groups"] == 40
        assert told["probe_accuracy"] > 0.7
        assert told["rows"]["train"] == 120
    assert evaluate(tmp_path / "reweight", "train")["n"] == 80
    flags = {"dataset": "table", "student": "adapter", "cache": tmp_path / "cache", "epochs": 1}
    many = [
        resolve({**flags, "method": method, "out": tmp_path / f"{method}-0"}) for method in ("baseline", "group-dro")
    ]
    assert {info["estimated_groups"] for info in distill_many(many)} == {40}
    flags = {"dataset": "table", "data_root": tmp_path, "dataset_settings": {"unknown_groups": True}, "epochs": 1}
    plain = distill(resolve({**flags, "student": "tiny-convnet", "method": "baseline", "out": tmp_path / "plain"}))
    assert plain["estimated_groups"] == 0

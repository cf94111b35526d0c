"""Data sets of one's own, and folders of shards, from the command line to a student; what records say of them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.own_parts import SQUARES
from helpers.shell import bird, bird_json, panel
from PIL import Image

import bird_pipelines
from bird.errors import UsageError
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill

SHORT = {"epochs": 1, "batch_size": 16, "method": "fitnet"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small network, trained for an epoch on 60 digits."""
    folder = tmp_path_factory.mktemp("small") / "run"
    flags = {"dataset": "digits-s", "student": "tiny-convnet", "method": "baseline", "limit": 60}
    distill(resolve({**flags, "epochs": 1, "batch_size": 32, "out": folder}))
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "squares.py"
    file.write_text(SQUARES)
    return file


@pytest.fixture(scope="module")
def own(teacher, squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "cache"
    flags = {"teacher": f"run:{teacher}", "settings": {"count": 80}, "workers": 1}
    bird_pipelines.precompute(dataset=f"{squares}:Squares", out=out, **flags)
    return out


def test_a_cache_says_what_the_data_set_was_and_not_what_to_import(own):
    described = open_cache(own).manifest.plan.causes["dataset"]
    assert described["name"].startswith("Squares@")
    assert described["settings"] == {"count": 80}
    assert set(described["own"]) == {"attribute", "sha256"}
    assert "squares.py" not in json.dumps(open_cache(own).manifest.model_dump(mode="json"))


def test_an_adapter_needs_no_code_and_an_image_student_is_given_it_again(own, squares, tmp_path):
    run = bird_pipelines.distill(cache=own, out=tmp_path / "adapter", **SHORT)
    assert run["config"]["dataset"].startswith("Squares@")
    image = {"cache": own, "student": "tiny-convnet", "out": tmp_path / "image", **SHORT}
    with pytest.raises(UsageError, match=r"a record cannot open by itself.*give it again with --dataset"):
        bird_pipelines.distill(**image)
    assert not (tmp_path / "image").exists()
    bird_pipelines.distill(**image, dataset=f"{squares}:Squares")
    assert "squares.py" not in (tmp_path / "image" / "config.json").read_text()
    with pytest.raises(UsageError, match="a record cannot open by itself"):
        bird_pipelines.evaluate(tmp_path / "image")
    found = bird_json("evaluate", tmp_path / "image", "--dataset", f"{squares}:Squares")
    assert found["n"] == 16


def test_a_changed_file_is_another_data_set_and_is_named(own, squares, teacher, tmp_path):
    changed = tmp_path / "squares.py"
    changed.write_text(SQUARES.replace("120", "110"))
    flags = {"teacher": f"run:{teacher}", "dataset": f"{changed}:Squares", "settings": {"count": 80}, "workers": 1}
    with pytest.raises(StaleCacheError, match=r"dataset\.(identity|name|own)"):
        bird_pipelines.precompute(**flags, out=own)
    changed.write_text(SQUARES + "# a remark\n")
    with pytest.raises(StaleCacheError, match=r"found dataset.name = Squares@.*wanted dataset.name = Squares@"):
        bird_pipelines.precompute(**flags, out=own)
    image = {"student": "tiny-convnet", "out": tmp_path / "run", **SHORT}
    with pytest.raises(StaleCacheError, match=r"Squares@.*the file has changed since.*--update"):
        bird_pipelines.distill(cache=own, dataset=f"{changed}:Squares", **image)
    bird_pipelines.distill(cache=own, out=tmp_path / "adapter", **SHORT)
    with pytest.raises(UsageError, match="as the run has it"):
        bird_pipelines.evaluate(tmp_path / "adapter", dataset=f"{changed}:Squares")
    updated = bird_pipelines.precompute(**flags, out=tmp_path / "new", update=own)
    assert updated["notes"]["reused"] == "80 of 80 rows"


def test_an_object_is_handed_over_in_python(teacher, tmp_path):
    names = {}
    exec(SQUARES, names)
    items = names["Squares"](64)
    made = bird_pipelines.precompute(teacher=f"run:{teacher}", dataset=items, out=tmp_path / "cache", workers=1)
    assert made["causes"]["dataset"]["name"].startswith("Squares@")
    image = {"student": "tiny-convnet", "out": tmp_path / "run", **SHORT}
    assert bird_pipelines.distill(cache=tmp_path / "cache", dataset=items, **image)["complete"]


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("digit-s", r"did you mean digits-s\?"),
        ("FILE:Square", r"did you mean Squares\?"),
        ("FILE:nothing", "no attribute nothing"),
        ("Squares@000000000000", "found 'Squares@000000000000'"),
        ("nowhere_of_test:Data", "no module named nowhere_of_test"),
        ("hf:a", "leave --data-root out"),
    ],
)
def test_names_that_nobody_has_are_told(tmp_path, squares, dataset, told):
    flags = {"teacher": "x", "out": tmp_path / "cache", "data_root": tmp_path if dataset == "hf:a" else None}
    with pytest.raises(UsageError, match=told):
        bird_pipelines.precompute(dataset=dataset.replace("FILE", str(squares)), **flags)
    assert not (tmp_path / "cache").exists()


def test_one_panel_for_a_part_that_is_no_data_set(tmp_path, squares):
    flags = ("precompute", "--teacher", "x", "--out", tmp_path / "cache")
    told = panel(bird(*flags, "--dataset", f"{squares}:np", code=2))
    assert "an object of module" in told
    assert not (tmp_path / "cache").exists()


def png(n):
    buffer = io.BytesIO()
    noise = np.random.default_rng(n).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise + np.uint8(120 * (n % 2))).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_folder_of_shards_is_named_in_one_word(teacher, tmp_path):
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for split, start in (("train", 0), ("test", 64)):
        rows = range(start, start + 64)
        table = {"image": [png(n) for n in rows], "label": [n % 2 for n in rows]}
        table["sex"] = ["FM"[n // 2 % 2] for n in rows]
        pq.write_table(pa.table(table), hub / "data" / f"{split}-00000-of-00001.parquet")
    flags = {"teacher": f"run:{teacher}", "settings": {"group": "sex"}, "workers": 1}
    info = bird_pipelines.precompute(dataset=f"hf:{hub}", out=tmp_path / "cache", **flags)
    assert info["causes"]["dataset"]["name"] == "hf"
    assert str(hub) not in json.dumps(info["causes"])
    assert info["splits"]["test"] == 64
    image = {"cache": tmp_path / "cache", "student": "tiny-convnet", **SHORT}
    found = bird_pipelines.distill(**image, data_root=hub, out=tmp_path / "run")
    assert found["dataset_settings"]["group"] == "sex"
    bird_pipelines.distill(**image, dataset=f"hf:{hub}", out=tmp_path / "run2")
    assert bird_pipelines.evaluate(tmp_path / "run2")["n"] == 64

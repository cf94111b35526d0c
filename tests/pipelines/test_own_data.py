"""Data sets of one's own, and folders of shards, from the command line to a student; what records say of them."""

import json

import pytest
from helpers.shell import bird, bird_json, panel

import bird_pipelines
from bird.errors import UsageError
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill

SOURCE = '''
import numpy as np

class Squares:
    """Bright and dark squares, of two groups."""

    classes, group_names, image_size, flip = ("dark", "bright"), ("left", "right"), 16, False

    def __init__(self, count=64):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        noise = np.random.default_rng(n).integers(0, 100, (16, 16, 3), dtype=np.uint8)
        return {"image": noise + np.uint8(120 * (n % 2)), "label": n % 2, "group": n // 2 % 2}
'''
SHORT = ("--epochs", 1, "--batch-size", 16, "--method", "fitnet")


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
    file.write_text(SOURCE)
    return file


@pytest.fixture(scope="module")
def own(teacher, squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "cache"
    setting = ("--setting", "count=80", "--workers", 1)
    bird("precompute", "--teacher", f"run:{teacher}", "--dataset", f"{squares}:Squares", *setting, "--out", out)
    return out


def test_a_cache_says_what_the_data_set_was_and_not_what_to_import(own, squares):
    described = open_cache(own).manifest.plan.causes["dataset"]
    assert described["name"].startswith("Squares@")
    assert described["settings"] == {"count": 80}
    assert set(described["own"]) == {"attribute", "sha256"}
    assert "squares.py" not in json.dumps(open_cache(own).manifest.model_dump(mode="json"))


def test_an_adapter_needs_no_code_and_an_image_student_is_given_it_again(own, squares, tmp_path):
    run = bird_json("distill", "--cache", own, *SHORT, "--out", tmp_path / "adapter")
    assert run["config"]["dataset"].startswith("Squares@")
    image = ("distill", "--cache", own, "--student", "tiny-convnet", *SHORT, "--out", tmp_path / "image")
    told = panel(bird(*image, code=2))
    assert "a data set of your own, which a record cannot open by itself" in told
    assert "--dataset" in told
    assert not (tmp_path / "image").exists()
    bird(*image, "--dataset", f"{squares}:Squares")
    config = (tmp_path / "image" / "config.json").read_text()
    assert "squares.py" not in config
    assert "a data set of your own" in panel(bird("evaluate", tmp_path / "image", code=2))
    found = bird_json("evaluate", tmp_path / "image", "--dataset", f"{squares}:Squares")
    assert found["n"] == 16


def test_a_changed_file_is_another_data_set_and_is_named(own, squares, teacher, tmp_path):
    changed = tmp_path / "squares.py"
    changed.write_text(SOURCE.replace("120", "110"))
    flags = {"teacher": f"run:{teacher}", "dataset": f"{changed}:Squares", "settings": {"count": 80}, "workers": 1}
    with pytest.raises(StaleCacheError, match=r"dataset\.(identity|name|own)"):
        bird_pipelines.precompute(**flags, out=own)
    with pytest.raises(StaleCacheError, match=r"Squares@.*the file has changed since.*--update"):
        bird_pipelines.distill(
            cache=own, dataset=f"{changed}:Squares", student="tiny-convnet", out=tmp_path / "run", epochs=1
        )
    with pytest.raises(UsageError, match="as the run has it"):
        bird_pipelines.distill(cache=own, out=tmp_path / "adapter", epochs=1, method="fitnet")
        bird_pipelines.evaluate(tmp_path / "adapter", dataset=f"{changed}:Squares")


def test_an_object_is_handed_over_in_python(teacher, tmp_path):
    names = {}
    exec(SOURCE, names)
    items = names["Squares"](64)
    made = bird_pipelines.precompute(teacher=f"run:{teacher}", dataset=items, out=tmp_path / "cache", workers=1)
    assert made["causes"]["dataset"]["name"].startswith("Squares@")
    info = bird_pipelines.distill(
        cache=tmp_path / "cache", dataset=items, student="tiny-convnet", method="fitnet", epochs=1, out=tmp_path / "run"
    )
    assert info["complete"]


def test_names_that_nobody_has_are_told(tmp_path, squares):
    flags = ("precompute", "--teacher", "x", "--out", tmp_path / "cache")
    assert "did you mean digits-s?" in panel(bird(*flags, "--dataset", "digit-s", code=2))
    assert "did you mean Squares?" in panel(bird(*flags, "--dataset", f"{squares}:Square", code=2))
    assert "found: 'Squares@000000000000'" in panel(bird(*flags, "--dataset", "Squares@000000000000", code=2))
    two = ("--dataset", "hf:a", "--data-root", tmp_path)
    assert "leave --data-root out" in panel(bird(*flags, *two, code=2))


def test_a_folder_of_shards_is_named_in_one_word(teacher, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    def png(n):
        buffer = io.BytesIO()
        noise = np.random.default_rng(n).integers(0, 100, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(120 * (n % 2))).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, start in (("train", 0), ("test", 64)):
        rows = range(start, start + 64)
        table = {
            "image": [png(n) for n in rows],
            "label": [n % 2 for n in rows],
            "sex": ["FM"[n // 2 % 2] for n in rows],
        }
        pq.write_table(pa.table(table), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    flags = ("--teacher", f"run:{teacher}", "--dataset", f"hf:{tmp_path / 'hub'}", "--setting", "group=sex")
    info = bird_json("precompute", *flags, "--workers", 1, "--out", tmp_path / "cache")
    assert info["causes"]["dataset"]["name"] == "hf"
    assert info["splits"]["test"] == 64
    image = ("--student", "tiny-convnet", "--data-root", tmp_path / "hub", *SHORT)
    found = bird_json("distill", "--cache", tmp_path / "cache", *image, "--out", tmp_path / "run")
    assert found["dataset_settings"]["group"] == "sex"
    again = ("--dataset", f"hf:{tmp_path / 'hub'}", "--student", "tiny-convnet", *SHORT)
    bird("distill", "--cache", tmp_path / "cache", *again, "--out", tmp_path / "run2")

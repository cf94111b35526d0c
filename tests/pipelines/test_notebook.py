"""What a notebook asks for: the commands as functions, a run as an object, runs and curves as frames."""

import json
import shutil
import sys
from html.parser import HTMLParser

import pytest
from helpers.shell import distilled

import bird_pipelines
from bird.errors import RunError, UsageError
from bird_cache.store import open_cache
from bird_pipelines import runs
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill as train

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def folder(cache, tmp_path_factory):
    """Two finished runs, and one that is not."""
    folder = tmp_path_factory.mktemp("many")
    distilled(cache, folder / "a", method="bird", **SHORT)
    distilled(cache, folder / "b", method="baseline", **SHORT, optimizer="sgd")
    begun = resolve({"dataset": "digits-s", "student": "adapter", "method": "bird", "out": folder / "c"})
    with runs.held(begun, None):
        pass
    return folder


def text_of(page):
    """The text of HTML whose tags all close."""
    found, open_tags = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            found.append(data)

    Reader().feed(page)
    assert not open_tags
    return " ".join(found)


def test_a_run_is_an_object(folder):
    run = bird_pipelines.open_run(folder / "a")
    assert run.complete
    assert run.config["method"] == "bird"
    assert run.metrics["test"] == json.loads((folder / "a" / "metrics-test.json").read_text())
    assert run.student().classes == 10
    assert not run.student().training
    frame = run.curve()
    lines = [json.loads(line) for line in (folder / "a" / "curve.jsonl").read_text().splitlines()]
    assert [*frame.index] == [1, 2]
    assert [*frame["loss"]] == [line["loss"] for line in lines]
    assert [*frame["meta.accuracy"]] == [line["meta"]["accuracy"] for line in lines]
    text = text_of(run._repr_html_())
    assert "floor" in text
    assert f"{run.metrics['test']['mean_deo']:.2f}" in text


def test_an_unfinished_run_says_so(folder):
    run = bird_pipelines.open_run(folder / "c")
    assert not run.complete
    assert run.metrics == {}
    assert run.curve().empty
    assert "unfinished" in text_of(run._repr_html_())
    with pytest.raises(RunError, match="unfinished"):
        run.student()
    with pytest.raises(RunError, match="no such folder"):
        bird_pipelines.open_run(folder / "nothing")


def test_runs_are_a_frame(folder):
    frame = runs.table([folder])
    assert [*frame["method"]] == ["bird", "baseline", "bird"]
    assert [*frame["complete"]] == [True, True, False]
    test = [json.loads((folder / name / "metrics-test.json").read_text()) for name in "ab"]
    assert [*frame["test.mean_deo"]][:2] == [each["mean_deo"] for each in test]
    assert [*frame["test.mean_deo_floor"]][:2] == [each["deo_floor"]["mean"] for each in test]
    assert (frame["test.mean_deo_low"][:2] <= frame["test.mean_deo"][:2]).all()
    assert frame["test.mean_deo"].isna()[2]
    assert frame["optimizer"][1] == "sgd"
    assert runs.table([folder / "b", runs.open_run(folder / "a")])["method"].tolist() == ["baseline", "bird"]
    assert runs.table([]).empty


def test_a_folder_of_runs_has_those_of_seeds_too(folder, tmp_path):
    (tmp_path / "many").mkdir()
    shutil.copytree(folder / "a", tmp_path / "one")
    shutil.copytree(folder / "b", tmp_path / "many" / "seed-0")
    assert [*runs.table([tmp_path])["method"]] == ["baseline", "bird"]


def test_without_pandas_there_is_one_clear_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        runs.table([folder])
    assert bird_pipelines.open_run(folder / "a").config, "all else works"


def test_a_name_is_text_in_html(tmp_path, folder):
    (folder / "a").rename(folder / "<b>a")
    try:
        text = text_of(bird_pipelines.open_run(folder / "<b>a")._repr_html_())
    finally:
        (folder / "<b>a").rename(folder / "a")
    assert "<b>a" in text


def test_a_cache_shows_itself(cache):
    store = open_cache(str(cache))
    text = text_of(store._repr_html_())
    assert "complete" in text
    assert store.fingerprint in text
    assert "penultimate" in text


def test_export_and_predict_are_functions(tmp_path):
    flags = {"dataset": "digits-s", "student": "tiny-convnet", "method": "baseline", "limit": 200, "epochs": 1}
    train(resolve({**flags, "batch_size": 32, "out": tmp_path / "run"}))
    about = bird_pipelines.export(tmp_path / "run", tmp_path / "pt2", "pt2", rows=40, allow_drift=True)
    assert about["check"]
    assert (tmp_path / "pt2" / "README.md").exists()
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "photos" / "red.png")
    found = bird_pipelines.predict(tmp_path / "run", tmp_path / "photos", tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text().count("\n") == 2
    assert found


def test_tune_is_a_function(cache, tmp_path):
    """It says what the command says; test_tune.py runs whole studies."""
    options = {"trials": 1, "per_round": 1, "seeds": 1, "final_seeds": 1, **SHORT}
    with pytest.raises(UsageError, match="floor-on"):
        bird_pipelines.tune(cache=cache, out=tmp_path / "study", floor_on="acuracy", **options)
    with pytest.raises(UsageError, match="choosing half of meta"):  # this cache has one meta row in a cell
        bird_pipelines.tune(cache=cache, out=tmp_path / "study", method="fitnet", **options)
    assert not (tmp_path / "study").exists()


def test_every_public_name_is_documented_and_imports_lazily():
    for name in bird_pipelines.__all__:
        assert callable(getattr(bird_pipelines, name))
        assert getattr(bird_pipelines, name).__doc__

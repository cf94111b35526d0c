"""`bird compare`: the runs of several methods, their scores, and paired differences from one of them."""

import json

import pytest
from typer.testing import CliRunner

import bird_pipelines
from bird.errors import UsageError
from bird.measuring.paired import compare
from bird_pipelines.cli import app
from bird_pipelines.cli.show import compared
from bird_pipelines.marks import p_value
from bird_pipelines.predictions import load_predictions
from bird_pipelines.study.compare import compare_methods


def test_the_command_trains_scores_and_compares(cache, tmp_path):
    out = tmp_path / "out"
    command = ["compare", str(cache), "--methods", "baseline, fitnet,bird-offsets", "--seeds", "2", "--out", str(out)]
    command += ["--set", "alpha=0.5", "--set", "batch-size=32", "--epochs", "2", "--against", "fitnet"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [*told["methods"]] == ["baseline", "fitnet", "bird-offsets"]
    assert [*told["differences"]] == ["baseline", "bird-offsets"]
    runs = {
        name: [json.loads((out / f"{name}-{seed}" / "run.json").read_text()) for seed in (0, 1)]
        for name in told["methods"]
    }
    assert all(
        run["config"]["alpha"] == 0.5 and run["config"]["batch_size"] == 32 for each in runs.values() for run in each
    )
    predicted = {
        name: {seed: load_predictions(out / f"{name}-{seed}", "test") for seed in (0, 1)}
        for name in ("baseline", "fitnet")
    }
    info = runs["baseline"][0]
    expected = compare(*predicted.values(), len(info["class_names"]), len(info["group_names"]))
    for metric, each in told["differences"]["baseline"].items():
        assert each["effect"] == pytest.approx(expected[metric].effect)
        assert each["interval"] == pytest.approx(expected[metric].interval)
        assert each["p_holm"] is None  # two seeds
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Offsets over time" in page

    again = CliRunner().invoke(app, command)  # all is there: only read
    assert again.exit_code == 0, again.output
    assert "minus fitnet, paired by seed and row" in again.stdout
    assert "fewer than eight seeds" in again.stdout


@pytest.mark.parametrize(
    ("methods", "against", "where"),
    [
        (["fitnet"], None, "--methods"),
        (["fitnet", "fitnet"], None, "--methods"),
        (["fitnet", "bird"], "brid", "--against"),
    ],
)
def test_what_cannot_be_compared(cache, tmp_path, methods, against, where):
    with pytest.raises(UsageError) as caught:
        compare_methods(str(cache), tmp_path / "out", methods, against=against)
    assert caught.value.where == where
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_is_told_before_anything_is_trained(cache, tmp_path):
    command = ["compare", str(cache), "--methods", "baseline,fitnet", "--out", str(tmp_path / "out"), "--set"]
    for option, said in (("alhpa=0.5", "alpha"), ("alpha", "NAME=VALUE"), ("alpha=7", "at most 1")):
        done = CliRunner().invoke(app, [*command, option])
        assert isinstance(done.exception, UsageError)
        assert said in str(done.exception)
    for option, said in (
        ("seed=5", "--seeds"),
        ("method=bird", "--methods"),
        ("out=x", "--out"),
        ("cache=x", "argument"),
    ):
        done = CliRunner().invoke(app, [*command, option])
        assert isinstance(done.exception, UsageError), "it would have no effect"
        assert said in done.exception.fix
    with pytest.raises(UsageError, match="1 or more"):
        bird_pipelines.compare(cache=cache, methods=["baseline", "fitnet"], out=tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()


def test_a_p_value_is_never_told_as_0_and_names_are_whole_in_80_columns(capsys, monkeypatch):
    assert [p_value(p) for p in (None, 0.0473, 0.001, 0.0004, 0.0)] == ["n/a", "0.047", "0.001", "< 0.001", "< 0.001"]
    monkeypatch.setenv("COLUMNS", "80")
    name, score = "bird-offsets-no-meta", {"mean": 72.5, "std": 0.25}
    found = dict.fromkeys(("auroc", "f1_macro", "mean_deo", "max_deo"), score)
    effect = {"effect": -12.5, "interval": [-13.5, -11.5], "p": 1e-5, "p_holm": 4e-5}
    told = {"seeds": 8, "against": "fitnet", "report": "r.html"}
    told |= {"methods": {name: found | {"deo_floor": 1.5, "seconds": 50.0, "trivial": None}}}
    compared({**told, "differences": {name: {"mean_deo": effect}}})
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{name} ") for line in lines) == 2
    assert lines[-2].count("< 0.001") == 2
    assert max(map(len, lines)) <= 80

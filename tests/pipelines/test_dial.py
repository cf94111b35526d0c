"""`bird dial`: points of a path, each an ordinary run that goes on from the one before; `--start-from` alone."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import bird_pipelines
from bird.errors import RunError, UsageError
from bird_pipelines.cli import app
from bird_pipelines.study.dial import turn

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32, "alpha": 0.5, "mu2": 0.01}


def test_the_path_goes_on_from_point_to_point(cache, tmp_path):
    out = tmp_path / "out"
    command = ["dial", str(cache), "--out", str(out), "--balances", "1,0.5,0", "--seeds", "2", "--epochs-each", "1"]
    command += ["--epochs", "2", "--set", "warmup=1", "--set", "batch-size=32", "--set", "mu2=0.01"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [each["balance"] for each in told["points"]] == [1, 0.5, 0]
    configs = {
        name: json.loads((out / name / "run.json").read_text())["config"] for name in ("1-0", "0.5-0", "0.5-1", "0-1")
    }
    assert configs["1-0"]["started"] is None
    assert (configs["0.5-0"]["epochs"], configs["0.5-0"]["warmup"]) == (1, 0)
    assert configs["0.5-0"]["started"] == configs["0.5-1"]["started"], "the seed is not of the configuration"
    assert configs["0.5-0"]["started"] != configs["0-1"]["started"]
    first = [json.loads((out / name / "curve.jsonl").read_text().splitlines()[0]) for name in ("1-0", "0.5-0")]
    assert first[1]["loss"] < first[0]["loss"], "it does not begin anew"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Accuracy against gap along the dial" in page
    assert page.count("balance 0.5") >= 1

    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "balance 1: feedback of the balanced CE" in again.stdout


def test_a_run_that_goes_on_is_resumed_and_in_a_stack_the_same(cache, tmp_path):
    """Alone and in a stack from the same start: the same student, as far as floats allow."""
    start = tmp_path / "start"
    bird_pipelines.distill(cache=cache, out=start, method="bird-offsets", **SHORT)
    more = {**SHORT, "warmup": 0, "balance": 0.5, "start_from": start}
    alone = bird_pipelines.distill(cache=cache, out=tmp_path / "alone", method="bird-offsets", **more)
    assert alone["config"]["started"]
    assert bird_pipelines.distill(cache=cache, out=tmp_path / "alone", method="bird-offsets", **more) == alone
    flags = {key: value for key, value in SHORT.items() if key not in ("epochs", "warmup")}
    told = turn(
        str(cache), tmp_path / "path", (0.0, 0.5), seeds=2, epochs_each=2, flags={**flags, "epochs": 2, "warmup": 1}
    )
    assert len(told["points"]) == 2
    one = load_file(tmp_path / "alone" / "student.safetensors")
    other = load_file(tmp_path / "path" / "0.5-0" / "student.safetensors")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_what_a_run_cannot_begin_from(cache, tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        bird_pipelines.distill(cache=cache, out=tmp_path / "run", start_from=tmp_path / "nothing", **SHORT)
    bird_pipelines.distill(cache=cache, out=tmp_path / "start", method="baseline", epochs=1)
    with pytest.raises(RunError, match="method baseline"):
        bird_pipelines.distill(cache=cache, out=tmp_path / "run", start_from=tmp_path / "start", **SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["", "1,1", "1,2", "1,x", "1,nan", "0.5000001,0.50000012"])
def test_balances_are_numbers_from_0_to_1(cache, tmp_path, path):
    done = CliRunner().invoke(app, ["dial", str(cache), "--out", str(tmp_path / "out"), "--balances", path])
    assert isinstance(done.exception, UsageError)
    assert done.exception.where == "--balances"
    assert not (tmp_path / "out").exists()


def test_only_bird_offsets_has_a_dial(cache, tmp_path):
    with pytest.raises(UsageError, match="bird-offsets"):
        turn(str(cache), tmp_path / "out", seeds=1, flags={"method": "bird"})


@pytest.mark.parametrize("taken", ["balance", "seed", "out", "cache", "start_from"])
def test_what_the_path_sets_itself_is_refused(cache, tmp_path, taken):
    with pytest.raises(UsageError, match=f"--set {taken}=0.3"):
        turn(str(cache), tmp_path / "out", seeds=1, flags={taken: "0.3"})
    with pytest.raises(UsageError, match="1 or more"):
        bird_pipelines.dial(cache=cache, out=tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()

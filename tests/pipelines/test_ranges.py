"""Numbers out of range, and options that do nothing: told before anything is trained, with what would be right."""

import pytest
from helpers.shell import distilled
from typer.testing import CliRunner

import bird_pipelines
from bird.errors import UsageError
from bird_pipelines.cli import app
from bird_pipelines.cli.misuse import as_ours


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"floor": float("nan")}, "--floor"),
        ({"floor": 101.0}, "from 0 to 100"),
        ({"drop": float("nan")}, "--drop"),
        ({"trials": 0}, "--trials"),
        ({"final_seeds": 0}, "--final-seeds"),
    ],
)
def test_a_search_out_of_range_is_refused(cache, tmp_path, wrong, said):
    with pytest.raises(UsageError, match=said):
        bird_pipelines.tune(cache=cache, out=tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "found", "wanted"),
    [
        (("--shrink", "nan"), "nan", "a number of 0 or more"),
        (("--feedback-every", "0"), "0", "a number of 1 or more"),
        (("--feedback-every", "1.5"), "1.5", "a whole number"),
        (("--alpha", "nan"), "nan", "a share, from 0 to 1"),
        (("--mu2", "0"), "0.0", "a number above 0"),
        (("--mu2", "inf"), "inf", "a finite number"),
        (("--average", "1"), "1.0", "a number below 1"),
    ],
)
def test_a_number_out_of_range_is_told_with_its_range(cache, tmp_path, flags, found, wanted):
    command = ["distill", "--cache", str(cache), *flags, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command, standalone_mode=False)
    error = done.exception if isinstance(done.exception, UsageError) else as_ours(done.exception)
    assert (error.where, error.found.strip("'"), error.wanted) == (flags[0], found, wanted)


def test_options_that_a_method_does_not_read_are_told(cache, tmp_path, capfd):
    flags = {"epochs": 1, "batch_size": 32, "pool": True, "feedback_every": 3, "alpha": None}
    distilled(cache, tmp_path / "run", method="fitnet", fitnet_weight=0.2, **flags)
    assert "note: fitnet does not read --pool, --feedback-every\n" in capfd.readouterr().err
    distilled(cache, tmp_path / "pooled", method="bird-offsets-no-meta", epochs=1, pool=True)
    assert "does not read" not in capfd.readouterr().err

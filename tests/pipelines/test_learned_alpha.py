"""`--learn-alpha`: the weight of the teacher in a run's curve and in the report, and what a run begins from."""

import json

import pytest

import bird_pipelines
from bird.errors import RunError
from bird_pipelines.reporting.report import write_report

SHORT = {"method": "bird-offsets", "epochs": 3, "warmup": 1, "mu2": 0.03, "mu1": 0.05, "alpha": 0.5}


def test_alpha_moves_with_the_feedback_and_the_report_says_where_to(cache, tmp_path):
    run = bird_pipelines.distill(cache=cache, out=tmp_path / "run", learn_alpha=True, **SHORT)
    assert run["config"]["learn_alpha"] is True
    alphas = [json.loads(line)["alpha"] for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert alphas[0] == 0.5  # the warmup
    assert len({*alphas}) == 3
    assert all(0 < alpha < 1 for alpha in alphas)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{alphas[0]:.3f}, {alphas[1]:.3f}, {alphas[2]:.3f} at the end of these epochs" in page


def test_a_run_with_an_alpha_of_its_own_begins_from_one_that_has_it_too(cache, tmp_path):
    bird_pipelines.distill(cache=cache, out=tmp_path / "plain", **SHORT | {"epochs": 1, "warmup": 0})
    more = {**SHORT, "warmup": 0, "start_from": tmp_path / "plain"}
    with pytest.raises(RunError, match="learn_alpha False"):
        bird_pipelines.distill(cache=cache, out=tmp_path / "run", learn_alpha=True, **more)
    assert not (tmp_path / "run").exists()

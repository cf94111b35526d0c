"""Where the time goes: shares in every run, a trace of a few steps on demand, and neither changes what is learned."""

import json
import time

import torch
from helpers.shell import bird, distilled, panel

from bird_pipelines.config import resolve
from bird_pipelines.distilling.profiling import PARTS, Clock
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.reporting.report import write_report

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}


def test_the_clock_gives_each_part_its_time():
    clock = Clock(torch.device("cpu"))
    clock.start()
    clock.enter("data")
    time.sleep(0.02)
    assert clock.around("meta", lambda number: number + 1, "forward")(1) == 2
    time.sleep(0.04)
    clock.enter("other")
    assert clock.seconds["data"] >= 0.02
    assert clock.seconds["forward"] >= 0.04
    assert abs(sum(clock.shares().values()) - 1) < 1e-3
    assert Clock(torch.device("cpu")).shares() is None


def test_every_run_records_its_shares(cache, tmp_path):
    for method in ("fitnet", "bird"):
        info = distilled(cache, tmp_path / method, method=method, **SHORT)
        shares = info["time_shares"]
        assert [*shares] == [*PARTS]
        assert abs(sum(shares.values()) - 1) < 1e-3
        assert min(shares[part] for part in ("data", "forward", "backward")) > 0
        assert (shares["meta"] > 0) == (method == "bird")
        saved = json.loads((tmp_path / method / "checkpoint.json").read_text())
        assert 0 < sum(saved["parts"].values()) <= 1.01 * info["seconds"]
        assert not (tmp_path / method / "trace.json").exists()
    page = write_report([tmp_path / "fitnet", tmp_path / "bird"], tmp_path / "report.html").read_text()
    assert page.count("Where the time went") == 2


def test_runs_side_by_side_share_the_time(cache, tmp_path):
    flags = {"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": cache, **SHORT}
    infos = distill_many([resolve({**flags, "seed": seed, "out": tmp_path / str(seed)}) for seed in range(2)])
    for info in infos:
        assert min(info["time_shares"][part] for part in ("data", "forward", "meta", "backward")) > 0


def test_profile_writes_a_trace_of_the_last_kind_of_step(cache, tmp_path):
    plain = distilled(cache, tmp_path / "plain", **SHORT | {"batch_size": 8})
    flags = ("--epochs", 2, "--warmup", 1, "--batch-size", 8, "--profile")
    bird("distill", "--cache", cache, *flags, "--out", tmp_path / "traced")
    trace = json.loads((tmp_path / "traced" / "trace.json").read_text())
    named = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert {"data", "forward", "meta", "backward"} <= {*named}
    assert named.count("backward") == 5
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("plain", "traced")]
    assert weights[0] == weights[1], "the trace changed the run"
    assert plain["config"] == json.loads((tmp_path / "traced" / "run.json").read_text())["config"]
    assert "precision" in panel(
        bird("distill", "--cache", cache, "--precision", "fp8", "--out", tmp_path / "x", code=2)
    )

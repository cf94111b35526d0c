"""A small real teacher, trained here, and a small real cache of its features."""

from pathlib import Path

import pytest
from helpers.reports import make_run
from helpers.shell import bird
from helpers.workers import bytes_of

import bird_pipelines
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.reporting.report import write_report

LIMIT = 400


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A ShuffleNet trained for one epoch on a part of Digits-S."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = {"dataset": "digits-s", "student": "shufflenetv2", "method": "baseline", "limit": LIMIT}
    distill(resolve({**flags, "epochs": 1, "batch_size": 32, "out": folder}))
    return folder


@pytest.fixture(scope="session")
def cache(teacher, tmp_path_factory) -> Path:
    """Its features of the same part of Digits-S, in shards of 64 rows."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    work = {"batch_size": 16, "workers": 1, "shard_rows": 64}
    bird_pipelines.precompute(teacher=f"run:{teacher}", dataset="digits-s", out=folder, limit=LIMIT, **work)
    return folder


@pytest.fixture(scope="session")
def flags(teacher):
    """The options of `bird precompute` that make the cache fixture."""
    data = ("--dataset", "digits-s", "--limit", LIMIT, "--shard-rows", 64, "--batch-size", 16, "--workers", 1)
    return ("--teacher", f"run:{teacher}", *data)


@pytest.fixture(scope="session")
def expected(flags, tmp_path_factory):
    """The bytes of the cache that one process writes with them."""
    where = tmp_path_factory.mktemp("one") / "cache"
    bird("precompute", *flags, "--out", where)
    return bytes_of(where)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Three methods, one of them with two lambdas, three seeds each; one run unfinished, one not evaluated."""
    root = tmp_path_factory.mktemp("runs")
    kinds = {
        "baseline": {"method": "baseline", "accuracy": 0.68, "gap": 0.45},
        "fitnet": {"method": "fitnet", "accuracy": 0.70, "gap": 0.4},
        "bird-01": {"method": "bird", "lambda": 0.01, "accuracy": 0.71, "gap": 0.25},
        "bird-03": {"method": "bird", "lambda": 0.03, "accuracy": 0.7, "gap": 0.15},
    }
    made = [make_run(root / f"{name}-{seed}", seed=seed, **kind) for name, kind in kinds.items() for seed in range(3)]
    made.append(make_run(root / "<script>", method="at", complete=False))
    made.append(make_run(root / "unscored", method="<b>mfd", test=False))
    return made


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory):
    """The report on `runs`."""
    return write_report(runs, tmp_path_factory.mktemp("out") / "deep" / "report.html", title="Ours & <theirs>")

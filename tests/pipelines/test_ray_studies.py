"""`--engine ray` for tables and searches: the numbers are those of this machine's processes."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from helpers import cachekit
from helpers.shell import bird, panel
from helpers.tables import small

from bird.errors import RunError
from bird_pipelines.config import resolve
from bird_pipelines.study.places import distill_at, trainer
from bird_pipelines.study.tables.reproduce import reproduce
from bird_pipelines.study.tune import tune
from bird_pipelines.study.tune_search import Search

pytest.importorskip("ray", reason="ray is not installed (pip install bird-distill[ray])")


@pytest.mark.slow
def test_a_table_is_that_of_two_processes(tmp_path):
    tables = []
    for engine in ("local", "ray"):
        out = tmp_path / engine
        found = reproduce("table7", out, profile=small("table7"), seeds=2, jobs=2, engine=engine)
        assert found["failed"] == []
        tables.append(json.loads((out / "table7.json").read_text())["blocks"])
    assert tables[0] == tables[1]


def small_cache(where):
    rng, rows = np.random.default_rng(0), 600
    labels, groups = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    vectors = rng.normal(size=(5, 6))[labels] + rng.normal(size=(rows, 6))
    splits = [("train", "train", "meta", "test")[i % 4] for i in range(rows)]
    return cachekit.made_up(where, labels, groups, splits, vectors, ("a", "b", "c"), ("g", "h"))


@pytest.mark.slow
def test_a_search_is_that_of_one_process(tmp_path):
    """Adapters in stacks, of which the data allow one at a time."""
    cache = small_cache(tmp_path / "cache")
    results = []
    for engine in ("local", "ray"):
        there = {"dataset": "digits-s", "student": "adapter", "method": "bird", "epochs": 2, "warmup": 1}
        base = resolve({**there, "batch_size": 64, "cache": cache, "out": tmp_path / engine})
        search = Search(trials=2, per_round=2, seeds=2, final_seeds=2, drop=50.0, floor_on="auroc")
        with trainer(engine, None) as train:
            result = tune(base, search, train)
        results.append({name: value for name, value in result.items() if name not in ("runs", "report")})
    assert results[0] == results[1]


class Lost:
    """A place where each task ends in a given way, and nothing is trained."""

    at_once = 1

    def __init__(self, **ending):
        self.ending = ending

    def submit(self, work, given):
        future = Future()
        if "raises" in self.ending:
            future.set_exception(self.ending["raises"])
        else:
            future.set_result(None)
        return future

    def stop(self):
        pass


def test_a_task_that_is_lost_or_wrote_elsewhere_is_an_error_of_ours(tmp_path):
    there = {"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": small_cache(tmp_path / "cache")}
    config = resolve({**there, "out": tmp_path / "run"})
    with pytest.raises(RunError, match=r"a task of Ray.*a worker died.*goes on"):
        distill_at(Lost(raises=RuntimeError("a worker\n died")), [config])
    with pytest.raises(RunError, match="all hosts share"):
        distill_at(Lost(), [config])


def test_an_engine_that_there_is_not(tmp_path):
    asked = ("reproduce", "table7", "--profile", "demo", "--out", tmp_path / "out")
    assert "local, ray" in panel(bird(*asked, "--engine", "spark", code=2))
    assert "127.0.0.1:9" in panel(bird(*asked, "--engine", "ray", "--address", "127.0.0.1:9", code=2))
    assert "--address" in panel(bird(*asked, "--address", "auto", code=2))
    assert not (tmp_path / "out").exists()

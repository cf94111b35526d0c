"""Weights are chosen on half of meta; the test split is opened once, at the end; a search that was stopped goes on."""

import json

import numpy as np
import pytest
from helpers import cachekit
from helpers.shell import bird, bird_json, panel

from bird.errors import RunError, UsageError
from bird_cache.manifest import Layer, Plan
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.writer import open_writer
from bird_pipelines import tune as tuning
from bird_pipelines.config import resolve
from bird_pipelines.data import hold_out, load_data
from bird_pipelines.tune import SPACES, Search, candidates_of, dominates, tune

ROWS, DIM = 600, 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Vectors of three classes and two groups, in which every meta cell has two samples and more."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    groups = np.where(rng.random(ROWS) < 0.75, labels % 2, 1 - labels % 2)
    centres = rng.normal(size=(3 + 2, DIM))
    vectors = (centres[labels] + centres[3 + groups] + rng.normal(size=(ROWS, DIM))).astype(np.float32)
    splits = cachekit.strings([("train", "train", "meta", "test")[i % 4] for i in range(ROWS)])
    ids, digests = (cachekit.strings([form.format(i) for i in range(ROWS)]) for form in ("s{}", "{:032x}"))
    samples = Samples(ids, labels, groups, splits, digests, cachekit.strings([PENDING] * ROWS))
    plan = Plan(
        causes={"teacher": "made up", "dataset": {"name": "digits-s", "settings": {}}},
        layers={"penultimate": Layer(shape=(DIM,), dtype="float32", kind="penultimate")},
        rows=ROWS,
        shard_rows=256,
        chunk_rows=64,
        class_names=("a", "b", "c"),
        group_names=("g", "h"),
    )
    where = tmp_path_factory.mktemp("cache") / "cache"
    with open_writer(where, plan, samples) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(shard, {"penultimate": vectors[start:stop, None]}, {})
        writer.finish()
    return where


SMALL = Search(trials=4, per_round=2, seeds=1, final_seeds=2, auroc_drop=50.0)


def base(cache, out, **flags):
    short = {"dataset": "digits-s", "student": "adapter", "method": "bird", "epochs": 2, "warmup": 1, "batch_size": 64}
    return resolve({**short, "cache": cache, "out": out, **flags})


def test_meta_is_halved_by_cell_and_seed(cache, tmp_path):
    whole = load_data(base(cache, tmp_path)).table
    halved = {seed: load_data(base(cache, tmp_path, choose=seed)).table for seed in (0, 1)}
    assert "test" not in halved[0].splits, "whoever chooses has no test split"
    assert not np.array_equal(halved[0].splits, halved[1].splits)
    for table in halved.values():
        both = np.isin(table.splits, ["meta", "choose"])
        assert {*table.ids[both]} == {*whole.ids[whole.splits == "meta"]}
        for cell in {*zip(table.labels[both].tolist(), table.groups[both].tolist(), strict=True)}:
            mine = both & (table.labels == cell[0]) & (table.groups == cell[1])
            assert (table.splits[mine] == "choose").sum() == mine.sum() // 2
    mixed = np.random.default_rng(0).permutation(len(whole))
    other = hold_out(whole.take(mixed), 0)
    again = {id for id, split in zip(other.ids, other.splits, strict=True) if split == "choose"}
    assert again == {*halved[0].ids[halved[0].splits == "choose"]}, "the order of rows decides nothing"


def test_the_chosen_setting_is_the_best_feasible_one_and_test_comes_last(cache, tmp_path):
    out = tmp_path / "study"
    result = tune(base(cache, out), SMALL)
    candidates = result["candidates"]
    assert len(candidates) == 4
    assert candidates[0]["setting"] == pytest.approx({"lambda": 0.03, "alpha": 0.9, "mu2": 1e-3}), "the default first"
    feasible = [each for each in candidates if each["auroc"] >= result["auroc_floor"]]
    assert [each["feasible"] for each in candidates] == [each in feasible for each in candidates]
    assert result["chosen"]["mean_deo"] == min(each["mean_deo"] for each in feasible)
    for each in candidates:
        assert each["front"] == (not any(dominates(other, each) for other in candidates))
    assert not [*(out / "candidates").glob("*/metrics-test.json"), *(out / "baseline").glob("*/metrics-test.json")]
    finals = sorted((out / "final").iterdir())
    assert len(finals) == 2
    values = [json.loads((run / "metrics-test.json").read_text())["mean_deo"] for run in finals]
    assert result["test"]["mean_deo"]["mean"] == pytest.approx(np.mean(values))
    config = json.loads((finals[0] / "run.json").read_text())["config"]
    assert {name: config[name] for name in SPACES["bird"]} == result["chosen"]["setting"]
    assert (
        json.loads((finals[0] / "run.json").read_text())["rows"]["test"]
        == (open_cache(cache).samples.splits == "test").sum()
    )
    page = (out / "tune.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert tune(base(cache, out), SMALL) == result
    with pytest.raises(RunError, match="test split has been opened"):
        tune(base(cache, out), Search(**{**vars(SMALL), "trials": 6}))
    with pytest.raises(RunError, match="epochs"):
        tune(base(cache, out, epochs=3), SMALL)


class Stop(Exception):
    """The search stops here."""


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_stopped_search_ends_as_an_unbroken_one(cache, tmp_path, monkeypatch, calls):
    """Stopped after the baseline, or with drawn candidates that are trained but not told, in the first round or later."""
    unbroken = tune(base(cache, tmp_path / "a"), SMALL)
    real, count = tuning.judge, 0

    def judge(*args):
        nonlocal count
        found, count = real(*args), count + 1
        if count == calls:
            raise Stop
        return found

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "judge", judge)
        with pytest.raises(Stop):
            tune(base(cache, tmp_path / "b"), SMALL)
    resumed = tune(base(cache, tmp_path / "b"), SMALL)
    for name in ("candidates", "chosen", "test", "auroc_floor", "baseline"):
        assert resumed[name] == unbroken[name], name


def test_without_a_feasible_candidate_the_highest_auroc_is_taken(cache, tmp_path):
    result = tune(base(cache, tmp_path / "study"), Search(**{**vars(SMALL), "trials": 2, "auroc_floor": 100.0}))
    assert not result["chosen"]["feasible"]
    assert result["chosen"]["auroc"] == max(each["auroc"] for each in result["candidates"])
    assert "No candidate reached the AUROC floor" in (tmp_path / "study" / "tune.html").read_text()


def test_the_front_has_no_candidate_that_another_beats():
    class Told:
        def __init__(self, number, deo, auroc):
            self.number, self.params = number, {}
            self.user_attrs = dict.fromkeys(tuning.METRICS, 0.0) | {"mean_deo": deo, "auroc": auroc, "shortfall": 0}

    class Study:
        def get_trials(self, **_):
            return [Told(0, 10, 90), Told(1, 20, 95), Told(2, 15, 89), Told(3, 20, 94)]

    found = candidates_of(Study())
    assert [each["front"] for each in found] == [True, True, False, False]
    assert [each["chosen"] for each in found] == [True, False, False, False]


def test_the_command_prints_what_was_chosen(cache, tmp_path):
    flags = ("--trials", 2, "--per-round", 2, "--seeds", 1, "--final-seeds", 1, "--epochs", 1, "--auroc-drop", 50)
    done = bird("tune", "--cache", cache, "--out", tmp_path / "study", "--method", "bird-no-meta", *flags)
    assert "AUROC floor" in done.stdout
    assert "mean_deo" in done.stdout
    result = bird_json("tune", "--cache", cache, "--out", tmp_path / "study", "--method", "bird-no-meta", *flags)
    assert result["chosen"]["setting"].keys() == {"lambda", "alpha"}
    bad = bird("tune", "--cache", cache, "--out", tmp_path / "other", "--method", "baseline", *flags, code=2)
    assert "no weight to choose" in panel(bad)
    with pytest.raises(UsageError, match="no weight"):
        tune(base(cache, tmp_path / "other", method="baseline"), SMALL)

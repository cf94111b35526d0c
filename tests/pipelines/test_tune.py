"""Weights are chosen on half of meta; the test split is opened once, at the end; a search that was stopped goes on."""

import json

import numpy as np
import pytest
from helpers import cachekit
from helpers.shell import bird, bird_json, panel

from bird.errors import DivergedError, RunError, UsageError
from bird.methods import METHODS
from bird_cache.store import open_cache
from bird_pipelines.config import resolve
from bird_pipelines.config.run import options_of_a_run
from bird_pipelines.distilling.data import hold_out
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.distilling.training import read
from bird_pipelines.study import tune_search as searching
from bird_pipelines.study.tune import tune
from bird_pipelines.study.tune_search import SPACES, Range, Search, candidates_of, dominates

ROWS, DIM = 600, 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Vectors of three classes and two groups, in which every meta cell has two samples and more."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    groups = np.where(rng.random(ROWS) < 0.75, labels % 2, 1 - labels % 2)
    centres = rng.normal(size=(3 + 2, DIM))
    vectors = centres[labels] + centres[3 + groups] + rng.normal(size=(ROWS, DIM))
    splits = [("train", "train", "meta", "test")[i % 4] for i in range(ROWS)]
    where = tmp_path_factory.mktemp("cache") / "cache"
    return cachekit.made_up(where, labels, groups, splits, vectors, ("a", "b", "c"), ("g", "h"))


SMALL = Search(trials=4, per_round=2, seeds=1, final_seeds=2, drop=50.0, floor_on="auroc")


def base(cache, out, **flags):
    short = {"dataset": "digits-s", "student": "adapter", "method": "bird", "epochs": 2, "warmup": 1, "batch_size": 64}
    return resolve({**short, "cache": cache, "out": out, **flags})


def test_meta_is_halved_by_cell_and_seed(cache, tmp_path):
    whole = read(base(cache, tmp_path)).table
    halved = {seed: read(base(cache, tmp_path, choose=seed)).table for seed in (0, 1)}
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
    out, learned = tmp_path / "study", {"epochs": 10, "warmup": 5, "lr": 1e-2}
    result = tune(base(cache, out, **learned), SMALL)
    candidates = result["candidates"]
    assert len(candidates) == 4
    assert not any(each["trivial"] for each in candidates), "they have learned something"
    assert candidates[0]["setting"] == pytest.approx({"lambda": 0.03, "alpha": 0.9, "mu2": 1e-3}), "the default first"
    feasible = [each for each in candidates if each["auroc"] >= result["floor"]]
    assert [each["feasible"] for each in candidates] == [each in feasible for each in candidates]
    assert result["chosen"]["mean_deo"] == min(each["mean_deo"] for each in feasible)
    for each in candidates:
        assert each["front"] == (not any(dominates(other, each, "auroc") for other in candidates))
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
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert tune(base(cache, out, **learned), SMALL) == result
    with pytest.raises(RunError, match="test split has been opened"):
        tune(base(cache, out, **learned), Search(**{**vars(SMALL), "trials": 6}))
    with pytest.raises(RunError, match="epochs"):
        tune(base(cache, out, **{**learned, "epochs": 8}), SMALL)


class Told:
    """A judged candidate, as optuna tells it."""

    def __init__(self, number, deo, auroc, trivial=None):
        self.number, self.params = number, {}
        self.user_attrs = dict.fromkeys(searching.METRICS, 0.0) | {"mean_deo": deo, "auroc": auroc}
        self.user_attrs |= {"trivial": trivial, "deo_floor": 3.0, "deo_interval": [deo, deo]}


class Study:
    """A study that holds the given candidates."""

    def __init__(self, *told):
        self.told = told

    def get_trials(self, **_):
        return self.told


def test_a_trivial_student_is_not_chosen_and_on_no_front():
    """Its gap is the smallest and its AUROC the highest: scores can rank what the answers never name."""
    found = candidates_of(
        Study(Told(0, 0.0, 96, "it names one class"), Told(1, 12.0, 90), Told(2, 9.0, 80)), "auroc", 50.0
    )
    assert [each["chosen"] for each in found] == [False, False, True]
    assert [each["front"] for each in found] == [False, True, True]
    assert [each["feasible"] for each in found] == [False, True, True]
    found = candidates_of(
        Study(Told(0, 0.0, 96, "it names one class"), Told(1, 5.0, 90, "it names one class")), "auroc", 50.0
    )
    assert [each["chosen"] for each in found] == [True, False], "nothing else is there"
    assert not any(each["feasible"] or each["front"] for each in found)


def test_trivial_candidates_are_marked_on_the_page_and_in_the_terminal(cache, tmp_path, capsys):
    """Two epochs at a small step: no student knows the classes yet."""
    from bird_pipelines.cli import show

    result = tune(base(cache, tmp_path / "study", lr=1e-5), SMALL)
    assert all(each["trivial"] for each in (*result["candidates"], result["baseline"]["chosen"], result["test"]))
    page = (tmp_path / "study" / "tune.html").read_text()
    assert page.count("trivial student") > len(result["candidates"])
    assert "whose gap says nothing" in page
    show.tuned(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert "no candidate reached the floor of auroc with a student that is not trivial" in printed
    assert printed.count("trivial student") >= 3


def test_a_meta_split_that_cannot_be_halved_is_refused_before_anything_is_trained(cache, tmp_path):
    with pytest.raises(UsageError, match=r"class . x group [gh] .*in the choosing half of meta"):
        tune(base(cache, tmp_path / "study", limit=30), SMALL)
    assert not (tmp_path / "study").exists()


class Stop(Exception):
    """The search stops here."""


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_stopped_search_ends_as_an_unbroken_one(cache, tmp_path, monkeypatch, calls):
    """Stopped after the baseline, or with drawn candidates that are trained but not told, in the first round or later."""
    unbroken = tune(base(cache, tmp_path / "a"), SMALL)
    real, count = searching.judge, 0

    def judge(*args):
        nonlocal count
        found, count = real(*args), count + 1
        if count == calls:
            raise Stop
        return found

    with monkeypatch.context() as patch:
        patch.setattr(searching, "judge", judge)
        with pytest.raises(Stop):
            tune(base(cache, tmp_path / "b"), SMALL)
    resumed = tune(base(cache, tmp_path / "b"), SMALL)
    for name in ("candidates", "chosen", "test", "floor", "baseline", "less_baseline"):
        assert resumed[name] == unbroken[name], name


def test_without_a_feasible_candidate_the_highest_auroc_is_taken(cache, tmp_path):
    result = tune(base(cache, tmp_path / "study"), Search(**{**vars(SMALL), "trials": 2, "floor": 100.0}))
    assert not result["chosen"]["feasible"]
    assert result["chosen"]["auroc"] == max(each["auroc"] for each in result["candidates"])
    assert "No candidate reached the floor of AUROC" in (tmp_path / "study" / "tune.html").read_text()


def test_the_front_has_no_candidate_that_another_beats():
    found = candidates_of(Study(Told(0, 10, 90), Told(1, 20, 95), Told(2, 15, 89), Told(3, 20, 94)), "auroc", 50.0)
    assert [each["front"] for each in found] == [True, True, False, False]
    assert [each["chosen"] for each in found] == [True, False, False, False]


def test_every_method_but_the_baseline_has_something_to_choose():
    options = {each.name for each in options_of_a_run()}
    assert SPACES.keys() == METHODS.keys() - {"baseline"}
    assert all(name in options for space in SPACES.values() for name in space)


def test_the_command_prints_what_was_chosen(cache, tmp_path):
    flags = ("--trials", 2, "--per-round", 2, "--seeds", 1, "--final-seeds", 1, "--epochs", 1, "--drop", 50)
    done = bird("tune", "--cache", cache, "--out", tmp_path / "study", "--method", "bird-no-meta", *flags)
    assert "floor of balanced_accuracy" in done.stdout
    assert "mean_deo" in done.stdout
    result = bird_json("tune", "--cache", cache, "--out", tmp_path / "study", "--method", "bird-no-meta", *flags)
    assert result["chosen"]["setting"].keys() == {"lambda", "alpha"}
    bad = bird("tune", "--cache", cache, "--out", tmp_path / "other", "--method", "baseline", *flags, code=2)
    assert "no weight to choose" in panel(bad)
    with pytest.raises(UsageError, match="no weight"):
        tune(base(cache, tmp_path / "other", method="baseline"), SMALL)


def test_the_baseline_gets_as_many_trials_and_is_told_apart(cache, tmp_path, capsys):
    """Both are compared on the same rows of the choosing half, and of test; what is not better is said."""
    from bird_pipelines.cli import show

    result = tune(base(cache, tmp_path / "study", epochs=3, lr=1e-2), SMALL)
    assert len(result["baseline"]["candidates"]) == len(result["candidates"]) == SMALL.trials
    assert result["baseline"]["candidates"][0]["setting"] == pytest.approx({"lr": 1e-2, "average": 0.0})
    assert result["floor"] == pytest.approx(result["baseline"]["candidates"][0]["auroc"] - SMALL.drop)
    for each in (*result["candidates"], *result["baseline"]["candidates"]):
        low, high = each["deo_interval"]
        assert 0 <= low <= high <= 100
    for split in ("choose", "test"):
        difference = result["less_baseline"][split]["mean_deo"]
        low, high = difference["interval"]
        assert low <= high
        shown = high < 0
        page = (tmp_path / "study" / "tune.html").read_text()
        said = "shown to be better" if split == "choose" else "do not show that its gap is smaller"
        assert (said in page) is not shown
    show.tuned(result)
    assert "and as many of the baseline" in capsys.readouterr().out


def test_a_study_whose_default_diverged_goes_on_with_a_mended_one_and_a_paid_one_is_kept(cache, tmp_path, monkeypatch):
    out, few = tmp_path / "study", Search(**{**vars(SMALL), "trials": 1, "final_seeds": 1})
    with monkeypatch.context() as patch:
        patch.setattr("bird_pipelines.study.tune.BASELINE", {"lr": Range(1e-4, 1e30, log=True)})
        with pytest.raises(DivergedError):
            tune(base(cache, out, lr=1e30), few)
    mended = tune(base(cache, out, lr=1e-2), few)
    assert mended["baseline"]["candidates"][0]["setting"]["lr"] == pytest.approx(1e-2)
    with pytest.raises(RunError, match=r"identity\.lr = 0\.01"):
        tune(base(cache, out, lr=1e-3), few)


def test_a_candidate_that_diverges_is_left_out_and_the_study_goes_on(cache, tmp_path, capsys):
    """Rates up to 1e30, drawn by the logarithm: most candidates diverge. The first one is the user's."""
    search = Search(**{**vars(SMALL), "trials": 6, "per_round": 3})
    plain, space = base(cache, tmp_path, method="baseline", lr=1e-2), {"lr": Range(1e-3, 1e30, log=True)}
    found = searching.look(plain, search, tmp_path / "s", space, 0.0, distill_many)
    assert found[0]["setting"]["lr"] == pytest.approx(1e-2)
    assert len(found) < 6
    assert capsys.readouterr().err.count("is left out") == 6 - len(found)
    assert searching.look(plain, search, tmp_path / "s", space, 0.0, distill_many) == found

"""`bird distill --seeds`: ordinary runs, one summary, and the same command goes on."""

import json
import statistics

import pytest
from helpers.shell import bird, bird_json, distilled, panel

import bird_pipelines
from bird.errors import UsageError
from bird.students import load_student
from bird_pipelines.study.compare import scores_of
from bird_pipelines.study.seeds import seeds_of

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}


@pytest.mark.parametrize(
    ("given", "found"),
    [("0-3", [0, 1, 2, 3]), ("0,3,5", [0, 3, 5]), (" 1 - 2 , 7", [1, 2, 7]), ("4", [4]), (range(2), [0, 1])],
)
def test_seeds_are_read(given, found):
    assert seeds_of(given) == found


@pytest.mark.parametrize("given", ["", "a", "3-1", "-1", "0,0", "0-2,1", "1.5", "0-", "0-99999999", [], [-1], [0.5]])
def test_other_seeds_are_refused(given):
    with pytest.raises(UsageError, match="--seeds"):
        seeds_of(given)


def test_adapters_are_one_stack_of_ordinary_runs_and_more_can_follow(cache, tmp_path):
    found = bird_pipelines.distill(cache=cache, out=tmp_path / "all", seeds="0-1", **SHORT)
    distilled(cache, tmp_path / "one", **SHORT, seed=1)
    one, two = (load_student(run).state_dict() for run in (tmp_path / "one", tmp_path / "all" / "seed-1"))
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5
    infos = [json.loads((tmp_path / "all" / f"seed-{seed}" / "run.json").read_text()) for seed in (0, 1)]
    assert [each["models_at_once"] for each in infos] == [2, 2]
    before = (tmp_path / "all" / "seed-0" / "run.json").read_bytes()

    more = bird_json(
        "distill", "--cache", cache, "--out", tmp_path / "all", "--seeds", "0,1,4", "--epochs", 2, "--warmup", 1,
        "--batch-size", 32,
    )  # fmt: skip
    assert (tmp_path / "all" / "seed-0" / "run.json").read_bytes() == before
    assert more["seeds"] == [0, 1, 4]
    assert json.loads((tmp_path / "all" / "seeds.json").read_text()) == more
    values = [each["accuracy"] for each in more["by_seed"]]
    assert more["test"]["accuracy"]["mean"] == pytest.approx(statistics.fmean(values))
    assert more["test"]["accuracy"]["std"] == pytest.approx(statistics.stdev(values))
    assert found["by_seed"] == more["by_seed"][:2]
    text = bird(
        "distill", "--cache", cache, "--out", tmp_path / "all", "--seeds", "0,1,4", "--epochs", 2, "--warmup", 1,
        "--batch-size", 32,
    ).stdout  # fmt: skip
    assert "mean ± deviation" in text
    assert "floor" in text


def test_image_students_go_one_after_the_other(cache, tmp_path):
    flags = {"student": "tiny-convnet", "method": "baseline", "limit": 120, **SHORT}
    found = bird_pipelines.distill(cache=cache, out=tmp_path / "all", seeds=[3, 1], **flags)
    assert found["seeds"] == [3, 1]
    infos = [json.loads((tmp_path / "all" / f"seed-{seed}" / "run.json").read_text()) for seed in (3, 1)]
    assert [each["models_at_once"] for each in infos] == [1, 1]


def test_a_trivial_student_is_named_by_its_seed():
    runs = [
        {"config": {"seed": seed}, "seconds": 1.0, "metrics": {"test": {"accuracy": 50.0, "trivial": why}}}
        for seed, why in ((3, None), (7, "it names yes for every row"))
    ]
    assert scores_of(runs)["trivial"].endswith(
        "in 1 of 2 seeds, whose gap says nothing; seed 7: it names yes for every row"
    )


def test_what_cannot_be_meant(cache, tmp_path):
    assert "--seed" in panel(
        bird("distill", "--cache", cache, "--out", tmp_path / "x", "--seeds", "0-1", "--seed", 3, code=2)
    )
    assert not (tmp_path / "x").exists()
    distilled(cache, tmp_path / "run", method="baseline", **SHORT)
    with pytest.raises(UsageError, match="run folder"):
        distilled(cache, tmp_path / "run", method="baseline", **SHORT, seeds="0-1")

"""`bird reproduce` from nothing: a small table end to end, resumed, with a row that fails, and what it refuses."""

import json
import signal

import pytest
from helpers.shell import bird, bird_json, panel, stopped
from helpers.tables import small

from bird.errors import UsageError
from bird_pipelines.predictions import load_predictions
from bird_pipelines.study.tables.recipes import load_recipe, select
from bird_pipelines.study.tables.reproduce import execute, ready, reproduce
from bird_pipelines.study.tables.steps import build_plan, needed


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Table 7 of two seeds, with BIRD's runs missing at first."""
    out = tmp_path_factory.mktemp("reproduce")
    first = reproduce("table7", out, profile=small("table7"), seeds=2, only=["baseline", "bird-no-meta"])
    return out, first


def changed(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}


def test_a_table_from_nothing_then_completed_without_repeating_anything(done):
    out, first = done
    assert first["failed"] == []
    record = json.loads((out / "table7.json").read_text())
    assert [row["seeds"] for row in record["blocks"][0]["rows"]] == [[0, 1], [0, 1]]
    before = changed(out)
    assert len(before) == 1 + 4
    assert reproduce("table7", out, profile=small("table7"), seeds=2)["failed"] == []
    after = changed(out)
    assert len(after) == 1 + 6
    assert {path: after[path] for path in before} == before
    record = json.loads((out / "table7.json").read_text())
    bird = record["blocks"][0]["rows"][2]
    assert bird["cells"]["mean_deo"]["comparison"]["interval"] is not None
    assert "demo" in (out / "table7.html").read_text()
    assert reproduce("table7", out, profile=small("table7"), seeds=2)["failed"] == []
    assert changed(out) == after


def test_predictions_are_the_metrics_of_the_run(done):
    out, _ = done
    folder = next((out / "work" / "runs").rglob("run.json")).parent
    metrics = json.loads((folder / "metrics-test.json").read_text())
    found = load_predictions(folder, "test")
    assert len(found.ids) == len({*found.ids}) == metrics["n"]
    assert 100 * (found.labels == found.predictions).mean() == pytest.approx(metrics["accuracy"])


def test_a_killed_run_goes_on_and_the_rest_is_left_alone(done):
    out, _ = done
    recipe, _ = load_recipe("table7")
    plan = build_plan(select(recipe, ["baseline"]), small("table7"), range(2), out / "work")
    assert needed(plan) == set()
    config = plan.rows["celeba/resnet18/resnet18/baseline"][1]
    metrics = (config.place.out / "metrics-test.json").read_bytes()
    others = {path: when for path, when in changed(out).items() if path.parent != config.place.out}
    for name in ("run.json", "metrics-test.json", "predictions-test.npz"):
        (config.place.out / name).unlink()
    todo = needed(plan)
    assert [plan.steps[key].kind for key in todo] == ["runs"]
    assert execute(plan, todo) == {}
    assert (config.place.out / "metrics-test.json").read_bytes() == metrics
    assert {path: when for path, when in changed(out).items() if path.parent != config.place.out} == others


def test_a_damaged_run_fails_alone(done, tmp_path):
    out, _ = done
    profile = small("table7")
    recipe, _ = load_recipe("table7")
    plan = build_plan(recipe.rows, profile, range(1), tmp_path / "work")
    broken = plan.rows["celeba/resnet18/resnet18/bird-no-meta"][0]
    (tmp_path / "work").mkdir()
    for part in ("teachers", "caches"):
        (tmp_path / "work" / part).symlink_to(out / "work" / part)
    broken.place.out.mkdir(parents=True)
    (broken.place.out / "notes.txt").write_text("somebody else's")
    found = reproduce("table7", tmp_path, profile=profile, seeds=1, only=["baseline", "bird-no-meta"])
    (failure,) = found["failed"]
    assert "celeba/resnet18/resnet18/bird-no-meta" in failure
    assert "notes.txt" in failure
    rows = json.loads((tmp_path / "table7.json").read_text())["blocks"][0]["rows"]
    assert [(row["label"], row["seeds"]) for row in rows] == [("Baseline", [0]), ("BIRD w/o Meta", [])]


def test_missing_data_is_told_before_anything_runs(tmp_path):
    with pytest.raises(UsageError) as caught:
        reproduce("table2", tmp_path / "out", data_root=tmp_path)
    for wanted in ("celeba", "utkface", "img_align_celeba", "age_gender_race"):
        assert wanted in str(caught.value)
    assert not (tmp_path / "out").exists()
    said = panel(bird("reproduce", "table3", "--out", tmp_path / "out", code=2))
    assert "cifar-10-batches-bin" in said
    assert "--profile demo" in said


def test_missing_weights_are_told_before_anything_runs(tmp_path):
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    attributes = ["1", "Attractive Male", "000001.jpg 1 -1"]
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    (tmp_path / "celeba" / "img_align_celeba" / "000001.jpg").write_bytes(b"an image")
    said = panel(
        bird("reproduce", "table1", "--data-root", tmp_path, "--out", tmp_path / "out", "--only", "clip-rn50", code=2)
    )
    assert "weights of clip-rn50" in said
    assert "weights/clip-rn50" in said


def test_the_plan_is_told_with_its_cost(tmp_path):
    plan = bird_json("reproduce", "table1", "--profile", "demo", "--out", tmp_path, "--dry-run")
    assert not list(tmp_path.iterdir())
    assert plan["missing"] == []
    assert plan["total"]["seconds"] > 0
    assert plan["total"]["bytes"] > 0
    text = bird("reproduce", "table1", "--out", tmp_path, "--dry-run").stdout
    assert "missing: data set celeba" in text
    assert "missing: weights of flava" in text


def test_ctrl_c_is_resumable(tmp_path):
    command = ("reproduce", "table7", "--profile", "demo", "--seeds", 1, "--only", "baseline", "--out", tmp_path)
    code, _ = stopped(*command, when=lambda: any(tmp_path.rglob("checkpoint.json")), by=signal.SIGINT)
    assert code == 130
    assert not (tmp_path / "table7.html").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(done, tmp_path):
    out, _ = done
    reproduce("table7", tmp_path, profile=small("table7"), seeds=2, jobs=2, only=["baseline", "bird-no-meta"])
    one, two = (json.loads((folder / "table7.json").read_text())["blocks"][0]["rows"][0] for folder in (out, tmp_path))
    assert one["cells"]["mean_deo"]["mean"] == pytest.approx(two["cells"]["mean_deo"]["mean"])


def test_a_cache_has_one_writer_at_a_time(tmp_path):
    """AT reads attention and BIRD + AT maps: two steps on one cache, and neither comes after the other."""
    recipe, _ = load_recipe("table5")
    steps = build_plan(recipe.rows, small("table5"), [0], tmp_path).steps.values()
    attention, *others = (step for step in steps if step.kind == "layers" and "attention" in step.key)
    maps = next(step for step in steps if "layers maps" in step.key and step.cache.out == attention.cache.out)
    assert attention.key not in maps.after
    assert ready(maps, set(), [])
    assert not ready(maps, {*maps.after}, [])
    assert not ready(maps, set(), [attention])
    assert all(ready(maps, set(), [other]) for other in others)

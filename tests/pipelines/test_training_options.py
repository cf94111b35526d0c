"""Optimiser, schedule, weight decay and early stop: what they do, that they resume to the bit, and that their defaults are
the runs from before them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from helpers.shell import bird, distilled, panel

from bird.errors import DivergedError, RunError, UsageError
from bird.students import load_student
from bird_pipelines.config import resolve
from bird_pipelines.config.run import Training, options_of_a_run
from bird_pipelines.distilling.schedule import best_epoch, rate_factor, scale_rate, stopped_early
from bird_pipelines.distilling.scoring import balanced_accuracy
from bird_pipelines.distilling.side_by_side import distill_many, stackable
from bird_pipelines.distilling.training import Trainer
from bird_pipelines.study.tables.steps import digest

SHORT = {"epochs": 3, "warmup": 1, "batch_size": 32}
SGD = {"optimizer": "sgd", "weight_decay": 1e-3, "lr": 1e-2, "lr_schedule": "step", "lr_step_epochs": 1}
ADAMW = {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine"}


def of(cache, out, **flags):
    return resolve({"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": cache, "out": out} | flags)


def weights(run):
    return load_student(run).state_dict()


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_defaults_are_the_runs_from_before_these_options():
    """A digest of version 0.1's identity, by which `bird reproduce` names its folders."""
    identity = of("c", "o", dataset="cifar10s").identity()
    assert digest(identity) == "20276586"
    younger = {each.name for each in options_of_a_run() if each.option.later}
    assert {"optimizer", "weight_decay", "lr_schedule", "lr_step_epochs", "lr_gamma", "early_stop"} <= younger
    assert not younger & identity.keys()


def test_a_folder_from_before_these_options_goes_on(cache, tmp_path):
    """Also one that a version between wrote, which names an option at its default; another value is another run."""
    distilled(cache, tmp_path / "run", method="baseline", **SHORT)
    path = tmp_path / "run" / "config.json"
    said = json.loads(path.read_text())
    said["identity"] |= {"optimizer": "adam", "weight_decay": 0.0}
    path.write_text(json.dumps(said))
    distilled(cache, tmp_path / "run", method="baseline", **SHORT)
    with pytest.raises(RunError, match="optimizer = adam"):
        distilled(cache, tmp_path / "run", method="baseline", **SHORT, optimizer="sgd")


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_schedules_are_torch_s(name):
    """Of two groups with rates of their own, over 25 epochs."""
    training = Training(lr_schedule=name, epochs=25, lr_step_epochs=10, lr_gamma=0.1)
    ours, theirs = (torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.5, 0.01)]) for _ in range(2))
    schedulers = torch.optim.lr_scheduler
    theirs_by = (
        schedulers.StepLR(theirs, 10, 0.1) if name == "step" else schedulers.CosineAnnealingLR(theirs, training.epochs)
    )
    for epoch in range(training.epochs):
        scale_rate(ours, rate_factor(training, epoch))
        rates = [[group["lr"] for group in each.param_groups] for each in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-9), epoch
        theirs.step()
        theirs_by.step()


def test_settings_of_a_step_belong_to_a_step(cache, tmp_path):
    config = of(cache, tmp_path, lr_schedule="step")
    assert (config.training.lr_step_epochs, config.training.lr_gamma) == (10, 0.1)
    assert config.identity()["lr_step_epochs"] == 10, "a run says which steps it took"
    with pytest.raises(UsageError, match="lr-gamma"):
        of(cache, tmp_path, lr_schedule="cosine", lr_gamma=0.5)


@pytest.mark.parametrize("flags", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("method", ["bird", "ad", "bird-plus"])
def test_each_option_changes_the_student_and_a_stack_is_single_runs(cache, tmp_path, method, flags):
    plain = distilled(cache, tmp_path / "plain", method=method, **SHORT)
    for seed in (0, 1):
        distilled(cache, tmp_path / f"one{seed}", method=method, **SHORT, **flags, seed=seed)
    assert not equal(weights(tmp_path / "plain"), weights(tmp_path / "one0"))
    many = [of(cache, tmp_path / f"many{seed}", method=method, **SHORT, **flags, seed=seed) for seed in (0, 1)]
    done = distill_many(many)
    assert [each["models_at_once"] for each in done] == ([1, 1] if method == "ad" else [2, 2])
    for seed in (0, 1):
        one, two = weights(tmp_path / f"one{seed}"), weights(tmp_path / f"many{seed}")
        assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5
    assert "optimizer" not in plain["config"]
    assert done[0]["config"]["optimizer"] == flags["optimizer"]


@pytest.mark.parametrize("seeds", [{"seed": 1}, {"seeds": "0-1"}], ids=["one", "stack"])
def test_a_run_that_diverges_says_so_and_keeps_no_student(cache, tmp_path, seeds):
    with pytest.raises(
        DivergedError,
        match=r"NaN or infinite numbers in .* training diverged.*lower --lr .with feedback --mu1 and --mu2",
    ):
        distilled(cache, tmp_path / "run", method="fitnet", **SHORT, lr=1e30, **seeds)
    assert not [*(tmp_path / "run").rglob("student.safetensors")]
    assert not [*(tmp_path / "run").rglob("run.json")]


def test_a_rate_that_decays_to_little_leaves_the_student_where_it_is(cache, tmp_path):
    """With a factor of 1e-12 nothing moves after the first epoch, alone and in a stack of two rates."""
    flags = {"method": "fitnet", "batch_size": 32, "warmup": 0}
    fast = {"lr_schedule": "step", "lr_step_epochs": 1, "lr_gamma": 1e-12}
    distilled(cache, tmp_path / "one", **flags, epochs=1, lr=1e-2)
    distilled(cache, tmp_path / "three", **flags, **fast, epochs=3, lr=1e-2)
    distill_many(
        [of(cache, tmp_path / f"{lr}", **flags, **fast, epochs=3, lr=lr) for lr in (1e-2, 1e-3)],
    )
    first = weights(tmp_path / "one")
    for other in ("three", "0.01"):
        found = weights(tmp_path / other)
        assert max((first[name] - found[name]).abs().max() for name in first) < 1e-5, other
    distilled(cache, tmp_path / "slow", **flags, epochs=1, lr=1e-3)
    slow, found = weights(tmp_path / "slow"), weights(tmp_path / "0.001")
    assert max((slow[name] - found[name]).abs().max() for name in slow) < 1e-5


@pytest.mark.parametrize("flags", [SGD, ADAMW, {"early_stop": 1, "lr": 0.1}], ids=["sgd", "adamw", "early"])
@pytest.mark.parametrize("student", ["adapter", "tiny-convnet"])
def test_killed_anywhere_it_ends_as_unbroken_to_the_bit(cache, tmp_path, monkeypatch, student, flags):
    flags = {"student": student, "method": "bird", **SHORT, "limit": 200, "meta_per_cell": 1, **flags}
    distilled(cache, tmp_path / "unbroken", **flags)
    count = Trainer.count
    for kill_at in (2, 5, 8):

        def killed(trainer, rows, kill_at=kill_at):
            count(trainer, rows)
            if trainer.step == kill_at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "count", killed)
            try:
                distilled(cache, tmp_path / "killed", **flags, checkpoint_seconds=1e-9)
            except KeyboardInterrupt:
                continue
    distilled(cache, tmp_path / "killed", **flags)
    files = [tmp_path / name / "student.safetensors" for name in ("unbroken", "killed")]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 1
    curves = [
        [json.loads(line) | {"seconds": 0} for line in (path.parent / "curve.jsonl").read_text().splitlines()]
        for path in files
    ]
    assert curves[0] == curves[1]


def test_an_early_stop_keeps_the_best_student_and_says_so(cache, tmp_path):
    """At a wild rate the student soon gets worse: it ships as it was at its best epoch, which run.json names."""
    flags = {"method": "bird", "epochs": 40, "warmup": 2, "batch_size": 32, "lr": 0.3}
    info = distilled(cache, tmp_path / "run", **flags, early_stop=2)
    said, curve = info["early_stop"], (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    scores = [json.loads(line)["meta"]["balanced_accuracy"] for line in curve]
    counted = scores[2:]
    assert said["best_epoch"] == 3 + counted.index(max(counted))
    assert said["epochs_trained"] == len(scores) == said["best_epoch"] + 2 < 40
    assert "optimistic" in said["note"]
    recalls = np.array(info["metrics"]["meta"]["recalls"])
    assert 100 * recalls.mean() == pytest.approx(max(counted)), "the student that ships is the best one"
    whole = {**flags, "epochs": said["best_epoch"]}
    distilled(cache, tmp_path / "short", **whole)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "short"))
    assert not stackable(of(cache, tmp_path / "x", early_stop=2)), "each would end at an epoch of its own"


def test_the_first_of_equals_is_the_best_and_the_warmup_does_not_count():
    curve = [
        {"epoch": number + 1, "meta": {"balanced_accuracy": score}} for number, score in enumerate((9, 5, 7, 7, 6))
    ]
    assert (best_epoch(curve), best_epoch(curve, 1), best_epoch(curve, 5)) == (1, 3, None)
    asked = Training(early_stop=2)
    assert [stopped_early(asked, curve[:n], 1) for n in range(6)] == [False] * 5 + [True]
    assert not stopped_early(Training(), curve, 1)


def test_balanced_accuracy_leaves_out_empty_cells():
    counts = np.zeros((2, 2, 2), np.int64)
    counts[0, 0, 0], counts[0, 1, 1], counts[1, 0] = 90, 10, (5, 5)  # recalls 1, 0, .5 and none
    assert balanced_accuracy(counts) == pytest.approx(50)


def test_no_early_stop_without_meta_rows(cache, tmp_path):
    with pytest.raises(UsageError, match="meta"):
        distilled(cache, tmp_path / "run", method="baseline", early_stop=2, limit=8, **SHORT)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_optimiser_that_it_began_with(cache, tmp_path):
    distilled(cache, tmp_path / "start", **SHORT, **SGD)
    distilled(cache, tmp_path / "more", **SHORT, **SGD, start_from=tmp_path / "start")
    with pytest.raises(RunError, match="optimizer"):
        distilled(cache, tmp_path / "other", **SHORT, start_from=tmp_path / "start")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_a_device_that_is_not_there(cache, tmp_path):
    assert "cuda:1" in panel(bird("distill", "--cache", cache, "--device", "cuda:1", "--out", tmp_path / "r", code=2))

"""Phase two: what a run is, that it resumes to the bit, and that no teacher is near it."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.shell import ENVIRONMENT, bird, bird_json, distilled, exists, panel, stopped

import bird_pipelines
from bird.errors import RunError, UsageError
from bird.methods import METHODS
from bird_cache.store import open_cache
from bird_pipelines.config import resolve
from bird_pipelines.distilling import training
from bird_pipelines.distilling.evaluate import evaluate

QUICK = ("--epochs", 2, "--warmup", 1, "--batch-size", 32)
SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}


@pytest.mark.parametrize("method", sorted({*METHODS} - {"at", "bird+at"}))
def test_every_method_trains_the_adapter(cache, tmp_path, method):
    info = distilled(cache, tmp_path / "run", method=method, **SHORT)
    assert info["complete"]
    fingerprint = open_cache(cache).fingerprint
    saved = [
        json.loads((tmp_path / "run" / name).read_text()) for name in ("config.json", "checkpoint.json", "student.json")
    ]
    assert info["fingerprint"] == saved[0]["fingerprint"] == saved[1]["fingerprint"] == fingerprint
    assert saved[2]["cache_fingerprint"] == fingerprint
    metrics = info["metrics"]["test"]
    assert 0 <= metrics["mean_deo"] <= metrics["max_deo"] <= 100
    lines = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["meta_bias"] is None, "a meta step during warmup"
    assert (lines[-1]["meta_bias"] is not None) == (method.startswith("bird") and not method.endswith("no-meta"))
    assert evaluate(tmp_path / "run") == metrics


def test_a_run_whose_cache_moved_says_how_to_name_it(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    distilled(tmp_path / "cache", tmp_path / "run", method="baseline", **SHORT)
    (tmp_path / "cache").rename(tmp_path / "moved")
    said = panel(bird("evaluate", tmp_path / "run", code=2))
    assert "--cache" in said
    assert "precompute" not in said
    bird("evaluate", tmp_path / "run", "--cache", tmp_path / "moved")


@pytest.mark.slow
def test_an_image_student_learns_from_images_and_features(cache, tmp_path):
    flags = {
        "student": "shufflenetv2",
        "limit": 120,
        "epochs": 2,
        "warmup": 1,
        "meta_per_cell": 1,
        "batch_size": 32,
    }
    info = distilled(cache, tmp_path / "run", **flags)
    assert info["rows"]["train"] < 120
    assert info["rows"]["test"] == (open_cache(cache).samples.splits == "test").sum()
    assert "random crop" in info["view_policy"]
    assert evaluate(tmp_path / "run") == info["metrics"]["test"]


@pytest.mark.torture
def test_killed_at_random_in_full(cache, tmp_path, record_property):
    """30 kills at random instants of one run after another: each ends as the unbroken one did, to the bit."""
    flags = ("--method", "bird", "--epochs", 6, "--warmup", 1, "--batch-size", 8)
    (tmp_path / "often.toml").write_text("checkpoint_seconds = 0.05\n")
    often = ("--config", tmp_path / "often.toml")
    bird("distill", "--cache", cache, *flags, *often, "--out", tmp_path / "unbroken")
    kills, number, rng = 0, 0, random.Random(3)
    while kills < 30:
        out, number = tmp_path / f"run-{number}", number + 1
        for _ in range(3):
            began, delay = time.monotonic(), rng.uniform(2.5, 7)
            code, _ = stopped(
                *("distill", "--cache", cache, *flags, *often, "--out", out),
                when=lambda began=began, delay=delay: time.monotonic() - began > delay,
            )
            kills += code == -signal.SIGKILL
        bird("distill", "--cache", cache, *flags, *often, "--out", out)
        ends_equal(tmp_path / "unbroken", out)
    record_property("3 kill -9 in distill", kills)


def ends_equal(one, two):
    """Weights, metrics and curve of two runs, to the bit."""
    assert (one / "student.safetensors").read_bytes() == (two / "student.safetensors").read_bytes()
    assert (one / "metrics-test.json").read_bytes() == (two / "metrics-test.json").read_bytes()
    curves = [[json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*curves, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def killed_twice(cache, folder, flags):
    """Run, killed at two points of its way, then to the end."""
    for step in (1, 2):
        config = folder / "often.toml"
        config.write_text("checkpoint_seconds = 0.01\n")
        seen = {path.name for path in (folder / "killed").glob("checkpoint-*")}
        code, _ = stopped(
            *("distill", "--cache", cache, *flags, "--config", config, "--out", folder / "killed"),
            when=lambda seen=seen: {path.name for path in (folder / "killed").glob("checkpoint-*.safetensors")} - seen,
        )
        assert code == -signal.SIGKILL, f"stop {step}"
    bird("distill", "--cache", cache, *flags, "--out", folder / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--student", "adapter", "--method", "bird", "--epochs", 6, "--warmup", 1, "--batch-size", 8),
        (
            "--student",
            "shufflenetv2",
            "--method",
            "bird",
            "--limit",
            120,
            "--epochs",
            2,
            "--warmup",
            1,
            "--batch-size",
            16,
            "--meta-per-cell",
            1,
        ),
    ],
    ids=["adapter", "shufflenetv2"],
)
def test_killed_runs_end_bit_equal(cache, tmp_path, flags):
    bird("distill", "--cache", cache, *flags, "--out", tmp_path / "unbroken")
    killed_twice(cache, tmp_path, flags)
    ends_equal(tmp_path / "unbroken", tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_saves_and_resumes(cache, tmp_path):
    flags = ("--epochs", 200, "--batch-size", 8)
    out = tmp_path / "run"
    code, message = stopped(
        "distill",
        "--cache",
        cache,
        *flags,
        "--out",
        out,
        when=exists(out / "checkpoint.json"),
        by=signal.SIGINT,
    )
    assert code == 130
    assert "run the same command again to resume" in message
    assert json.loads((out / "checkpoint.json").read_text())["step"] > 0
    assert not (out / "run.json").exists()


def test_a_run_folder_belongs_to_one_configuration(cache, tmp_path):
    bird("distill", "--cache", cache, *QUICK, "--out", tmp_path / "run")
    before = (tmp_path / "run" / "student.safetensors").read_bytes()
    done = bird("distill", "--cache", cache, *QUICK, "--lambda", 0.5, "--out", tmp_path / "run", code=2)
    assert "lambda = 0.03" in panel(done)
    assert "lambda = 0.5" in panel(done)
    bird("distill", "--cache", cache, *QUICK, "--out", tmp_path / "run")  # the same again: done already
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == before


def test_no_teacher_is_imported(cache, tmp_path):
    """After a distil run in a fresh process: no teacher, transformers, open_clip or onnxruntime module is loaded."""
    program = f"""
import sys
import time
sys.argv = ["bird", "distill", "--cache", {str(cache)!r}, "--epochs", "1", "--out", {str(tmp_path / "run")!r}, "--json"]
from bird_pipelines.cli import main
main()
"""
    check = """
import atexit, sys
def report():
    names = ("transformers", "open_clip", "onnxruntime", "bird.teachers", "bird_pipelines.precomputing.extraction")
    loaded = [name for name in sys.modules if name.startswith(names)]
    assert "bird.step.feedback" in sys.modules
    print("LOADED", loaded, file=sys.stderr)
atexit.register(report)
"""
    done = subprocess.run(
        [sys.executable, "-c", check + program],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
        timeout=120,
    )
    assert "LOADED []" in done.stderr


def test_the_seed_decides(cache, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distilled(cache, tmp_path / name, seed=seed, **SHORT)
        weights.append((tmp_path / name / "student.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_settings_come_from_toml_and_flags_win(cache, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('method = "fitnet"\nepochs = 1\nlambda = 0.2\n')
    config = resolve({"dataset": "cifar10s", "student": "adapter", "lambda_": 0.3, "out": tmp_path}, file)
    assert (config.method, config.training.epochs, config.weights.lambda_, config.training.warmup) == (
        "fitnet",
        1,
        0.3,
        0,
    )
    assert (config.weights.alpha, config.weights.tau) == (0.5, 10), "the paper's values for this data set"
    file.write_text("lamda = 0.2\n")
    assert "lamda" in panel(bird("distill", "--cache", cache, "--config", file, "--out", tmp_path / "other", code=2))


def test_a_damaged_cache_is_refused(cache, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    shard = copy / "penultimate" / "c" / "2" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert "shard 2" in panel(bird("distill", "--cache", copy, "--out", tmp_path / "run", code=3))
    found = bird_json("cache", "verify", copy, code=3)
    assert len(found["findings"]) == 1
    assert np.isfinite(found["rows"])


@pytest.mark.parametrize("views", [0, 2])
def test_a_cache_larger_than_memory_trains_the_same_student(teacher, cache, tmp_path, views):
    """Mapped vectors are the held ones, to the last bit of what is learned from them."""
    if views:
        work = {"batch_size": 16, "workers": 1, "shard_rows": 64, "limit": 200, "views": views}
        cache = tmp_path / "cache"
        bird_pipelines.precompute(teacher=f"run:{teacher}", dataset="digits-s", out=cache, **work)
    for name, memory in (("held", 1.0), ("mapped", 0.0)):
        distilled(cache, tmp_path / name, **SHORT, method="bird", memory_gb=memory)
    ends_equal(tmp_path / "held", tmp_path / "mapped")


def test_from_python_with_the_words_of_the_command(cache, tmp_path):
    """`bird_pipelines.distill(...)` is the command: same folder, same student."""
    file = tmp_path / "run.toml"
    file.write_text('method = "fitnet"\n')
    info = bird_pipelines.distill(cache=cache, out=tmp_path / "python", config=file, epochs=1, lambda_=None)
    words = ("--cache", cache, "--config", file, "--epochs", 1)
    assert bird_json("distill", *words, "--out", tmp_path / "shell")["metrics"] == info["metrics"]
    one, two = (tmp_path / name / "student.safetensors" for name in ("python", "shell"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(UsageError, match="lamda"):
        bird_pipelines.distill(cache=cache, out=tmp_path / "other", lamda=0.2)
    with pytest.raises(RunError, match="seed"):
        bird_pipelines.distill(cache=cache, out=tmp_path / "python", config=file, epochs=1, seed=5)


def test_a_kill_between_curve_and_checkpoint_costs_no_line(cache, tmp_path, monkeypatch):
    """Stopped where the last epoch's line, or what follows it, is about to be written: the resumed curve is whole."""
    whole = distilled(cache, tmp_path / "whole", method="fitnet", **SHORT)
    original = training.replace
    for number, name in enumerate(("curve.jsonl", "student.json")):
        out, calls = tmp_path / str(number), []

        def stops(path, data, name=name, calls=calls):
            calls.append(path.name)
            if path.name == name and (name != "curve.jsonl" or calls.count(name) == SHORT["epochs"]):
                raise KeyboardInterrupt
            original(path, data)

        monkeypatch.setattr(training, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            distilled(cache, out, method="fitnet", **SHORT)
        monkeypatch.setattr(training, "replace", original)
        assert distilled(cache, out, method="fitnet", **SHORT)["metrics"] == whole["metrics"]
        lines = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2]


def test_an_empty_meta_split_is_said_before_anything_is_trained(cache, tmp_path):
    done = bird("distill", "--cache", cache, "--limit", 3, "--epochs", 1, "--out", tmp_path / "run", code=2)
    assert "no sample in the meta split" in panel(done)


def test_the_file_of_options_wins_over_defaults_and_flags_over_it(tmp_path):
    (tmp_path / "c.toml").write_text(
        'student = "tiny-resnet"\nlambda_ = 0.05\nlr = 0.01\n[dataset_settings]\nskew = 0.7\n'
    )
    flags = ("--dataset", "digits-s", "--limit", 100, "--epochs", 1, "--config", tmp_path / "c.toml", "--lr", 0.02)
    bird("train", *flags, "--out", tmp_path / "run")
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["identity"]
    assert (identity["student"], identity["lambda"], identity["lr"]) == ("tiny-resnet", 0.05, 0.02)
    assert identity["dataset_settings"] == {"skew": 0.7}

"""Phase one: what is cached is what the teacher says, whatever happens on the way."""

import signal

import numpy as np
import pytest
import torch
from helpers.shell import bird, bird_json, exists, panel, stopped
from PIL import Image

from bird.datasets import open_dataset
from bird.teachers import load_teacher
from bird_cache.store import open_cache
from bird_cache.verify import verify

KILLED = -signal.SIGKILL


def features_of(path):
    store = open_cache(path)
    return store.vectors("penultimate", np.arange(store.manifest.plan.rows))


def test_cached_equals_live(teacher, cache):
    """Cosine at least .999 per protected group, between what is stored and what the teacher says now."""
    store, dataset, live = open_cache(cache), open_dataset("digits-s", None), load_teacher(f"run:{teacher}")
    rows = np.arange(0, store.manifest.plan.rows, 7)
    pixels = torch.stack([live.preprocess(dataset.image(store.samples.ids[row])) for row in rows])
    said, stored = live.features(pixels), torch.from_numpy(store.vectors("penultimate", rows))
    cosine = torch.nn.functional.cosine_similarity(said, stored)
    groups = store.samples.groups[rows]
    assert {int(group) for group in groups} == {0, 1}
    for group in (0, 1):
        assert cosine[torch.from_numpy(groups == group)].min() >= 0.999


def test_info_accounts_for_every_row(cache):
    info = bird_json("cache", "info", cache)
    assert info["complete"]
    assert info["rows"] == info["written"] == sum(cell["rows"] for cell in info["groups"].values())
    assert info["failed"] == 0
    assert info["layers"]["penultimate"]["shape"][0] == info["rows"]
    assert len(info["fingerprint"]) == 64
    assert "/" not in str(info["causes"]), "a path in what the fingerprint hashes"


@pytest.mark.slow
def test_killed_and_run_again(flags, cache, tmp_path):
    out = tmp_path / "killed"
    code, _ = stopped("precompute", *flags, "--out", out, when=exists(out / "commits" / "000001.json"))
    assert code == KILLED
    assert not open_cache(out).manifest.complete
    bird("cache", "verify", out, code=3)
    refused = bird("distill", "--cache", out, "--out", tmp_path / "run", code=3)
    assert "run the same `bird precompute` command again" in panel(refused)
    bird("precompute", *flags, "--out", out)
    bird("cache", "verify", out)
    assert np.array_equal(features_of(out), features_of(cache))
    assert open_cache(out).fingerprint == open_cache(cache).fingerprint


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(flags, tmp_path):
    out = tmp_path / "stopped"
    code, message = stopped(
        "precompute", *flags, "--out", out, when=exists(out / "commits" / "000000.json"), by=signal.SIGINT
    )
    assert code == 130
    assert "run the same command again to resume" in message
    bird("precompute", *flags, "--out", out)
    assert verify(out).findings == []


def test_another_teacher_is_refused_with_the_field_and_both_values(flags, cache):
    before = features_of(cache)
    done = bird("precompute", *flags, "--out", cache, "--dtype", "float32", code=3)
    assert "dtype = float16" in panel(done)
    assert "dtype = float32" in panel(done)
    assert np.array_equal(features_of(cache), before)


def picture_folder(folder, corrupt=()):
    """Sixty 32-pixel JPEGs of two classes and two groups; those in `corrupt` are cut short."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for number in range(60):
        path = folder / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        if number in corrupt:
            path.write_bytes(path.read_bytes()[:100])
        lines.append(f"{number}.jpg,{number % 2},{number // 2 % 2}")
    (folder / "samples.csv").write_text("\n".join(lines))


def test_a_corrupt_image_is_a_counted_row(teacher, tmp_path):
    picture_folder(tmp_path, corrupt=(3,))
    flags = (
        "--teacher",
        f"run:{teacher}",
        "--dataset",
        "table",
        "--data-root",
        tmp_path,
        "--out",
        tmp_path / "cache",
    )
    refused = bird("precompute", *flags, "--max-failed", "0.01", code=2)
    assert "3.jpg" in panel(refused)
    assert "1 of 60" in panel(refused)
    info = bird_json("precompute", *flags, "--max-failed", "0.1")
    assert (info["rows"], info["written"], info["failed"]) == (60, 59, 1)
    assert sum(cell["failed"] for cell in info["groups"].values()) == 1
    samples = open_cache(tmp_path / "cache").samples
    (row,) = np.flatnonzero(samples.status != "ok")
    assert samples.ids[row] == "3.jpg"
    assert np.isnan(features_of(tmp_path / "cache")[row]).all()
    bird("cache", "verify", tmp_path / "cache")
    bird("distill", "--cache", tmp_path / "cache", "--epochs", 1, "--out", tmp_path / "run")


def test_limit_keeps_the_proportions(cache):
    samples = open_cache(cache).samples
    assert {*samples.splits} == {"train", "meta", "test"}
    per_class = np.bincount(samples.labels)
    assert per_class.min() >= 0.8 * per_class.max()
    test = samples.splits == "test"
    assert abs((samples.groups[test] == 0).mean() - 0.5) < 0.02

"""Every method from the cache to a student, and what the methods keep beside it through a kill."""

import dataclasses
import json
import shutil

import pytest
import torch
from helpers.shell import bird, bird_json, distilled, panel
from safetensors.torch import load_file

from bird.errors import UsageError
from bird.methods import METHODS, Hyperparameters
from bird.students import load_student
from bird_cache.store import open_cache
from bird_pipelines.config import Weights, resolve
from bird_pipelines.distilling.evaluate import evaluate
from bird_pipelines.distilling.training import Trainer, distill, read
from bird_pipelines.runs import load_checkpoint

IMAGES = {"student": "shufflenetv2", "limit": 100, "epochs": 2, "warmup": 1, "meta_per_cell": 1, "batch_size": 32}
GROUPS = 2


@pytest.fixture(scope="module")
def maps(flags, tmp_path_factory):
    """The cache with the maps of the teacher's residual stages."""
    folder = tmp_path_factory.mktemp("maps") / "cache"
    bird("precompute", *flags, "--layers", "penultimate,maps", "--out", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_an_image_student(maps, tmp_path, method):
    info = distilled(maps, tmp_path / "run", method=method, **IMAGES)
    assert info["complete"]
    assert evaluate(tmp_path / "run") == info["metrics"]["test"]
    line = json.loads((tmp_path / "run" / "curve.jsonl").read_text().splitlines()[-1])
    learns = method.startswith("bird") and not method.endswith("no-meta")
    assert (line["meta_bias"] is not None) == learns
    offsets = method.startswith("bird-offsets")
    assert (line["gate"] is not None) == (method.startswith("bird") and not offsets)
    assert (line["offsets"] is not None) == offsets


@pytest.mark.parametrize("method", ["at", "bird+at"])
def test_attention_needs_maps_on_both_sides(cache, tmp_path, method):
    done = bird("distill", "--cache", cache, "--method", method, "--out", tmp_path / "run", code=2)
    assert "a student of vectors, without spatial maps" in panel(done)
    with pytest.raises(UsageError, match="--layers penultimate,"):
        distilled(cache, tmp_path / "other", method=method, **IMAGES)


def test_feedback_through_the_last_stage_needs_stages(cache, tmp_path):
    done = bird("distill", "--cache", cache, "--feedback-through", "last", "--out", tmp_path / "run", code=2)
    assert "which has no stages" in panel(done)
    assert not (tmp_path / "run").exists()
    info = distilled(
        cache, tmp_path / "other", feedback_through="last", method="bird-offsets", **IMAGES | {"student": "tiny-resnet"}
    )
    assert info["config"]["feedback_through"] == "last"
    assert info["complete"]


def test_a_balanced_head_serves_small_cells_better(cache, tmp_path):
    """The teacher that bkd hears: on train rows of the smallest cells it is right at least as often as the plain one."""
    from bird.devices import choose_device
    from bird_pipelines.distilling.teacher_head import teacher_logits

    right = {}
    for head in ("plain", "balanced"):
        flags = {"dataset": "digits-s", "student": "adapter", "method": "bkd", "cache": cache, "out": tmp_path / "x"}
        config = resolve({**flags, "head": head, "head_epochs": 3})
        data = read(config)
        rows = data.rows("train")
        answers = teacher_logits(data, config.training, choose_device("cpu"))[rows].argmax(1).numpy()
        labels, groups = data.table.labels[rows], data.table.groups[rows]
        counts = data.cell_counts("train").numpy()
        small = counts[labels, groups] < counts.mean() / 2
        right[head] = (answers == labels)[small].mean()
    assert right["balanced"] > right["plain"]


def test_a_cache_with_logits_has_no_head_to_train(flags, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    bird("cache", "fit-head", tmp_path / "cache", "--epochs", 1)
    done = bird(
        "distill",
        "--cache",
        tmp_path / "cache",
        "--method",
        "bkd",
        "--head",
        "balanced",
        "--out",
        tmp_path / "r",
        code=2,
    )
    assert "a cache with the teacher's logits" in panel(done)
    assert not (tmp_path / "r").exists()


class Killed(Exception):
    """In place of a signal: the process would be gone."""


def killed_and_resumed(config, steps):
    """A run that ends after so many steps with no more than its checkpoint, and one that goes on from there."""
    from bird_pipelines import runs

    data = read(config)
    with runs.held(config, data.fingerprint):
        trainer = Trainer(config, data)
    one_step = trainer.one_step

    def step(rows):
        if trainer.step == steps:
            trainer.save()
            raise Killed
        one_step(rows)

    trainer.one_step = step
    with pytest.raises(Killed):
        trainer.run()
    kept = load_checkpoint(config.place.out)[0]
    return kept, distill(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "keeps"),
    [
        ("ad", {"aide.0.weight", "aide.2.bias", "aide_optimizer.0.exp_avg"}),
        ("group-dro", {"aide.q"}),
        ("domain-independent", {"model.student.head.weight"}),
        ("bird+mfd", {"gate.phi", "gate_optimizer.0.exp_avg"}),
        ("bird-plus", {"average.module.head.weight", "average.n_averaged", "gate.phi"}),
        ("bird+at", {"gate.phi.0", "gate.phi.2", "gate_optimizer.2.exp_avg"}),
    ],
)
def test_what_a_method_keeps_survives_a_kill(maps, tmp_path, method, keeps):
    given = IMAGES if method == "bird+at" else {"epochs": 4, "warmup": 1, "batch_size": 32}
    flags = {"dataset": "digits-s", "student": "adapter", "method": method, "cache": maps, "ad_every": 2, **given}
    distill(resolve({**flags, "out": tmp_path / "unbroken"}))
    steps = json.loads((tmp_path / "unbroken" / "run.json").read_text())["steps"] - 1
    kept, _ = killed_and_resumed(resolve({**flags, "out": tmp_path / "killed"}), steps)
    assert keeps <= kept.keys()
    one, two = (tmp_path / name for name in ("unbroken", "killed"))
    assert (one / "student.safetensors").read_bytes() == (two / "student.safetensors").read_bytes()
    last = [load_checkpoint(run)[0] for run in (one, two)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_domain_independent_run_ships_one_student_with_summed_logits(cache, tmp_path):
    distilled(cache, tmp_path / "run", method="domain-independent", epochs=1)
    student = load_student(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "student.safetensors")["head.weight"]
    assert (student.heads, len(weights)) == (GROUPS, GROUPS * student.classes)
    features = torch.from_numpy(open_cache(cache).vectors("penultimate", torch.arange(5).numpy()))
    logits = student(features).logits
    assert logits.shape == (5, student.classes)
    torch.testing.assert_close(logits, student.by_head(features).sum(1))


def test_attention_comes_from_attention_or_from_maps(maps, flags, tmp_path):
    """The same student either way, to the rounding of the stored attention."""
    bird("precompute", *flags, "--layers", "penultimate,attention", "--out", tmp_path / "cache")
    runs = []
    for name, cache in (("maps", maps), ("attention", tmp_path / "cache")):
        settings = {**IMAGES, "epochs": 1, "warmup": 0, "augment": False, "lr": 1e-5}
        distilled(cache, tmp_path / name, method="at", **settings)
        runs.append(json.loads((tmp_path / name / "curve.jsonl").read_text().splitlines()[0])["distance"])
    assert runs[0] == pytest.approx(runs[1], rel=1e-2)


def test_settings_of_the_methods(tmp_path):
    def settings(**given):
        return resolve({"dataset": "digits-s", "student": "adapter", "method": "at", "out": tmp_path, **given})

    usual = settings().weights
    assert (usual.at_beta, usual.mfd_weight, usual.ad_every) == (1e3, 3.0, 1)
    assert settings(preset="paper").weights.at_beta == 1e6
    assert settings(preset="paper", at_beta=2.0).weights.at_beta == 2.0
    assert settings(dataset="celeba").weights.mfd_weight == 7.0
    assert settings(epochs=21).weights.ad_every == 3
    with pytest.raises(UsageError, match="one of paper"):
        settings(preset="papre")


def test_weights_have_the_defaults_of_the_methods():
    """Two records, since the command line loads no torch: a default that is changed in one is changed in both."""
    methods, asked = dataclasses.asdict(Hyperparameters()), dataclasses.asdict(Weights())
    usual = {"average", "ad_every"}  # which the command line may leave to the method
    assert {name: methods[name] for name in asked if name not in usual} == {
        name: value for name, value in asked.items() if name not in usual
    }


def test_the_command_line_has_every_setting(cache, tmp_path):
    options = ("--fitnet-weight", 0.2, "--at-beta", 5, "--mfd-weight", 2, "--ad-weight", 0.5, "--ad-lr", 0.01)
    more = ("--ad-every", 2, "--dro-step", 0.1, "--preset", "paper", "--epochs", 1, "--method", "ad")
    info = bird_json("distill", "--cache", cache, "--out", tmp_path / "run", *options, *more)
    found = {name: info["config"][name] for name in ("fitnet_weight", "at_beta", "mfd_weight", "ad_weight", "ad_lr")}
    assert found == {"fitnet_weight": 0.2, "at_beta": 5, "mfd_weight": 2, "ad_weight": 0.5, "ad_lr": 0.01}
    assert (info["config"]["ad_every"], info["config"]["dro_step"]) == (2, 0.1)

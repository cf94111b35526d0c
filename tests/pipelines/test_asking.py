"""What a command asks of a teacher: one declaration for flags, TOML and Python; said, recorded, and never ignored."""

import json

import numpy as np
import pytest
from helpers.graphs import network
from helpers.service import Peer, truth
from helpers.shell import bird, bird_json, panel

import bird_pipelines
from bird.errors import UsageError
from bird.teachers.protocols import OpenAI
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.config import resolve_precompute

DATA = {"dataset": "digits-s", "limit": 40, "batch_size": 16}
FLAGS = ("--dataset", "digits-s", "--limit", 40, "--batch-size", 16)
SEEN = {"range": "0,255", "mean": "123.7,116.3,103.5", "std": "58,57,57", "output": "features", "image_size": 24}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return network(tmp_path_factory.mktemp("graph") / "tiny.onnx", ("logits", "features", "unit"))


def test_flags_toml_and_python_are_one(graph, tmp_path):
    flags = [word for name, value in SEEN.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = bird("precompute", "--teacher", f"onnx:{graph}", *FLAGS, *flags, "--out", tmp_path / "flags")
    assert "onnx:tiny, assumed: RGB in [0, 255] less mean 123.7,116.3,103.5" in done.stderr, "said, not buried"
    assert "onnx:tiny, vector: output features, 16 numbers, taken as penultimate" in done.stderr
    file = tmp_path / "precompute.toml"
    told = {**SEEN, **DATA, "range": [0, 255], "mean": [123.7, 116.3, 103.5]}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in told.items()))
    name = f"onnx:{graph}"
    bird_pipelines.precompute(teacher=name, dataset="digits-s", out=tmp_path / "file", config=file)
    spoken = {**{name: value for name, value in SEEN.items() if name != "range"}, "range_": (0, 255)}
    bird_pipelines.precompute(teacher=name, out=tmp_path / "python", **spoken, **DATA)
    stores = [open_cache(tmp_path / each) for each in ("flags", "file", "python")]
    assert len({store.fingerprint for store in stores}) == 1
    preprocessing = stores[0].manifest.plan.causes["preprocessing"]
    assert preprocessing["range"] == [0.0, 255.0]
    assert preprocessing["mean"] == [123.7, 116.3, 103.5]
    assert preprocessing["resize"] == [24, 24]
    plain = resolve_precompute({"teacher": name, "out": "x", "dataset": "digits-s", "limit": 7}, file)
    assert (plain.rows.limit, plain.work.batch_size, plain.asked.image_size) == (7, 16, 24), "flags win"


def test_what_is_assumed_is_recorded_and_shown(graph, tmp_path):
    order = ("precompute", "--teacher", f"onnx:{graph}", *FLAGS, "--output", "unit", "--out", tmp_path / "cache")
    plan = bird_json(*order, "--dry-run")
    assert (plan["images"], plan["kind"]) == (40, "projection_l2")
    assert plan["assumed"].startswith("RGB in [0, 1], the whole image resized to 128 x 128")
    bird(*order)
    shown = " ".join(bird("cache", "info", tmp_path / "cache").stdout.split())
    assert "RGB in [0, 1], the whole image resized to 128 x 128" in shown
    assert "output unit, 16 numbers, taken as projection_l2" in shown
    verify = ("cache", "verify", tmp_path / "cache", "--teacher", f"onnx:{graph}", "--sample", 10)
    assert bird_json(*verify, "--output", "unit")["sound"]
    assert "preprocessing.reading" in panel(bird(*verify, "--output", "features", code=3))
    scaled = panel(bird(*verify, "--output", "unit", "--range", "0,255", code=3))
    assert "preprocessing.range = [0.0, 255.0] now" in scaled


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"kind": "logits"}, "--kind"),
        ({"image_size": 64}, "--image-size"),
        ({"output": "features"}, "--output"),
        ({"mean": (0.5, 0.5, 0.5)}, "--mean"),
        ({"requests_per_minute": 10}, "--requests-per-minute"),
        ({"price_per_1000": 1.0}, "--price-per-1000"),
        ({"api_key_env": "KEY"}, "--api-key-env"),
    ],
)
def test_a_run_refuses_what_it_cannot_honour(teacher, tmp_path, options, where):
    with pytest.raises(UsageError) as caught:
        bird_pipelines.precompute(teacher=f"run:{teacher}", out=tmp_path / "cache", **DATA, **options)
    assert caught.value.where.startswith(where)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"weights": "file"}, {"mean": "0.5,0.5,0.5"}])
def test_a_service_refuses_what_it_cannot_honour(tmp_path, options):
    address = "http+openai://127.0.0.1:9/m?key=secret"
    with pytest.raises(UsageError) as caught:
        bird_pipelines.precompute(teacher=address, out=tmp_path / "cache", **DATA, **options)
    assert next(iter(options)) in caught.value.where
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["0.5", "a,b,c", "0.5,0.5", [0.5, 0.5]])
def test_three_numbers_are_three(value):
    with pytest.raises(UsageError, match="--mean"):
        resolve_precompute({"teacher": "onnx:x", "dataset": "digits-s", "out": "y", "mean": value})


def test_help_has_a_panel_for_what_the_teacher_takes():
    text = bird("precompute", "--help").stdout
    panel = text.split("What the teacher takes and gives")[1].split("╰")[0]
    for option in ("--image-size", "--kind", "--output", "--range", "--mean", "--std"):
        assert option in panel


def test_a_service_of_text_is_one_panel(tmp_path):
    with Peer(embeds=lambda image: truth(b"#" + image)) as peer:
        name = f"http+openai://{peer.host}/m"
        done = bird("precompute", "--teacher", name, *FLAGS, "--out", tmp_path / "cache", code=4)
    assert "a model of images" in panel(done)
    assert not (tmp_path / "cache").exists()


def test_an_unfinished_cache_of_other_bytes_is_not_gone_on_with(tmp_path, monkeypatch):
    """Its first rows saw photos as they were; the rest would see them as we do."""
    with Peer() as peer:
        order = {"teacher": f"http+openai://{peer.host}/m", "out": tmp_path / "cache", **DATA}
        with monkeypatch.context() as before:
            before.setattr(OpenAI, "sent", {"sent": "original bytes, or PNG of altered pixels"})
            bird_pipelines.precompute(**order)
        finished = open_cache(tmp_path / "cache")
        assert np.isfinite(finished.vectors("penultimate", np.arange(40))).all(), "a finished one opens as before"
        with pytest.raises(StaleCacheError, match=r"preprocessing\.sent"):
            bird_pipelines.precompute(**order)

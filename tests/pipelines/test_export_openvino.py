"""An ONNX student in OpenVINO: the real runtime, in the precision that was asked for, and not a word to anybody."""

import base64
import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bird.errors import RunError, UsageError
from bird.students import load_student
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.formats import EXTRAS
from bird_pipelines.shipping.openvino import open_openvino
from bird_pipelines.shipping.predict import predict

missing = [name for name in (*EXTRAS, "openvino") if importlib.util.find_spec(name) is None]
needs_openvino = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(missing)} not installed (the extras [export,openvino])"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny real student of Digits-S that has learned something."""
    folder = tmp_path_factory.mktemp("student") / "run"
    flags = {"dataset": "digits-s", "student": "tiny-resnet", "method": "baseline", "epochs": 3, "batch_size": 64}
    distill(resolve({**flags, "out": folder}))
    return folder


WATCHED = """
import os, pathlib, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"):
        pathlib.Path(os.environ["HOME"], event).touch()  # a child process leaves it, too

sys.addaudithook(watch)
"""


def alone(script, home, *args):
    """A process of its own, with an empty home folder, that must leave nothing there and ask nobody; what it prints."""
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + script, *map(str, args)],
        env={**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "CI": ""},  # with CI=true its telemetry is off
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [*home.rglob("*")] == []
    return done.stdout


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    """An export whose process was watched."""
    folder = tmp_path_factory.mktemp("shipped")
    arguments = ("export", run, folder / "out", "--runtime", "openvino", "--compute", "fp32", "--check-rows", 300)
    alone("from bird_pipelines.cli import main\nmain()", folder / "home", *arguments)
    return folder / "out"


@needs_openvino
def test_the_file_is_checked_in_openvino_which_computes_as_it_was_told(run, shipped):
    about = json.loads((shipped / "student.json").read_text())
    runtime, check = about["runtime"], about["check"]
    assert (runtime["name"], runtime["compute"], {*runtime["layers"]}) == ("openvino", "fp32", {"f32"})
    assert "f32" in about["effective_precision"]
    assert check["accepted"]
    assert check["flips"] == {"changed": 0, "rows": 300}
    assert check["batch_sizes"] == {"largest": 64, "flips": {"changed": 0, "rows": 300}, "ties": 0}
    kept = about["reference"]["input"]
    rows = np.frombuffer(base64.b64decode(kept["base64"]), np.uint8).reshape(kept["shape"]).copy()
    expected = load_student(run)(torch.from_numpy(rows).float() / 255).logits
    np.testing.assert_allclose(about["reference"]["logits"], expected.numpy(), rtol=1e-4, atol=1e-4)
    text = (shipped / "README.md").read_text()
    assert f"was run by openvino {runtime['version']}, {runtime['device']}, on 300 test rows" in text
    assert f"- precision: {about['effective_precision']}" in text


@needs_openvino
def test_the_script_of_the_card_and_bird_predict_say_what_the_student_says(run, shipped, tmp_path):
    text = (shipped / "README.md").read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    script = f"os.chdir({str(shipped)!r})\n" + text.split("```python")[1].split("```")[0]
    said = alone(script, tmp_path / "home", tmp_path / "image.png").split()[-1]
    expected = load_student(run)(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255).logits
    assert said == str(expected.argmax().item())
    predict(shipped, [tmp_path / "image.png"], tmp_path / "answers.csv")
    (row,) = csv.DictReader((tmp_path / "answers.csv").read_text().splitlines())
    assert row["predicted"] == said
    found = [float(row[f"p_{name}"]) for name in range(10)]
    np.testing.assert_allclose(found, torch.softmax(expected[0], 0).numpy(), atol=1e-5)


@needs_openvino
@pytest.mark.parametrize(("compute", "called", "flag"), [("bf16", "bf16", "bf16"), ("fp16", "f16", "fp16")])
def test_a_lower_precision_is_what_openvino_computes_in_or_is_refused(run, tmp_path, compute, called, flag):
    """OpenVINO 2026.4.1 answers in bf16 where f16 was asked for and the processor has bf16 alone."""
    if any(each.endswith(f"_{flag}") for each in Path("/proc/cpuinfo").read_text().split()):
        about = export(run, tmp_path / "out", runtime="openvino", compute=compute, rows=200, allow_drift=True)
        assert about["runtime"]["layers"][called] > 5
        assert about["check"]["flips"]["changed"] <= 4
    else:
        with pytest.raises(UsageError, match=f"does not compute in {called}"):
            export(run, tmp_path / "out", runtime="openvino", compute=compute, rows=200)
        assert [*tmp_path.iterdir()] == []


@needs_openvino
def test_eight_bits_are_computed_in_eight_bits(run, tmp_path):
    about = export(
        run, tmp_path / "out", precision="int8", runtime="openvino", calibrate=100, allow_drift=True, rows=200
    )
    layers = about["runtime"]["layers"]
    assert layers.get("u8", 0) + layers.get("i8", 0) > 5


@needs_openvino
def test_a_damaged_file_is_one_message(tmp_path):
    (tmp_path / "student.onnx").write_bytes(b"no graph")
    with pytest.raises(RunError, match="a file that OpenVINO cannot load"):
        open_openvino(tmp_path / "student.onnx", "fp32")


MISUSE = {
    "unknown runtime": ({"runtime": "openvin"}, "did you mean openvino"),
    "a runtime of another format": ({"to": "pt2", "runtime": "openvino"}, "one of torch"),
    "a runtime that computes as it does": ({"compute": "bf16"}, "add --runtime openvino"),
    "unknown precision": ({"runtime": "openvino", "compute": "int8"}, "one of fp32, bf16, fp16"),
}


@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in EXTRAS), reason="without the extra [export]")
@pytest.mark.parametrize(("arguments", "said"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_told(run, tmp_path, arguments, said):
    with pytest.raises(UsageError, match=said):
        export(run, tmp_path / "out", **arguments)
    assert [*tmp_path.iterdir()] == []


def test_openvino_that_is_not_installed_is_one_message(run, tmp_path, monkeypatch):
    monkeypatch.setattr("bird_pipelines.shipping.formats.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(UsageError, match=r"no openvino installed.*pip install .bird-distill.openvino"):
        export(run, tmp_path / "out", runtime="openvino")

"""Students leave as files that run elsewhere, and a file that is not the student any more stays here."""

import base64
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.shell import bird, bird_json, distilled, panel, stranger
from PIL import Image

from bird.errors import RunError, UsageError
from bird.images import WHITE, decode_image
from bird.student_views import center_view, unit_range
from bird.students import Student, build_student, load_student
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.runs import write_json
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.formats import EXTRAS
from bird_pipelines.shipping.networks import summed_heads
from bird_pipelines.shipping.quantise import static_int8
from bird_pipelines.shipping.snippets import PIXELS, VECTORS

missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (the extra [export])")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny real student of Digits-S that has learned something."""
    folder = tmp_path_factory.mktemp("student") / "run"
    flags = {"dataset": "digits-s", "student": "tiny-resnet", "method": "baseline", "epochs": 3, "batch_size": 64}
    distill(resolve({**flags, "out": folder}))
    return folder


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "out"
    export(run, folder)
    return folder


STRANGER = """
import base64, json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
held = session.get_modelmeta().custom_metadata_map
reference = json.loads(held["reference"])
kept = reference["input"]
rows = np.frombuffer(base64.b64decode(kept["base64"]), kept["dtype"]).reshape(kept["shape"])
inputs = rows.astype(np.float32) / np.float32(255) if kept["dtype"] == "uint8" else rows
logits, features = session.run(None, {json.loads(held["input"])["name"]: inputs})
names = json.loads(held["class_names"])
assert [names[each] for each in logits.argmax(1)] == reference["predictions"]
np.testing.assert_allclose(logits, reference["logits"], rtol=1e-4, atol=1e-4)
assert not {"torch", "bird"} & {*sys.modules}
print(json.dumps([session.get_outputs()[0].name, session.get_inputs()[0].shape, logits.tolist()]))
"""


@needs_extra
def test_a_script_without_this_project_runs_the_graph_with_equal_predictions(run, shipped):
    first, shape, logits = json.loads(stranger(STRANGER, shipped / "student.onnx"))
    about = json.loads((shipped / "student.json").read_text())
    assert (first, shape) == ("logits", ["batch", 3, 32, 32])
    kept = about["reference"]["input"]
    rows = np.frombuffer(base64.b64decode(kept["base64"]), np.uint8).reshape(kept["shape"]).copy()
    assert len(rows) == 8
    expected = load_student(run)(torch.from_numpy(rows).float() / 255).logits
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert len(set(about["reference"]["predictions"])) > 1
    check = about["check"]
    assert check["accepted"]
    assert check["flips"] == {"changed": 0, "rows": 1078}
    assert check["batch_sizes"]["flips"] == {"changed": 0, "rows": 1000}
    assert list(check)[-1] == "mean_deo"
    assert about["files"]["student.onnx"]["bytes"] == (shipped / "student.onnx").stat().st_size


@needs_extra
def test_the_card_has_groups_the_check_and_a_snippet_that_runs(run, shipped, tmp_path):
    text = (shipped / "README.md").read_text()
    metrics = json.loads((run / "metrics-test.json").read_text())
    assert f"| accuracy | {metrics['accuracy']:.1f} |" in text
    assert "| colour | 539 |" in text
    assert "What it must not be used for" in text
    snippet = text.split("```python")[1].split("```")[0]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    said = stranger(snippet, tmp_path / "image.png", cwd=shipped).split()[-1]
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    assert said == str(load_student(run)(inputs).logits.argmax().item())


STRICT = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")


@pytest.mark.parametrize("white", [None, 4095])
def test_the_script_of_a_card_makes_the_pixels_of_training_of_odd_images_too(white, tmp_path):
    rng = np.random.default_rng(0)
    colours, alpha = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.integers(0, 256, (16, 16, 1), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb = Image.fromarray(colours)
    rgb.save(tmp_path / "turned.png", exif=turned)
    rgb.convert("L").save(tmp_path / "gray.png")
    Image.fromarray(np.concatenate([colours, alpha], 2)).save(tmp_path / "alpha.png")
    Image.fromarray(np.concatenate([colours[..., :1], alpha], 2)).save(tmp_path / "gray-alpha.png")
    rgb.quantize(8).save(tmp_path / "palette.png", transparency=bytes([0, 40, 128, 200, 255, 255, 255, 0]))
    rgb.quantize(8).save(tmp_path / "one-colour.png", transparency=3)
    Image.fromarray(rng.integers(0, 5000, (16, 16)).astype(np.uint16)).save(tmp_path / "deep.png")
    own = {} if white is None else {"white_level": white}
    about = {"input": {"shape": ["batch", 3, 16, 16], **own}, "class_names": ["été"]}
    write_json(tmp_path / "student.json", about)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    script = PIXELS + 'np.save("pixels.npy", np.concatenate([pixels(each) for each in sys.argv[1:]]))'
    stranger(script, *names, cwd=tmp_path, flags=STRICT)
    for name, found in zip(names, np.load(tmp_path / "pixels.npy"), strict=True):
        image = decode_image((tmp_path / name).read_bytes(), name, white_level=white or WHITE)
        np.testing.assert_array_equal(found, unit_range(center_view(image, 16)).numpy(), err_msg=name)


def test_the_script_for_vectors_reads_names_in_utf8(tmp_path):
    write_json(tmp_path / "student.json", {"class_names": ["été"]})
    np.save(tmp_path / "vectors.npy", np.zeros((1, 2)))
    script = VECTORS + 'assert about["class_names"] == ["\\u00e9t\\u00e9"]'
    stranger(script, "vectors.npy", cwd=tmp_path, flags=STRICT)


@needs_extra
def test_int8_is_static_balanced_and_measured(run, tmp_path):
    about = export(run, tmp_path / "out", precision="int8", calibrate=100, allow_drift=True, rows=200)
    calibration = about["calibration"]
    assert calibration["quantised_share"] > 0.9
    assert len(calibration["ids"]) == sum(calibration["rows_by_cell"].values()) <= 100
    assert max(calibration["rows_by_cell"].values()) == 5
    assert all(each.startswith("train-") for each in calibration["ids"])  # meta is carved from train, test is not seen
    assert [*about["files"]] == ["student.onnx"]
    with pytest.raises(UsageError, match="0 rows to calibrate on"):
        export(run, tmp_path / "empty", precision="int8", calibrate=0)
    assert not (tmp_path / "empty").exists()


def far_off(source, target, batches):
    """onnxruntime's own quantiser, calibrated on inputs a thousand times too bright: ranges so wide that all is 0."""
    static_int8(source, target, (1000 * batch for batch in batches))


@needs_extra
def test_a_quantiser_that_collapses_the_student_is_refused_though_its_gap_is_small(run, tmp_path):
    with pytest.raises(RunError) as caught:
        export(run, tmp_path / "out", precision="int8", quantiser=far_off)
    for part in ("accuracy falls from", "recall falls by more than 3 points in", "% of predictions change"):
        assert part in caught.value.found
    assert "DEO" not in caught.value.found
    assert [*tmp_path.iterdir()] == []
    about = export(run, tmp_path / "out", precision="int8", quantiser=far_off, allow_drift=True)
    (before, gap), (_, accuracy) = about["check"]["mean_deo"], about["check"]["accuracy"]
    assert gap < before / 2  # it looks the fairest
    assert accuracy < 20
    assert not about["check"]["accepted"]
    assert "It drifted" in (tmp_path / "out" / "README.md").read_text()


@needs_extra
def test_a_quantiser_that_does_nothing_is_refused_even_with_allow_drift(run, tmp_path):
    with pytest.raises(RunError, match="0 % of the weights in 8 bits"):
        export(
            run,
            tmp_path / "out",
            precision="int8",
            quantiser=lambda source, target, batches: shutil.copy(source, target),
            allow_drift=True,
        )
    assert [*tmp_path.iterdir()] == []


@needs_extra
@pytest.mark.parametrize(("to", "precision"), [("onnx", "fp16"), ("pt2", "fp32"), ("pt2", "fp16")])
def test_other_formats_answer_as_the_student(run, tmp_path, to, precision):
    about = export(run, tmp_path / "out", to, precision=precision, rows=100)
    assert about["check"]["flips"]["changed"] <= 2
    assert about["check"]["flips"]["rows"] == 100


@needs_extra
def test_a_plain_torchvision_student_leaves_as_one_and_a_cache_that_moved_is_found(tmp_path, teacher):
    """A ShuffleNet at 64 pixels on a table of one's own, distilled from a cache that moves away."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for number in range(120):
        tint = np.array([[80, 0, 0], [0, 0, 80]][number // 2 % 2])
        pixels = np.clip(rng.integers(0, 170, (64, 64, 3)) + tint, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{('no', 'yes')[number // 2 % 2]},{'ab'[number % 2]}")
    (tmp_path / "data").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "data" / path.name)
    (tmp_path / "data" / "samples.csv").write_text("\n".join(lines))
    bird(
        *("precompute", "--teacher", f"run:{teacher}", "--dataset", "table"),
        *("--data-root", tmp_path / "data", "--out", tmp_path / "cache"),
    )
    flags = {"student": "shufflenetv2", "method": "fitnet", "epochs": 1, "data_root": tmp_path / "data"}
    distilled(tmp_path / "cache", tmp_path / "run", **flags, batch_size=32)
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "data").rename(tmp_path / "images")
    assert "--cache" in panel(bird("export", tmp_path / "run", tmp_path / "out", "--to", "torch", code=2))
    moved = ("--cache", tmp_path / "moved", "--data-root", tmp_path / "images")
    about = bird_json("export", tmp_path / "run", tmp_path / "out", "--to", "torch", *moved)
    assert about["class_names"] == ["no", "yes"]
    snippet = (tmp_path / "out" / "README.md").read_text().split("```python")[1].split("```")[0]
    said = stranger(snippet, tmp_path / "images" / "3.png", cwd=tmp_path / "out")
    assert said.split()[-1] in ("no", "yes")
    flags |= {"student": "resnet18", "method": "baseline", "data_root": tmp_path / "images"}
    distilled(tmp_path / "moved", tmp_path / "resnet", **flags, batch_size=32)
    about = export(tmp_path / "resnet", tmp_path / "hub", "hf")
    assert [*about["files"]] == ["config.json", "model.safetensors"]
    assert about["check"]["flips"]["changed"] == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: timm\n")
    said = stranger(text.split("```python")[1].split("```")[0], tmp_path / "images" / "3.png", cwd=tmp_path / "hub")
    assert said.split()[-1] in ("no", "yes")


@needs_extra
def test_an_adapter_takes_the_vectors_of_its_teacher_and_says_whose(cache, tmp_path):
    distilled(cache, tmp_path / "run", epochs=1)
    about = export(tmp_path / "run", tmp_path / "out", rows=200)
    first, shape, _ = json.loads(stranger(STRANGER, tmp_path / "out" / "student.onnx"))
    assert (first, shape) == ("logits", ["batch", 1024])
    assert about["input"]["name"] == "features_of_teacher"
    assert "run:shufflenetv2" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match="torchvision does not have"):
        export(tmp_path / "run", tmp_path / "torch", "torch")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "run"]


def test_heads_that_are_summed_are_one():
    student = build_student("shufflenetv2", classes=3, image_size=64, seed=0, heads=2).eval()
    one, pixels = summed_heads(student), torch.rand(2, 3, 64, 64)
    assert isinstance(one, Student)
    torch.testing.assert_close(one(pixels).logits, student(pixels).logits)


def test_the_stem_for_small_images_is_not_torchvisions(teacher, tmp_path):
    with pytest.raises(UsageError, match="stem for small images"):
        export(teacher, tmp_path / "out", "torch", rows=20)
    assert not (tmp_path / "out").exists()


def without(run, copy, name):
    shutil.copytree(run, copy)
    (copy / name).unlink()
    return copy


MISUSE = {
    "unknown format": (("--to", "onx"), "did you mean onnx"),
    "unknown precision": (("--precision", "int4"), "one of fp32, fp16, int8"),
    "a precision that the format has not": (("--to", "pt2", "--precision", "int8"), "one of fp32, fp16"),
}


@needs_extra
@pytest.mark.parametrize(("arguments", "said"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_told(run, tmp_path, arguments, said):
    assert said in panel(bird("export", run, tmp_path / "out", *arguments, code=2))
    assert [*tmp_path.iterdir()] == []


@needs_extra
def test_an_unfinished_run_a_folder_in_use_and_a_run_without_test_rows(run, cache, tmp_path):
    with pytest.raises(RunError, match="unfinished"):
        export(without(run, tmp_path / "copy", "run.json"), tmp_path / "out")
    with pytest.raises(RunError, match="no run folder"):
        export(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="a new or an empty folder"):
        export(run, tmp_path / "used")
    distilled(cache, tmp_path / "chosen", epochs=1, choose=0)
    with pytest.raises(RunError, match="no test rows"):
        export(tmp_path / "chosen", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_one_message(run, tmp_path, monkeypatch):
    monkeypatch.setattr("bird_pipelines.shipping.formats.EXTRAS", ("onnx", "onnx_that_nobody_has"))
    with pytest.raises(UsageError, match=r"no onnx_that_nobody_has installed.*pip install .bird-distill.export"):
        export(run, tmp_path / "out")

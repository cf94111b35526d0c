"""Students that are not ours leave, too: timm's, and modules of one's own with pooling, group norm and attention."""

import json
import logging

import numpy as np
import pandas
import pytest
import torch
from helpers.shell import stranger
from PIL import Image
from torch import nn

from bird.errors import RunError, UsageError
from bird.students import named_student
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.predict import predict

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

NETS = '''
import torch
from torch import nn


class Pooled(nn.Module):
    """Pools 15 x 15 maps to 4 x 4, which does not go even; logits alone."""

    def __init__(self, classes, image_size):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.end = nn.ModuleDict({"last": nn.Linear(8 * 4 * 4, classes)})

    def forward(self, pixels):
        return self.end["last"](self.body(pixels).flatten(1))


class Attending(nn.Module):
    """Patches, group norm, attention over them; features and logits by name."""

    def __init__(self, classes=2):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.GroupNorm(4, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, classes)

    def forward(self, pixels):
        tokens = self.norm(self.patches(pixels)).flatten(2).transpose(1, 2)
        features = (tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1)
        return {"features": features, "logits": self.head(features)}


class Loud(Pooled):
    """Between two layers its values are beyond 65,504, which half precision cannot hold; its features are not."""

    def forward(self, pixels):
        maps = self.body(pixels) * 3000 * 3000
        return self.end["last"]((maps / 3000 / 3000).flatten(1))


class Choosing(Attending):
    """What it does depends on the values in the images."""

    def forward(self, pixels):
        return super().forward(pixels.flip(3) if pixels.mean() > 0 else pixels)
'''
STUDENTS = ("Pooled", "Attending", "timm:test_vit", "timm:test_resnet")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 60 images of noise, two classes by tint, and the file of the networks."""
    root, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for row in range(60):
        tint = np.array([[90, 0, 0], [0, 0, 90]][row // 2 % 2])
        Image.fromarray((rng.integers(0, 160, (32, 32, 3)) + tint).astype(np.uint8)).save(root / f"{row:02d}.png")
        split = ("train", "meta", "test")[row // 4 % 3]
        lines.append(f"{row:02d}.png,{('no', 'yes')[row // 2 % 2]},{'ab'[row % 2]},{split}")
    (root / "samples.csv").write_text("\n".join(lines))
    (root / "nets.py").write_text(NETS)
    return root


@pytest.fixture(scope="module")
def trained(place):
    """A run of each student, and what --student says of it; each is trained once."""

    def run_of(name):
        given = name if name.startswith("timm:") else f"{place / 'nets.py'}:{name}"
        run = place / f"run-{name.partition(':')[2] or name}"
        if not run.exists():
            data = {"dataset": "table", "data_root": place, "dataset_settings": {"image_size": 32}}
            told = {"student": given, "method": "baseline", "epochs": 1, "batch_size": 16}
            distill(resolve({**data, **told, "out": run}))
        return run, given

    return run_of


def exported(run, given, out, **more):
    logging.disable(logging.WARNING)  # torch.export's own
    try:
        return export(run, out, **more, student=given)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", STUDENTS)
def test_as_onnx_it_is_accepted_and_predicts_what_the_student_predicts(trained, place, tmp_path, name):
    run, given = trained(name)
    about = exported(run, given, tmp_path / "out", batch=7)
    assert about["check"]["accepted"]
    assert about["check"]["flips"]["changed"] == about["check"]["batch_sizes"]["flips"]["changed"] == 0
    pictures = sorted(place.glob("*.png"))[:9]
    predict(tmp_path / "out", pictures, tmp_path / "file.csv", batch=4)
    predict(run, pictures, tmp_path / "run.csv", batch=4, student=given)
    file, student = (pandas.read_csv(tmp_path / f"{which}.csv") for which in ("file", "run"))
    assert file[["id", "predicted"]].equals(student[["id", "predicted"]])
    np.testing.assert_allclose(file.filter(like="p_"), student.filter(like="p_"), atol=1e-5)


def test_half_precision_is_refused_where_a_value_on_the_way_does_not_fit(trained, tmp_path):
    """onnxruntime computes it in float32 on a CPU: the logits are finite there, and the predictions the student's."""
    run, given = trained("Loud")
    with pytest.raises(RunError, match="values inside the graph that half precision cannot hold"):
        exported(run, given, tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()
    about = exported(run, given, tmp_path / "kept", precision="fp16", allow_drift=True)
    assert about["check"]["not_finite"] == 0
    assert about["check"]["beyond_half"]
    assert len(about["check"]["refusals"]) == 1
    for name in ("Pooled", "timm:test_vit"):
        quiet, given = trained(name)
        about = exported(quiet, given, tmp_path / name.replace(":", "-"), precision="fp16", calibrate=0)
        assert about["check"]["beyond_half"] == []


@pytest.mark.parametrize("name", ["Pooled", "Attending", "timm:test_resnet"])
def test_as_a_program_it_is_accepted(trained, tmp_path, name):
    run, given = trained(name)
    about = exported(run, given, tmp_path / "out", to="pt2")
    assert about["check"]["accepted"]
    assert about["check"]["flips"]["changed"] == 0


@pytest.mark.parametrize(
    ("name", "to", "network"),
    [
        (
            "timm:test_vit",
            "torch",
            {"library": "timm", "name": "test_vit", "arguments": {"num_classes": 2, "img_size": 32}},
        ),
        (
            "timm:test_vit",
            "hf",
            {"library": "timm", "name": "test_vit", "arguments": {"num_classes": 2, "img_size": 32}},
        ),
        ("timm:test_resnet", "hf", {"library": "timm", "name": "test_resnet", "arguments": {"num_classes": 2}}),
        ("Pooled", "torch", {"library": "own", "name": "Pooled", "arguments": {"classes": 2, "image_size": 32}}),
        ("Attending", "torch", {"library": "own", "name": "Attending", "arguments": {"classes": 2}}),
    ],
)
def test_as_plain_weights_a_script_builds_it_without_this_project(trained, place, tmp_path, name, to, network):
    """Of one's own the card and student.json say what to give; the script runs with the file beside it."""
    run, given = trained(name)
    about = exported(run, given, tmp_path / "out", to=to)
    assert about["check"]["flips"]["changed"] == 0
    told = about["network"]
    assert {key: told[key] for key in network} == network
    card = (tmp_path / "out" / "README.md").read_text()
    if network["library"] == "own":
        assert f"`{name}` of\nnets.py (sha256 {told['sha256']}), called with classes=2" in card
        assert told["file"] == "nets.py"
        (tmp_path / "out" / "nets.py").write_text(NETS)
    picture = place / "05.png"
    script = card.split("```python")[1].split("```")[0]
    said = stranger(f"import sys; sys.path.insert(0, '.')\n{script}", picture, cwd=tmp_path / "out").split()[-1]
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None].float() / 255
    assert said == about["class_names"][named_student(run, given)(pixels).logits.argmax()]


def test_a_module_that_was_handed_over_says_so_in_its_card(place, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    data = {"dataset": "table", "data_root": place, "dataset_settings": {"image_size": 32}, "method": "baseline"}
    distill(resolve({**data, "student": net, "epochs": 1, "batch_size": 16, "out": tmp_path / "run"}))
    about = exported(tmp_path / "run", net, tmp_path / "out", to="torch")
    assert (about["network"]["name"], about["network"]["arguments"]) == ("Sequential", None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the module as it was handed over" in card
    assert "# your own module goes here: Sequential of container.py" in card


def test_what_cannot_leave_in_a_format_is_one_clear_error(trained, tmp_path):
    run, given = trained("Attending")
    with pytest.raises(UsageError, match="which is your own: timm does not have it"):
        exported(run, given, tmp_path / "out", to="hf")
    run, given = trained("Choosing")
    with pytest.raises(UsageError, match=r"a network that torch.export cannot follow .*--to torch"):
        exported(run, given, tmp_path / "out")
    assert exported(run, given, tmp_path / "out", to="torch")["check"]["accepted"]
    assert json.loads((tmp_path / "out" / "student.json").read_text())["network"]["name"] == "Choosing"

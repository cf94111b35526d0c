"""Students, methods and teachers of one's own, and timm's: from one command to a run, and what records say of them."""

import json
import logging

import numpy as np
import pytest
import timm
import torch
from helpers.own_parts import NET
from helpers.shell import bird, panel
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bird_pipelines
from bird.errors import MissingWeightsError, RunError, TeacherError, UsageError
from bird.methods.distances import Distance
from bird.students import load_student
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.cli import app
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.progress import Interrupted
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.predict import predict

PARTS = (
    NET
    + '''

class Both(Net):
    """Features and logits, by name."""

    def forward(self, pixels):
        features = self.body(pixels)
        return {"features": features, "logits": self.fc(features)}


class Softmax(Net):
    """Its answer is not that of its last linear layer."""

    def forward(self, pixels):
        return super().forward(pixels).softmax(1)


class Frozen(Net):
    """Nothing of it can be trained."""

    def __init__(self, classes):
        super().__init__(classes)
        self.requires_grad_(False)


def seven(image_size, classes=7):
    return Net(7)


def fails(classes):
    raise KeyError("no such size")


def patches(pixels):
    return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)


def chance(pixels):
    return patches(pixels) + torch.randn(len(pixels), 48)


def not_finite(pixels):
    return patches(pixels) / 0


def company(pixels):
    return patches(pixels) - patches(pixels).mean(0)


def one_number(pixels):
    return pixels.mean()


def distant(student, teacher):
    return (student - teacher).abs().mean(1)


def three(h, gated, batch):
    return (h.features - gated).square().mean((-2, -1))


def no_number(student, teacher):
    return distant(student, teacher) * float("nan")


def blind(student, teacher):
    return student.square().mean()
'''
)
SHORT = {"epochs": 2, "warmup": 1, "batch_size": 16, "meta_per_cell": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """80 images of noise, two classes by tint, two groups."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for row in range(80):
        tint = np.array([[90, 0, 0], [0, 0, 90]][row // 2 % 2])
        Image.fromarray((rng.integers(0, 160, (32, 32, 3)) + tint).astype(np.uint8)).save(root / f"{row:02d}.png")
        split = ("train", "train", "meta", "test", "test")[row // 4 % 5]
        lines.append(f"{row:02d}.png,{('no', 'yes')[row // 2 % 2]},{'ab'[row % 2]},{split}")
    (root / "samples.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "parts.py"
    file.write_text(PARTS)
    return file


@pytest.fixture(scope="module")
def small(data, parts, tmp_path_factory):
    """Vectors by a function of the user's."""
    out = tmp_path_factory.mktemp("small") / "cache"
    return precomputed(data, out, teacher=f"{parts}:patches")


def precomputed(data, out, **flags):
    flags = {"dataset": "table", "data_root": data, "settings": {"image_size": 32}, "image_size": 32, **flags}
    bird_pipelines.precompute(**flags, out=out, workers=1)
    return out


def learn(small, data, out, **flags):
    return bird_pipelines.distill(cache=small, out=out, data_root=data, **{"method": "fitnet", **SHORT, **flags})


def alone(data, out, **flags):
    """A baseline, which needs no cache."""
    given = {"dataset": "table", "data_root": data, "dataset_settings": {"image_size": 32}, "method": "baseline"}
    return distill(resolve({**given, "epochs": 1, "batch_size": 16, "out": out, **flags}))


def command(*words):
    """The command line, without a process of its own."""
    app([*map(str, words)], standalone_mode=False)


def test_a_student_a_loss_and_a_teacher_of_ones_own_in_one_command_each(data, parts, tmp_path, capfd):
    where = ("--dataset", "table", "--data-root", data, "--setting", "image_size=32", "--image-size", 32)
    command("precompute", "--teacher", f"{parts}:patches", *where, "--out", tmp_path / "cache")
    command(
        *("distill", "--cache", tmp_path / "cache", "--data-root", data, "--out", tmp_path / "run", "--image-size", 24),
        *("--student", f"{parts}:Net", "--method", f"bird+{parts}:distant"),
        *("--epochs", 2, "--warmup", 1, "--batch-size", 16, "--meta-per-cell", 2, "--feedback-through", "last"),
    )
    said = capfd.readouterr().err
    assert "the features are the input of its last layer fc (8)" in said
    assert said.count("from scratch") == 1
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    digest = open_cache(tmp_path / "cache").manifest.plan.causes["teacher"]["config"]["own"]["sha256"]
    assert info["config"]["own"] == {
        "student": {"attribute": "Net", "sha256": digest},
        "method": {"attribute": "bird+distant", "sha256": digest},
    }
    assert (info["image_size"], info["initial"]) == (24, None)
    assert info["config"]["teacher"] == f"patches@{digest[:12]}"
    with pytest.raises(UsageError, match=r"give it as --student parts.py:Net; no code is imported"):
        command("evaluate", tmp_path / "run")
    command("evaluate", tmp_path / "run", "--student", f"{parts}:Net")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Softmax", "logits alone, which no nn.Linear made as the last step"),
        ("Frozen", "no parameter that can be trained"),
        ("seven", r"logits \(2, 7\).*wanted features \(batch, dim\) and logits \(batch, 2\)"),
        ("fails", "called with classes=2 .KeyError: 'no such size'"),
        ("patches", "called with nothing .TypeError: patches.. missing"),
        ("torch", "an object of module; wanted an nn.Module"),
        ("Nett", "no attribute Nett.*did you mean Net"),
    ],
)
def test_what_is_no_student_is_refused_before_anything_is_written(small, data, parts, tmp_path, name, told):
    with pytest.raises(UsageError, match=told):
        learn(small, data, tmp_path / "run", student=f"{parts}:{name}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blind", "a loss that does not follow from both features"),
        ("no_number", "a loss that is NaN or infinite"),
        ("patches", r"a failure on features \(4, 3\) and \(4, 3\) .TypeError"),
        ("Net", "the class Net; wanted a subclass of bird.methods.Method"),
        ("none", "no attribute none"),
    ],
)
def test_what_is_no_method_is_refused_before_anything_is_written(small, data, parts, tmp_path, name, told):
    with pytest.raises(UsageError, match=told):
        learn(small, data, tmp_path / "run", method=f"{parts}:{name}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("chance", "another vector when asked for the same image again"),
        ("company", "depends on what else is in the batch"),
        ("one_number", r"an answer of shape \(\) for two images; .*call it on torch.rand\(2, 3, 32, 32\)"),
        ("not_finite", r"found 96 of 96 numbers that are not finite.*torch.rand\(2, 3, 32, 32\)"),
        ("torch", "an object of module"),
    ],
)
def test_what_is_no_teacher_is_refused_before_anything_is_written(data, parts, tmp_path, name, told):
    with pytest.raises((UsageError, TeacherError), match=told):
        precomputed(data, tmp_path / "cache", teacher=f"{parts}:{name}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("teacher", "told"),
    [("/far/x.onnx", r"did you mean onnx:/far/x.onnx\?"), ("net.py", r"did you mean net.py:NAME\?")],
)
def test_a_file_as_a_teacher_is_told_its_form(data, tmp_path, teacher, told):
    with pytest.raises((UsageError, TeacherError), match=told):
        precomputed(data, tmp_path / "cache", teacher=teacher)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"method": "fitnet+loss.py:cosine"},
            r"only bird\+ takes a loss of your own; did you mean bird\+loss.py:cosine\?",
        ),
        (
            {"init": "nofile.pth", "student": "tiny-convnet"},
            "--init nofile.pth: found no such file; .*; check the path",
        ),
        ({"lr_schedule": "stepp"}, r"wanted one of constant, step, cosine; did you mean step\?"),
    ],
)
def test_what_is_meant_is_said(flags, told):
    with pytest.raises(UsageError, match=told):
        resolve({"dataset": "digits-s", "student": "adapter", "method": "fitnet", "cache": "x", "out": "y", **flags})


def test_a_module_that_does_not_import_is_one_panel(small, tmp_path):
    (tmp_path / "bad.py").write_text("import not_installed_here\n")
    said = panel(
        bird("distill", "--cache", small, "--student", tmp_path / "bad.py:Net", "--out", tmp_path / "x", code=2)
    )
    assert "No module named 'not_installed_here'" in said
    assert not (tmp_path / "x").exists()


def test_a_changed_file_is_another_student_and_another_teacher(small, data, parts, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PARTS)
    learn(small, data, tmp_path / "run", student=f"{file}:Both", epochs=1, warmup=0)
    file.rename(tmp_path / "renamed.py")
    again = learn(small, data, tmp_path / "run", student=f"{tmp_path / 'renamed.py'}:Both", epochs=1, warmup=0)
    assert again["complete"]
    file.write_text(PARTS + "# a remark\n")
    with pytest.raises(RunError, match=r"own.student.sha256.*that of mine.py.*with mine.py as it was"):
        learn(small, data, tmp_path / "run", student=f"{file}:Both", epochs=1, warmup=0)
    with pytest.raises(UsageError, match=r"found Both of mine.py.*wanted the student of that run again"):
        bird_pipelines.evaluate(tmp_path / "run", student=f"{file}:Both")
    with pytest.raises(StaleCacheError, match=r"own.sha256"):
        precomputed(data, small, teacher=f"{file}:patches")


def test_a_module_with_weights_is_known_by_them_and_stays_as_it_was(small, data, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    before = net[0].weight.clone()
    square = Distance(lambda h, gated, _: (h.features - gated).square().mean())
    info = learn(small, data, tmp_path / "run", student=net, method=square)
    assert torch.equal(net[0].weight, before)
    assert info["config"]["own"]["student"]["weights"].startswith("sha256:")
    assert info["config"]["own"]["method"]["attribute"].startswith("bird+")
    nn.init.zeros_(net[0].bias)
    with pytest.raises(RunError, match=r"own.student.weights"):
        learn(small, data, tmp_path / "run", student=net, method=square)
    other = Distance(lambda h, gated, _: (h.features - gated).abs().mean())
    with pytest.raises(RunError, match=r"own.method.attribute"):
        learn(small, data, tmp_path / "run", student=net, method=other)


def test_a_run_of_an_own_student_is_stopped_resumed_and_ends_to_the_bit(small, data, parts, tmp_path, monkeypatch):
    flags = {"student": f"{parts}:Both", "method": f"{parts}:three", "epochs": 3}
    learn(small, data, tmp_path / "whole", **flags)
    from bird_pipelines.distilling import training

    end = training.Trainer.end_epoch

    def stop(trainer):
        end(trainer)
        raise Interrupted

    monkeypatch.setattr(training.Trainer, "end_epoch", stop)
    with pytest.raises(Interrupted):
        learn(small, data, tmp_path / "broken", **flags)
    monkeypatch.undo()
    learn(small, data, tmp_path / "broken", **flags)
    one, other = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "broken"))
    assert one == other


def test_timm_trains_starts_again_from_its_file_ships_and_answers(data, tmp_path, capfd):
    info = alone(data, tmp_path / "run", student="timm:resnet10t", image_size=40)
    assert (info["config"]["student"], info["image_size"], info["config"]["image_size"]) == ("timm:resnet10t", 40, 40)
    assert bird_pipelines.evaluate(tmp_path / "run", student="timm:resnet10t") == info["metrics"]["test"]
    logging.disable(logging.WARNING)  # torch.export's own
    about = export(tmp_path / "run", tmp_path / "shipped", to="pt2", allow_drift=True, student="timm:resnet10t")
    logging.disable(logging.NOTSET)
    assert about["check"]["flips"]["changed"] == 0
    found = predict(tmp_path / "run", [data / "00.png"], tmp_path / "out.csv", student="timm:resnet10t")
    assert found["images"] == 1
    capfd.readouterr()
    init = tmp_path / "run" / "student.safetensors"
    again = alone(data, tmp_path / "again", student="timm:resnet10t", init=str(init), image_size=40)
    assert again["initial"]["from"] == "student.safetensors"
    assert again["config"]["initial"] != "pretrained"
    assert "starts from student.safetensors" in capfd.readouterr().err


def test_weights_of_timm_itself_with_a_head_of_another_shape(data, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=5)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for name in ("net.safetensors", "net.pth"):
        info = alone(
            data, tmp_path / name.replace(".", "-"), student="timm:resnet10t", init=str(tmp_path / name), lr=1e-12
        )
        assert info["initial"]["left_as_drawn"] == ["fc.bias", "fc.weight"]
        trained = load_student(tmp_path / name.replace(".", "-"))
        assert torch.allclose(trained.backbone.conv1[0].weight, net.conv1[0].weight, atol=1e-6)
    with pytest.raises(UsageError, match=r"missing.*unexpected"):
        alone(data, tmp_path / "other", student="tiny-resnet", init=str(tmp_path / "net.pth"))
    torch.save(net, tmp_path / "pickle.pth")
    with pytest.raises(UsageError, match="cannot be read safely"):
        alone(data, tmp_path / "other", student="timm:resnet10t", init=str(tmp_path / "pickle.pth"))
    with pytest.raises(MissingWeightsError, match="timm's weights of resnet10t"):
        alone(data, tmp_path / "other", student="timm:resnet10t", init="pretrained")
    with pytest.raises(UsageError, match="did you mean timm:resnet10t"):
        alone(data, tmp_path / "other", student="timm:resnet10")
    assert not (tmp_path / "other").exists()


def test_a_run_of_an_own_student_is_no_teacher_by_itself(small, data, parts, tmp_path):
    alone(data, tmp_path / "run", student=f"{parts}:Net")
    with pytest.raises(TeacherError, match="no code is imported because a run names it"):
        precomputed(data, tmp_path / "cache", teacher=f"run:{tmp_path / 'run'}", image_size=None)
    with pytest.raises(UsageError, match="which reads no image"):
        learn(small, data, tmp_path / "x", student="adapter", image_size=64)

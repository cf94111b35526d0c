"""Every layer that a teacher gives, against its definition; asking for more changes nothing and costs no second pass."""

import pytest
import torch

from bird.errors import UsageError
from bird.students import build_student, student_files
from bird.teachers import expand_layers, load_teacher
from bird.teachers.base import TorchTeacher, View

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for name, data in student_files(build_student("resnet18", classes=4, image_size=32, seed=0)).items():
        (folder / name).write_bytes(data)
    return load_teacher(f"run:{folder}")


def vision_transformer():
    import open_clip

    net = open_clip.model.VisionTransformer(
        image_size=32, patch_size=8, width=24, layers=2, heads=2, mlp_ratio=2.0, output_dim=10
    )
    return TorchTeacher(
        "vit", net, View(32, 32), kind="projection", device=CPU, precision="fp32", tokens="ln_post"
    ), net


def test_attention_maps_and_logits_of_a_cnn(run):
    pixels = torch.rand(3, 3, 32, 32)
    layers = expand_layers(run, ["penultimate", "attention", "maps", "logits"])
    assert layers[1:5] == tuple(f"attention.layer{n}" for n in (1, 2, 3, 4))
    answer = run.answer(pixels, layers)
    net = run._module
    with torch.no_grad():
        backbone = net.backbone
        x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1((pixels - net.mean) / net.std))))
        for stage in (1, 2, 3, 4):
            x = getattr(backbone, f"layer{stage}")(x)
            torch.testing.assert_close(answer[f"maps.layer{stage}"], x, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(answer[f"attention.layer{stage}"], x.square().sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer["logits"], net(pixels).logits)
    for name in layers:
        assert answer[name].shape[1:] == run.layers[name].shape
        assert answer[name].dtype == torch.float32


def test_class_and_patch_tokens_of_a_vision_transformer():
    teacher, net = vision_transformer()
    pixels = torch.rand(2, 3, 32, 32)
    answer = teacher.answer(pixels, ("penultimate", "cls", "pooled"))
    with torch.no_grad():
        torch.testing.assert_close(answer["cls"] @ net.proj, net(pixels))
    assert answer["pooled"].shape == (2, 24)
    assert teacher.layers["cls"].kind == "token"


def test_more_layers_change_no_bit_and_take_one_pass(run):
    pixels, passes = torch.rand(4, 3, 32, 32), []
    counter = run._module.register_forward_hook(lambda *_: passes.append(1))
    alone = run.features(pixels)
    whole = run.answer(pixels, expand_layers(run, ["penultimate", "attention", "maps", "logits"]))
    counter.remove()
    assert torch.equal(alone, whole["penultimate"])
    assert len(passes) == 2
    assert not run._module.backbone.layer1._forward_hooks


def test_unknown_layers_are_refused_with_what_there_is(run):
    with pytest.raises(UsageError, match=r"attention\.layer1"):
        expand_layers(run, ["atention"])
    with pytest.raises(UsageError, match="cls"):
        expand_layers(run, ["cls"])

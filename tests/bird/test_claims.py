"""Whatever the teacher: an option that it cannot honour is refused, never ignored."""

import json

import pytest
import torch
from helpers.graphs import network
from safetensors.torch import save_file

from bird.errors import UsageError
from bird.students import build_student, student_files
from bird.teachers import TEACHERS, load_teacher, takes_of

PROCESSOR = {
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Of each way of loading one: its name, what it needs, and the side and kind that it has."""
    from torchvision.models import shufflenet_v2_x0_5
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    (folder / "run").mkdir()
    for name, data in student_files(build_student("shufflenetv2", classes=3, image_size=32, seed=0)).items():
        (folder / "run" / name).write_bytes(data)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    save_file(shufflenet_v2_x0_5(weights=None).state_dict(), folder / "net.safetensors")
    return {
        "run": (f"run:{folder / 'run'}", {}, 32),
        "hf": ("hf:someone/tiny-vit", {"weights": folder / "vit"}, 32),
        "torchvision": ("torchvision:shufflenet_v2_x0_5", {"weights": folder / "net.safetensors"}, None),
        "onnx": (f"onnx:{network(folder / 'a.onnx', ('features', 'logits'))}", {}, None),
        "onnx, fixed": (f"onnx:{network(folder / 'b.onnx', ('features', 'logits'), side=32)}", {}, 32),
    }


NAMES = ("run", "hf", "torchvision", "onnx", "onnx, fixed")


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_size_is_had_or_refused(teachers, name, size):
    spec, needed, fixed = teachers[name]
    if fixed in (None, size):
        teacher = load_teacher(spec, image_size=size, **needed)
        assert teacher.preprocess(torch.zeros(50, 40, 3, dtype=torch.uint8).numpy()).shape == (3, size, size)
        return
    with pytest.raises(UsageError, match=f"--image-size .*found {size}; wanted nothing else than 32 x 32"):
        load_teacher(spec, image_size=size, **needed)


@pytest.mark.parametrize("kind", ["penultimate", "logits", "projection_l2"])
@pytest.mark.parametrize("name", ["run", "hf", "torchvision"])
def test_the_kind_is_so_or_refused(teachers, name, kind):
    spec, needed, _ = teachers[name]
    if kind == "penultimate":
        assert load_teacher(spec, kind=kind, **needed).feature_kind == kind
        return
    with pytest.raises(UsageError, match=f"--kind .*found {kind}; wanted penultimate"):
        load_teacher(spec, kind=kind, **needed)


GIVEN = {
    "weights": "somewhere",
    "precision": "bf16",
    "output": "features",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "range_": (0.0, 255.0),
}


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_kind_of_teacher_has_no_use_for_is_refused(teachers, name, option):
    spec, needed, _ = teachers[name]
    flag = option.rstrip("_")
    if flag in takes_of(spec):
        return
    with pytest.raises(UsageError) as caught:
        load_teacher(spec, **{**needed, option: GIVEN[option]})
    assert caught.value.where == f"--{flag} with --teacher {spec}"


def test_every_teacher_says_what_it_heeds():
    for name, kind in TEACHERS.items():
        assert kind.takes <= {"weights", "precision", "image_size", "kind", "output", "mean", "std", "range"}, name
    assert "api_key_env" in takes_of("http+openai://host/m")
    with pytest.raises(UsageError, match="did you mean"):
        takes_of("clip-vit-b-32")

"""Teachers: the real architectures, tiny and random, saved in the real formats and loaded through the real code."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from bird.errors import TeacherError, UsageError
from bird.students import build_student, student_files
from bird.teachers import TEACHERS, load_teacher
from bird.teachers.base import digest_of_state

SIDE = 32


@pytest.fixture(scope="module")
def image():
    """A smooth picture, taller than wide."""
    y, x = np.mgrid[0:90, 0:70]
    return np.stack([x * 3, y * 2, (x + y) % 255], axis=2).astype(np.uint8)


# ---- how each kind is made, tiny ----------------------------------------------------------------------------------


def clip_weights(folder, name, layers, width, patch):
    """A tiny CLIP of open_clip's own architecture; returns the teacher's name and its weights as a state dict."""
    import open_clip

    vision = {"image_size": SIDE, "layers": layers, "width": width, "patch_size": patch}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": {**vision, "head_width": 16}, "text_cfg": text}
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(0)
    return f"open_clip:{name}/none", open_clip.create_model(name, load_weights=False).state_dict()


def clip_vit(folder):
    """A two-layer ViT."""
    spec, state = clip_weights(folder, "tiny-vit-test", 2, 32, 8)
    save_file(state, folder / "vit.safetensors")
    return spec, folder / "vit.safetensors"


def clip_resnet(folder):
    """CLIP's modified ResNet with one block a stage, as a .pt state dict."""
    spec, state = clip_weights(folder, "tiny-rn-test", [1, 1, 1, 1], 16, None)
    torch.save(state, folder / "rn.pt")
    return spec, folder / "rn.pt"


def flava(folder):
    """A FLAVA with two layers in each tower, as a transformers folder."""
    from transformers import FlavaConfig, FlavaModel

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = FlavaConfig(
        image_config={**small, "image_size": SIDE, "patch_size": 8},
        text_config={**small, "vocab_size": 64},
        multimodal_config=small,
        hidden_size=32,
        projection_dim=16,
    )
    FlavaModel(config).save_pretrained(folder / "flava", safe_serialization=True)
    return "flava", folder / "flava"


def vit_folder(folder):
    """A two-layer ViT of transformers with its own preprocessor_config.json."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**small, image_size=SIDE, patch_size=8)).save_pretrained(folder / "vit", safe_serialization=True)
    described = {"size": {"height": SIDE, "width": SIDE}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(described))
    return "hf:someone/vit", folder / "vit"


def torchvision_shufflenet(folder):
    """A torchvision classifier with seven classes."""
    from torchvision import models

    torch.manual_seed(0)
    save_file(models.shufflenet_v2_x0_5(weights=None, num_classes=7).state_dict(), folder / "shuffle.safetensors")
    return "torchvision:shufflenet_v2_x0_5", folder / "shuffle.safetensors"


def own_run(folder):
    """A student of this project."""
    for name, data in student_files(build_student("shufflenetv2", classes=3, image_size=SIDE, seed=0)).items():
        (folder / name).write_bytes(data)
    return f"run:{folder}", None


def onnx_file(folder, side="H"):
    """Average pool and a linear map: (N, 3, H, W) -> (N, 5)."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, side, side])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "tiny.onnx")
    return f"onnx:{folder / 'tiny.onnx'}", None


KINDS = {
    "clip vit": (clip_vit, 16),
    "clip resnet": (clip_resnet, 16),
    "flava": (flava, 32),
    "hf vit": (vit_folder, 32),
    "torchvision": (torchvision_shufflenet, 1024),
    "run": (own_run, 1024),
    "onnx": (onnx_file, 5),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    make, dim = KINDS[request.param]
    spec, weights = make(tmp_path_factory.mktemp("teacher"))
    return spec, weights, dim


# ---- laws that hold for all -----------------------------------------------------------------------------------------


def test_every_kind_gives_one_vector_an_image(kind, image):
    spec, weights, dim = kind
    teacher = load_teacher(spec, weights=weights)
    assert teacher.dim == dim
    assert "/" not in teacher.name.removeprefix("open_clip:").removeprefix("hf:") or teacher.name.startswith(("open_clip:", "hf:"))
    views = torch.stack([teacher.preprocess(image), teacher.preprocess(image[::-1]), teacher.preprocess(image[:, ::-1])])
    batch = teacher.features(views)
    assert batch.shape == (3, dim)
    assert batch.dtype == torch.float32
    assert not batch.requires_grad
    assert not torch.allclose(batch[0], torch.nn.functional.normalize(batch[0], dim=0)), "vectors are raw"
    one_by_one = torch.cat([teacher.features(view[None]) for view in views])
    torch.testing.assert_close(batch, one_by_one, rtol=1e-4, atol=1e-5)
    json.dumps(dict(teacher.preprocessing))


def test_loading_twice_gives_the_same_teacher(kind, image):
    spec, weights, _ = kind
    one, two = load_teacher(spec, weights=weights), load_teacher(spec, weights=weights)
    assert one.weights_digest == two.weights_digest
    assert one.preprocessing == two.preprocessing
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(one.preprocess, [image] * 16))
    assert all(torch.equal(view, two.preprocess(image)) for view in views)


# ---- each kind's own ------------------------------------------------------------------------------------------------


def test_clip_view_is_open_clips_own(tmp_path, image):
    import open_clip

    spec, weights = clip_vit(tmp_path)
    teacher = load_teacher(spec, weights=weights)
    model = open_clip.create_model("tiny-vit-test", load_weights=False)
    open_clip.load_checkpoint(model, str(weights))
    mean, std = (open_clip.get_model_preprocess_cfg(model)[name] for name in ("mean", "std"))
    own = open_clip.image_transform(SIDE, is_train=False, mean=mean, std=std, interpolation="bicubic")
    view = teacher.preprocess(image)
    torch.testing.assert_close(view, own(Image.fromarray(image)))
    with torch.inference_mode():
        expected = model.eval().encode_image(view[None], normalize=False)
    torch.testing.assert_close(teacher.features(view[None]), expected, rtol=1e-4, atol=1e-5)
    assert teacher.feature_kind == "projection"


def test_flava_vector_is_the_normalised_cls_token(tmp_path, image):
    from transformers import FlavaModel

    spec, weights = flava(tmp_path)
    teacher = load_teacher(spec, weights=weights)
    view = teacher.preprocess(image)[None]
    with torch.inference_mode():
        expected = FlavaModel.from_pretrained(weights).eval().image_model(pixel_values=view).last_hidden_state[:, 0]
    torch.testing.assert_close(teacher.features(view), expected, rtol=1e-4, atol=1e-5)


def test_onnx_side_comes_from_the_graph_else_from_the_person(tmp_path, image):
    spec, _ = onnx_file(tmp_path)
    assert load_teacher(spec).preprocess(image).shape == (3, 128, 128)
    assert load_teacher(spec, image_size=48).preprocess(image).shape == (3, 48, 48)
    spec, _ = onnx_file(tmp_path, side=40)
    assert load_teacher(spec, image_size=48).preprocess(image).shape == (3, 40, 40)


def test_real_squeezenet(shared_data, image):
    teacher = load_teacher(f"onnx:{shared_data / 'teachers' / 'squeezenet1_1-imagenet.onnx'}")
    assert (teacher.dim, teacher.name) == (512, "onnx:squeezenet1_1-imagenet")
    assert torch.isfinite(teacher.features(teacher.preprocess(image)[None])).all()


def test_digest_is_of_values_not_of_files(tmp_path):
    spec, weights = torchvision_shufflenet(tmp_path)
    from safetensors.torch import load_file

    state = load_file(weights)
    torch.save(state, tmp_path / "same.pth")
    first = load_teacher(spec, weights=weights).weights_digest
    assert load_teacher(spec, weights=tmp_path / "same.pth").weights_digest == first
    key = "conv1.0.weight"
    state[key].view(-1)[0] = torch.nextafter(state[key].view(-1)[0], torch.tensor(9.0))  # one unit in the last place
    assert digest_of_state(state) != digest_of_state(load_file(weights))
    torch.save(state, tmp_path / "other.pth")
    assert load_teacher(spec, weights=tmp_path / "other.pth").weights_digest != first


# ---- what is refused ------------------------------------------------------------------------------------------------


class Hostile:
    """Would create a file if it were unpickled freely."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_hostile_weights_file_is_not_executed(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.0.weight": Hostile(tmp_path / "owned")}))
    torch.save({"conv1.0.weight": Hostile(tmp_path / "owned")}, tmp_path / "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(TeacherError, match="read safely"):
            load_teacher("torchvision:resnet18", weights=tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    _, weights = torchvision_shufflenet(tmp_path)
    with pytest.raises(TeacherError, match="missing"):
        load_teacher("torchvision:resnet18", weights=weights)
    spec, folder = flava(tmp_path)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if "image_model.encoder.layer.1" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="weights missing"):
        load_teacher(spec, weights=folder)


@pytest.mark.parametrize("spec", ["clip-vit-b32", "clip-rn50", "flava", "hf:nobody/nothing"])
def test_weights_that_cannot_be_had_say_what_to_fetch(spec, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError) as caught:
        load_teacher(spec)
    assert "--weights" in caught.value.fix
    assert caught.value.exit_code == 4


def test_mistakes_get_suggestions(tmp_path):
    with pytest.raises(UsageError, match="did you mean clip-vit-b32"):
        load_teacher("clip-vit-b-32")
    with pytest.raises(UsageError, match="resnet18"):
        load_teacher("torchvision:resnet81", weights=tmp_path)
    with pytest.raises(TeacherError, match="no such file"):
        load_teacher(f"onnx:{tmp_path / 'absent.onnx'}")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(TeacherError, match="cannot load"):
        load_teacher(f"onnx:{tmp_path / 'text.onnx'}")
    with pytest.raises(TeacherError, match="finished run"):
        load_teacher(f"run:{tmp_path}")
    with pytest.raises(UsageError, match="fp32"):
        load_teacher(own_run(tmp_path)[0], precision="fp8")
    assert all(kind.description for kind in TEACHERS.values())

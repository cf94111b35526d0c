"""Teachers: small real architectures with random weights, saved in the real formats, loaded through the real code.

One long file: all teachers are held to the same laws, with the same few helpers.
"""

import json
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from bird.devices import threads
from bird.errors import BirdError, TeacherError, UsageError
from bird.student_views import center_view
from bird.students import build_student, student_files
from bird.teachers import TEACHERS, expand_layers, load_teacher
from bird.teachers.base import PENULTIMATE

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
CLIP_MODELS = {
    "bird-tiny-vit": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "bird-tiny-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
}
CLIP_DIM = 24
OPEN_CLIP_VIEW = ("mean", "std", "interpolation", "resize_mode")


def photograph(height=90, width=70, seed=0):
    """Smooth random colours with some noise: resampling filters disagree on it, as they do on photographs."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


def batch_of(teacher, count=5):
    return torch.stack([teacher.preprocess(photograph(seed=seed)) for seed in range(count)])


def seen(teacher, image):
    """What the network sees of one image."""
    return teacher.normalise(teacher.preprocess(image)[None])[0]


def save_state(state, path):
    state = {name: value.detach().contiguous() for name, value in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same(found, plain):
    """To rounding, whatever the values' size."""
    return found.shape == plain.shape and (found - plain).norm() <= 1e-5 * plain.norm()


def message(error):
    """A teacher's error says where, what it found, what it wanted, and what to do."""
    assert all((error.value.where, error.value.found, error.value.wanted, error.value.fix))
    return str(error.value)


# ---- real files, small ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_states(tmp_path_factory):
    """Two small CLIP models registered with open_clip: name -> state dict."""
    import open_clip

    folder = tmp_path_factory.mktemp("configs")
    for name, vision in CLIP_MODELS.items():
        config = {"embed_dim": CLIP_DIM, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    states = {}
    for seed, name in enumerate(CLIP_MODELS):
        torch.manual_seed(seed)
        states[name] = open_clip.create_model(name, load_weights=False, pretrained_text=False).state_dict()
    return states


@pytest.fixture(scope="module")
def flava_folder(tmp_path_factory):
    from transformers import FlavaConfig, FlavaModel

    layers = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = FlavaConfig(
        image_config={**layers, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16},
        text_config={**layers, "vocab_size": 64},
        multimodal_config=layers,
        hidden_size=24,
        projection_dim=16,
    )
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("flava")
    FlavaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A small ViT of transformers with a processor unlike the defaults, saved in half precision."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(config).half().save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def shufflenet():
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(4)
    return shufflenet_v2_x0_5(weights=None, num_classes=7)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for name, data in student_files(build_student("resnet18", classes=3, image_size=32, seed=5)).items():
        (folder / name).write_bytes(data)
    return folder


def write_onnx(path, height="height", width="width", rank=2, external=False, dim=6, scale=1.0, inputs=3):
    """Colour averages through a matrix: (N, 3, H, W) -> (N, dim), or (N, dim, 1, 1) with rank 4; `map` (N, 3, H, W) too."""
    rng = np.random.default_rng(6)
    matrix = (rng.normal(size=(inputs, dim)) * scale).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["pixels"], ["map"]),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["vector"]),
        helper.make_node("Reshape", ["vector", "shape"], ["answer"]),
    ]
    shape = np.array([0, dim, 1, 1][:rank], dtype=np.int64)
    answers = {"map": ["batch", inputs, height, width], "answer": ["batch", dim, 1, 1][:rank]}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", inputs, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in answers.items()],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(shape, "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external:  # the matrix (72 bytes) beside the graph, the shape (16 or 32 bytes) in it
        onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=64)
    else:
        onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def teachers(clip_states, flava_folder, vit_folder, shufflenet, run_folder, tmp_path_factory):
    """One of every kind, small."""
    folder = tmp_path_factory.mktemp("weights")
    vit = save_state(clip_states["bird-tiny-vit"], folder / "vit.safetensors")
    rn = save_state(clip_states["bird-tiny-rn"], folder / "rn.safetensors")
    net = save_state(shufflenet.state_dict(), folder / "net.safetensors")
    return {
        "clip-vit": load_teacher("open_clip:bird-tiny-vit/none", weights=vit),
        "clip-rn": load_teacher("open_clip:bird-tiny-rn/none", weights=rn),
        "flava": load_teacher("flava", weights=flava_folder),
        "hf": load_teacher("hf:someone/tiny-vit", weights=vit_folder),
        "torchvision": load_teacher("torchvision:shufflenet_v2_x0_5", weights=net, image_size=64),
        "run": load_teacher(f"run:{run_folder}"),
        "onnx": load_teacher(f"onnx:{write_onnx(folder / 'colours.onnx')}"),
    }


KINDS = ("clip-vit", "clip-rn", "flava", "hf", "torchvision", "run", "onnx")


# ---- what every teacher promises --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dim", "feature_kind", "side"),
    [
        ("clip-vit", CLIP_DIM, "projection", 32),
        ("clip-rn", CLIP_DIM, "projection", 64),
        ("flava", 24, "penultimate", 32),
        ("hf", 24, "penultimate", 32),
        ("torchvision", 1024, "penultimate", 64),
        ("run", 512, "penultimate", 32),
        ("onnx", 6, "penultimate", 128),
    ],
)
def test_shapes_and_kinds(teachers, kind, dim, feature_kind, side):
    teacher = teachers[kind]
    pixels = batch_of(teacher)
    assert pixels.shape == (5, 3, side, side)
    assert pixels.dtype == torch.uint8
    vectors = teacher.features(pixels)
    assert vectors.shape == (5, teacher.dim) == (5, dim)
    assert vectors.dtype == torch.float32
    assert vectors.device.type == "cpu"
    assert teacher.feature_kind == feature_kind
    assert not torch.allclose(vectors[0], vectors[1]), "two images, one vector"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_one_by_one(teachers, kind):
    teacher = teachers[kind]
    pixels = batch_of(teacher)
    singly = torch.cat([teacher.features(each[None]) for each in pixels])
    torch.testing.assert_close(teacher.features(pixels), singly, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_preprocess_is_a_function_of_the_image_in_any_thread(teachers, kind):
    teacher = teachers[kind]
    images = [photograph(60 + 7 * i, 100 - 5 * i, seed=i) for i in range(8)]
    for image in images:
        image.setflags(write=False)  # decoders hand out read-only arrays
    expected = [teacher.preprocess(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(teacher.preprocess, images * 4))
    assert all(torch.equal(view, expected[i % 8]) for i, view in enumerate(found))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_ask_at_once_hear_only_their_own(teachers, kind):
    """Other batches, and other layers, side by side."""
    teacher = teachers[kind]
    images = [torch.stack([teacher.preprocess(photograph(seed=9 * i + j)) for j in range(3)]) for i in range(4)]
    asked = [(pixels, layers) for pixels in images for layers in ([*teacher.layers], [PENULTIMATE])]
    with threads(1):
        expected = [teacher.answer(*each) for each in asked]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(lambda each: teacher.answer(*each), asked * 4))
    for number, answer in enumerate(found):
        assert answer.keys() == expected[number % len(asked)].keys()
        for layer, value in answer.items():
            torch.testing.assert_close(value, expected[number % len(asked)][layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_features_carry_no_gradient_and_repeat(teachers, kind):
    teacher = teachers[kind]
    pixels = batch_of(teacher, 2)
    with torch.enable_grad():
        vectors = teacher.features(pixels.detach())
    assert not vectors.requires_grad
    assert torch.equal(vectors, teacher.features(pixels.detach())), "dropout or batch statistics are at work"


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_frozen(teachers, kind):
    modules = [part for part in vars(teachers[kind]).values() if isinstance(part, torch.nn.Module)]
    assert modules or kind == "onnx"
    for module in modules:
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_enters_the_fingerprint(teachers, kind):
    teacher = teachers[kind]
    text = json.dumps(dict(teacher.preprocessing), sort_keys=True, allow_nan=False)
    assert json.loads(text) == dict(teacher.preprocessing), "not canonical JSON"
    for path in ("/tmp", "pytest", str(Path.cwd())):
        assert path not in text + teacher.name
    digest = teacher.weights_digest.removeprefix("sha256:")
    assert len(digest) == 64
    assert int(digest, 16)


def test_preprocessings_differ(teachers):
    texts = {json.dumps(dict(teacher.preprocessing), sort_keys=True) for teacher in teachers.values()}
    assert len(texts) == len(teachers)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["clip-vit", "flava", "torchvision"])
def test_low_precision_returns_nearby_float32(request, teachers, tmp_path, kind, precision, shufflenet):
    spec, weights = {
        "clip-vit": lambda: (
            "open_clip:bird-tiny-vit/none",
            save_state(request.getfixturevalue("clip_states")["bird-tiny-vit"], tmp_path / "w.safetensors"),
        ),
        "flava": lambda: ("flava", request.getfixturevalue("flava_folder")),
        "torchvision": lambda: (
            "torchvision:shufflenet_v2_x0_5",
            save_state(shufflenet.state_dict(), tmp_path / "w.pth"),
        ),
    }[kind]()
    low = load_teacher(spec, weights=weights, precision=precision, image_size=64 if kind == "torchvision" else None)
    pixels = batch_of(low)
    vectors, exact = low.features(pixels), teachers[kind].features(pixels)
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, exact)
    assert torch.nn.functional.cosine_similarity(vectors, exact).min() > 0.99
    assert low.weights_digest == teachers[kind].weights_digest, "the weights are the same ones"


# ---- the right vector, from the right pixels --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip-vit", "clip-rn"])
def test_clip_equals_open_clip(teachers, clip_states, kind):
    import open_clip

    name = {"clip-vit": "bird-tiny-vit", "clip-rn": "bird-tiny-rn"}[kind]
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False).eval()
    model.load_state_dict(clip_states[name])
    size = model.visual.image_size
    theirs = open_clip.image_transform(size, is_train=False)
    pixels = teachers[kind].normalise(batch_of(teachers[kind]))
    for seed, view in enumerate(pixels):
        expected = theirs(Image.fromarray(photograph(seed=seed)))
        torch.testing.assert_close(view, expected, rtol=0, atol=2e-6)
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=False)
    torch.testing.assert_close(teachers[kind].features(pixels), expected, rtol=1e-5, atol=1e-6)


def test_a_squashing_model_is_squashed(clip_states, tmp_path, monkeypatch):
    """SigLIP's weights want the whole image squeezed into the square; the view must be open_clip's own."""
    import open_clip
    from open_clip import pretrained

    values = {key: pretrained.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")[key] for key in OPEN_CLIP_VIEW}
    assert values["resize_mode"] == "squash"
    weights = save_state(clip_states["bird-tiny-vit"], tmp_path / "w.safetensors")
    plain = load_teacher("open_clip:bird-tiny-vit/none", weights=weights)
    monkeypatch.setitem(pretrained._PRETRAINED, "bird-tiny-vit", {"squashed": values})
    teacher = load_teacher("open_clip:bird-tiny-vit/squashed", weights=weights)
    theirs = open_clip.image_transform(32, is_train=False, **values)
    image = photograph()
    torch.testing.assert_close(seen(teacher, image), theirs(Image.fromarray(image)), rtol=0, atol=2e-6)
    assert dict(teacher.preprocessing) != dict(plain.preprocessing)


def test_openai_models_are_the_quickgelu_ones():
    """OpenAI trained with QuickGELU; the same weights in the plain configuration answer with other vectors."""
    import open_clip

    for name, dim in (("clip-vit-b32", 512), ("clip-rn50", 1024)):
        model, _, tag = str(TEACHERS[name].spec).partition("/")
        config = open_clip.get_model_config(model)
        assert config["quick_gelu"]
        assert config["embed_dim"] == dim
        assert open_clip.get_pretrained_cfg(model, tag)["quick_gelu"]


def test_flava_is_the_cls_token_after_the_last_norm(teachers, flava_folder):
    from transformers import FlavaImageProcessor, FlavaModel

    model = FlavaModel.from_pretrained(flava_folder).eval()
    teacher = teachers["flava"]
    pixels = teacher.normalise(batch_of(teacher))
    with torch.inference_mode():
        expected = model.image_model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(teacher.features(pixels), expected, rtol=1e-5, atol=1e-6)
    processor = FlavaImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor(Image.fromarray(photograph()), return_tensors="pt")["pixel_values"][0]
    # The processor resamples by torch or by PIL, whichever is installed: they round differently, by a level or two.
    torch.testing.assert_close(seen(teacher, photograph()), theirs, rtol=0, atol=2.5 / 255 / 0.26)


def test_hugging_face_follows_the_folder(teachers, vit_folder):
    """The view of preprocessor_config.json, and float32 arithmetic with half-precision weights."""
    from transformers import ViTModel

    teacher = teachers["hf"]
    preprocessing = dict(teacher.preprocessing)
    assert preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert preprocessing["std"] == [0.4, 0.5, 0.6]
    assert preprocessing["interpolation"] == "bilinear"
    pixels = teacher.normalise(batch_of(teacher))
    model = ViTModel.from_pretrained(vit_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(pixels).pooler_output
    torch.testing.assert_close(teacher.features(pixels), expected, rtol=1e-5, atol=1e-6)


def test_hugging_face_follows_the_repository_too(teachers, vit_folder, tmp_path, monkeypatch):
    """From the hub (here: its local cache, in the hub's layout) the view is the repository's own, as from a folder."""
    from huggingface_hub import constants

    repository, commit = tmp_path / "models--someone--tiny-vit", "0" * 40
    shutil.copytree(vit_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec in ("hf:someone/tiny-vit", "hf:someone/tiny-vit@main"):
        teacher = load_teacher(spec)
        assert teacher.weights_digest == teachers["hf"].weights_digest
        assert dict(teacher.preprocessing) == dict(teachers["hf"].preprocessing)


def test_hugging_face_does_not_guess_pixels(vit_folder, tmp_path):
    folder = shutil.copytree(vit_folder, tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TeacherError) as error:
        load_teacher("hf:someone/tiny-vit", weights=folder)
    assert "preprocessor_config.json" in message(error)


def test_a_model_that_wants_text_beside_the_image_is_refused(vit_folder, tmp_path):
    from transformers import ViltConfig, ViltModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViltModel(ViltConfig(**sizes, image_size=32, patch_size=16, vocab_size=64)).save_pretrained(tmp_path)
    shutil.copy(vit_folder / "preprocessor_config.json", tmp_path)
    with pytest.raises(TeacherError) as error:
        load_teacher("hf:someone/vilt", weights=tmp_path)
    assert "images alone" in message(error)


def test_torchvision_is_the_input_of_the_head(teachers, shufflenet):
    from torchvision.transforms import v2

    teacher = teachers["torchvision"]
    pixels = teacher.normalise(batch_of(teacher))
    net = shufflenet.eval()
    with torch.inference_mode():
        expected = net(pixels)
        found = net.fc(teacher.features(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    theirs = v2.Compose(
        [
            v2.Resize(64 * 256 // 224),
            v2.CenterCrop(64),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    image = photograph()
    torch.testing.assert_close(seen(teacher, image), theirs(Image.fromarray(image)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("arch", ["resnet18", "vgg11", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_architectures_with_their_own_number_of_classes(arch, suffix, tmp_path):
    """Safetensors files are not in the module's order: the head is found by its place in the model."""
    from torchvision import models

    model = models.get_model(arch, weights=None, num_classes=7)
    teacher = load_teacher(
        f"torchvision:{arch}", weights=save_state(model.state_dict(), tmp_path / f"w{suffix}"), image_size=64
    )
    heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert teacher.dim == heads[-1].in_features


def test_run_sees_what_the_student_was_evaluated_on(teachers, run_folder):
    teacher = teachers["run"]
    image = photograph()
    assert torch.equal(seen(teacher, image), center_view(image, 32).float() / 255.0)
    assert teacher.name == "run:resnet18"


def test_runs_that_cannot_teach(run_folder, tmp_path):
    adapter = build_student("adapter", classes=3, feature_mean=torch.zeros(4), feature_std=torch.ones(4), seed=0)
    for name, data in student_files(adapter).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BirdError) as error:
        load_teacher(f"run:{tmp_path}")
    assert "features" in message(error)
    with pytest.raises(BirdError) as error:
        load_teacher(f"run:{tmp_path / 'nowhere'}")
    assert "nowhere" in message(error)


# ---- ONNX -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 4])
def test_onnx_takes_the_first_vector(tmp_path, rank):
    teacher = load_teacher(f"onnx:{write_onnx(tmp_path / 'a.onnx', rank=rank)}", image_size=16)
    pixels = batch_of(teacher)
    assert pixels.shape[2:] == (16, 16)
    assert teacher.features(pixels).shape == (5, 6)
    assert "answer" in str(dict(teacher.preprocessing)), "the output's name is part of what the vector is"
    assert teacher.name == "onnx:a"


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 40)])
def test_onnx_size_of_the_graph(tmp_path, height, width):
    teacher = load_teacher(f"onnx:{write_onnx(tmp_path / 'a.onnx', height, width)}")
    assert teacher.preprocess(photograph()).shape == (3, height, width)


def test_onnx_digest_covers_external_data(tmp_path):
    digests = set()
    for name, scale in (("a", 1.0), ("b", 1.0 + 2**-20)):
        folder = tmp_path / name
        folder.mkdir()
        path = write_onnx(folder / "model.onnx", external=True, scale=scale)
        assert (folder / "model.bin").is_file()
        digests.add(load_teacher(f"onnx:{path}").weights_digest)
    assert len(digests) == 2
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


def test_onnx_refusals(tmp_path):
    with pytest.raises(TeacherError) as error:
        load_teacher(f"onnx:{tmp_path / 'none.onnx'}")
    assert "none.onnx" in message(error)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(TeacherError) as error:
        load_teacher(f"onnx:{tmp_path / 'text.onnx'}")
    message(error)
    with pytest.raises(TeacherError) as error:
        load_teacher(f"onnx:{write_onnx(tmp_path / 'gray.onnx', inputs=1)}")
    assert "3" in message(error)
    with pytest.raises(UsageError) as error:
        load_teacher(f"onnx:{write_onnx(tmp_path / 'a.onnx')}", precision="bf16")
    message(error)


def test_real_squeezenet(shared_data):
    path = shared_data / "teachers" / "squeezenet1_1-imagenet.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    teacher = load_teacher(f"onnx:{path}", image_size=96)
    vectors = teacher.features(batch_of(teacher))
    assert teacher.name == "onnx:squeezenet1_1-imagenet"
    assert vectors.shape == (5, teacher.dim) == (5, 512)
    assert torch.isfinite(vectors).all()


# ---- the weights' digest ----------------------------------------------------------------------------------------


def test_one_digest_for_two_formats_and_another_for_one_ulp(clip_states, tmp_path):
    state = clip_states["bird-tiny-vit"]
    spec = "open_clip:bird-tiny-vit/none"
    digests = [
        load_teacher(spec, weights=save_state(state, tmp_path / f"w{suffix}")).weights_digest
        for suffix in (".safetensors", ".pt", ".pth")
    ]
    assert len(set(digests)) == 1
    nudged = {name: value.clone() for name, value in state.items()}
    weight = nudged["visual.conv1.weight"].view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
    other = load_teacher(spec, weights=save_state(nudged, tmp_path / "nudged.safetensors"))
    assert other.weights_digest != digests[0]


def test_one_digest_for_the_whole_model_and_its_image_tower(clip_states, tmp_path):
    state = clip_states["bird-tiny-vit"]
    tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    spec = "open_clip:bird-tiny-vit/none"
    whole = load_teacher(spec, weights=save_state(state, tmp_path / "whole.safetensors"))
    alone = load_teacher(spec, weights=save_state(tower, tmp_path / "tower.safetensors"))
    assert whole.weights_digest == alone.weights_digest


def test_same_weights_in_another_architecture_are_told_apart(clip_states, tmp_path):
    """QuickGELU or GELU: the same tensors, other vectors. Something in the fingerprint has to say so."""
    import open_clip

    config = open_clip.get_model_config("bird-tiny-vit")
    (tmp_path / "bird-tiny-vit-gelu.json").write_text(json.dumps({**config, "quick_gelu": False}))
    open_clip.add_model_config(tmp_path)
    weights = save_state(clip_states["bird-tiny-vit"], tmp_path / "w.safetensors")
    quick, plain = (
        load_teacher(f"open_clip:{name}/none", weights=weights) for name in ("bird-tiny-vit", "bird-tiny-vit-gelu")
    )
    pixels = batch_of(quick)
    assert not torch.allclose(quick.features(pixels), plain.features(pixels), atol=1e-6)
    assert (quick.weights_digest, dict(quick.preprocessing)) != (
        plain.weights_digest,
        dict(plain.preprocessing),
    )


def test_another_size_is_another_preprocessing(tmp_path):
    path = write_onnx(tmp_path / "a.onnx")
    small, large = (load_teacher(f"onnx:{path}", image_size=size) for size in (16, 32))
    assert small.weights_digest == large.weights_digest
    assert dict(small.preprocessing) != dict(large.preprocessing)


# ---- refusals ---------------------------------------------------------------------------------------------------


class Payload:
    """Unpickling it creates a file: whoever does so has executed what a stranger wrote."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "open_clip:bird-tiny-vit/none"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".bin"])
def test_a_hostile_pickle_is_refused_unread(clip_states, tmp_path, spec, how, suffix, record_property):
    record_property("12 hostile files", 1)
    executed, path = tmp_path / "executed", tmp_path / f"weights{suffix}"
    if how == "torch":
        torch.save({"conv1.weight": Payload(executed)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(executed)))
    with pytest.raises(TeacherError) as error:
        load_teacher(spec, weights=path)
    assert "safetensors" in message(error)
    assert not executed.exists()


def test_a_torchscript_archive_is_refused(clip_states, tmp_path):
    """The form in which OpenAI published CLIP: a program, not tensors."""
    path = tmp_path / "ViT-B-32.pt"
    with pytest.warns(FutureWarning, match="torch.jit"):  # the library's word on the format this test is about
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(TeacherError) as error:
        load_teacher("open_clip:bird-tiny-vit/none", weights=path)
    assert "TorchScript" in message(error)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_weights(shufflenet, tmp_path, suffix, keep):
    path = save_state(shufflenet.state_dict(), tmp_path / f"w{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(TeacherError) as error:
        load_teacher("torchvision:shufflenet_v2_x0_5", weights=path)
    assert path.name in message(error)


def test_weights_that_do_not_fit(clip_states, shufflenet, tmp_path):
    state = dict(clip_states["bird-tiny-vit"])
    del state["visual.conv1.weight"]
    state["visual.strange"] = torch.zeros(2)
    state["visual.proj"] = torch.zeros(2, 2)
    with pytest.raises(TeacherError) as error:
        load_teacher("open_clip:bird-tiny-vit/none", weights=save_state(state, tmp_path / "w.safetensors"))
    text = message(error)
    assert "conv1.weight" in text
    assert "strange" in text
    assert "proj" in text
    with pytest.raises(TeacherError) as error:
        load_teacher("torchvision:resnet18", weights=save_state(shufflenet.state_dict(), tmp_path / "s.safetensors"))
    assert "conv1" in message(error)


def test_flava_weights_that_do_not_fit(flava_folder, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((flava_folder / "config.json").read_bytes())
    state = load_file(flava_folder / "model.safetensors")
    key = "image_model.layernorm.weight"
    save_file({name: value for name, value in state.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError) as error:
        load_teacher("flava", weights=tmp_path)
    assert "layernorm.weight" in message(error)
    save_file({**state, key: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError) as error:
        load_teacher("flava", weights=tmp_path)
    assert "layernorm.weight" in message(error)
    assert "download" not in error.value.found, "the weights are here; they are the wrong ones"


def test_flava_folder_with_a_pickle_is_refused(flava_folder, tmp_path):
    (tmp_path / "config.json").write_bytes((flava_folder / "config.json").read_bytes())
    torch.save({"image_model.layernorm.weight": Payload(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError) as error:
        load_teacher("flava", weights=tmp_path)
    assert "safetensors" in message(error)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("spec", ["clip-vit-b32", "flava", "torchvision:resnet18"])
def test_missing_weights_file(spec, tmp_path):
    with pytest.raises(TeacherError) as error:
        load_teacher(spec, weights=tmp_path / "nowhere.safetensors")
    assert "nowhere.safetensors" in message(error)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clip-vit-b32", ["ViT-B-32-quickgelu", "openai", "--weights"]),
        ("clip-rn50", ["RN50-quickgelu", "openai", "--weights"]),
        ("flava", ["facebook/flava-full", "model.safetensors", "--weights"]),
        ("hf:facebook/dinov2-small@main", ["facebook/dinov2-small", "model.safetensors", "--weights"]),
        ("torchvision:resnet18", ["resnet18", "--weights"]),
    ],
)
def test_no_weights_and_no_network(spec, words, monkeypatch, tmp_path):
    """Said within seconds: what to fetch, and how to give it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(TeacherError) as error:
        load_teacher(spec)
    assert time.perf_counter() - started < 30  # importing transformers included, on a busy machine
    text = message(error)
    assert all(word in text for word in words), text
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("clip-vitb32", "clip-vit-b32"),
        ("open-clip:RN50/openai", "open_clip:"),
        ("torchvision:resnet19", "resnet18"),
        ("open_clip:ViT-B32/openai", "ViT-B-32"),
        ("onnx:", "onnx:"),
        ("", "clip-vit-b32"),
        ("open_clip:completely/else", "open_clip"),
    ],
)
def test_unknown_names(spec, hint):
    with pytest.raises(UsageError) as error:
        load_teacher(spec)
    assert hint in message(error)
    assert "did you mean ?" not in message(error)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("settings", [{"precision": "fp8"}, {"device": "toaster"}, {"device": "cuda:99"}])
@pytest.mark.parametrize("kind", ["run", "onnx"])
def test_impossible_settings(run_folder, tmp_path, settings, kind):
    spec = f"run:{run_folder}" if kind == "run" else f"onnx:{write_onnx(tmp_path / 'a.onnx')}"
    with pytest.raises(UsageError) as error:
        load_teacher(spec, **settings)
    message(error)


def test_the_list_says_where_weights_come_from():
    for name, kind in TEACHERS.items():
        assert kind.description, name
        assert kind.weights, name


# ---- further layers ---------------------------------------------------------------------------------------------

STAGED = {  # kind -> stages
    "clip-rn": ["layer1", "layer2", "layer3", "layer4"],
    "run": ["layer1", "layer2", "layer3", "layer4"],
    "torchvision": ["stage2", "stage3", "stage4"],
}
CLASSIFIERS = {  # a torchvision model -> stage -> the modules from the stage before, in their order
    "resnet18": {
        "layer1": ["conv1", "bn1", "relu", "maxpool", "layer1"],
        **{f"layer{i}": [f"layer{i}"] for i in (2, 3, 4)},
    },
    "regnet_y_400mf": {
        "block1": ["stem", "trunk_output.block1"],
        **{f"block{i}": [f"trunk_output.block{i}"] for i in (2, 3, 4)},
    },
    "convnext_tiny": {f"stage{i}": [f"features.{2 * i - 2}", f"features.{2 * i - 1}"] for i in (1, 2, 3, 4)},
    "shufflenet_v2_x0_5": {"stage2": ["conv1", "maxpool", "stage2"], "stage3": ["stage3"], "stage4": ["stage4"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_more_layers_take_one_pass_and_leave_the_vector_alone(teachers, kind):
    teacher = teachers[kind]
    pixels, layers = batch_of(teacher, 2), tuple(teacher.layers)
    module = getattr(teacher, "_module", None)
    alone = teacher.features(pixels)
    passes = []
    if module is not None:
        before = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
        counter = module.register_forward_hook(lambda *_: passes.append(1))
        together = teacher.answer(pixels, layers)
        counter.remove()
        assert len(passes) == 1
        after = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
        assert before == after, "a hook is left"
    else:
        together = teacher.answer(pixels, layers)
    assert tuple(together) == layers
    equal = same if kind == "clip-vit" else torch.equal  # its last block computes the CLS token alone, or all
    assert equal(together["penultimate"], alone)
    for layer, values in together.items():
        assert values.shape == (2, *teacher.layers[layer].shape)
        assert values.dtype == torch.float32
        assert values.device.type == "cpu"
        assert equal(values, teacher.answer(pixels, [layer])[layer])
    assert teacher.layers["penultimate"].shape == (teacher.dim,)
    assert teacher.layers["penultimate"].kind == teacher.feature_kind


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_stages_and_logits_of_a_classifier(architecture, tmp_path):
    from torchvision import models

    torch.manual_seed(8)
    net = models.get_model(architecture, weights=None, num_classes=5).eval()
    weights = save_state(net.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher(f"torchvision:{architecture}", weights=weights, image_size=64)
    pixels = teacher.normalise(batch_of(teacher, 2))
    found = teacher.answer(pixels, expand_layers(teacher, ["maps", "attention", "logits"]))
    assert len(found) == 2 * len(CLASSIFIERS[architecture]) + 1
    with torch.inference_mode():
        assert same(found["logits"], net(pixels))
        x = pixels
        for stage, modules in CLASSIFIERS[architecture].items():
            for path in modules:
                x = net.get_submodule(path)(x)
            assert same(found[f"maps.{stage}"], x)
            assert same(found[f"attention.{stage}"], torch.einsum("bchw,bchw->bhw", x, x))


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "shufflenetv2"])
def test_stages_and_logits_of_our_own_run(architecture, tmp_path):
    student = build_student(architecture, classes=3, image_size=32, seed=9).eval()
    for name, data in student_files(student).items():
        (tmp_path / name).write_bytes(data)
    teacher = load_teacher(f"run:{tmp_path}")
    pixels = teacher.normalise(batch_of(teacher, 2))
    found = teacher.answer(pixels, expand_layers(teacher, ["penultimate", "logits", "maps", "attention"]))
    last = "stage4" if architecture == "shufflenetv2" else "layer4"
    with torch.inference_mode():
        answer = student(pixels)
        maps = found[f"maps.{last}"]
        pooled = student.backbone.conv5(maps) if architecture == "shufflenetv2" else maps
    assert same(found["penultimate"], answer.features)
    assert same(found["logits"], answer.logits)
    assert same(pooled.mean((2, 3)), answer.features)
    torch.testing.assert_close(found[f"attention.{last}"], maps.square().sum(1))


def test_stages_of_clips_resnet(teachers, clip_states):
    import open_clip

    model = open_clip.create_model("bird-tiny-rn", load_weights=False, pretrained_text=False).eval()
    model.load_state_dict(clip_states["bird-tiny-rn"])
    pixels = teachers["clip-rn"].normalise(batch_of(teachers["clip-rn"], 2))
    found = teachers["clip-rn"].answer(pixels, expand_layers(teachers["clip-rn"], ["maps", "attention"]))
    with torch.inference_mode():
        x = model.visual.stem(pixels)
        for i in range(1, 5):
            x = model.visual.get_submodule(f"layer{i}")(x)
            assert same(found[f"maps.layer{i}"], x)
            torch.testing.assert_close(found[f"attention.layer{i}"], x.square().sum(1))


def test_tokens_of_clips_vit(teachers, clip_states):
    import open_clip

    model = open_clip.create_model("bird-tiny-vit", load_weights=False, pretrained_text=False).eval()
    model.load_state_dict(clip_states["bird-tiny-vit"])
    pixels = teachers["clip-vit"].normalise(batch_of(teachers["clip-vit"], 2))
    found = teachers["clip-vit"].answer(pixels, ["cls", "pooled", "penultimate"])
    model.visual.output_tokens = True
    with torch.inference_mode():
        _, patches = model.visual(pixels)
        torch.testing.assert_close(found["cls"] @ model.visual.proj, found["penultimate"])
    torch.testing.assert_close(found["pooled"], patches.mean(1))


@pytest.mark.parametrize("kind", ["flava", "hf"])
def test_tokens_of_transformers_vits(request, teachers, kind):
    from transformers import FlavaModel, ViTModel

    if kind == "flava":
        model = FlavaModel.from_pretrained(request.getfixturevalue("flava_folder")).image_model.eval()
    else:
        model = ViTModel.from_pretrained(request.getfixturevalue("vit_folder"), dtype=torch.float32).eval()
    pixels = teachers[kind].normalise(batch_of(teachers[kind], 2))
    found = teachers[kind].answer(pixels, ["cls", "pooled"])
    with torch.inference_mode():
        before = model(pixels, output_hidden_states=True).hidden_states[-1]
        tokens = model.layernorm(before)
    torch.testing.assert_close(found["cls"], tokens[:, 0])
    torch.testing.assert_close(found["pooled"], tokens[:, 1:].mean(1))


def test_tokens_of_transformers_clip(tmp_path, vit_folder):
    """Its last_hidden_state is not normed: the tokens are taken after the norm all the same."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(10)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16)).eval()
    norm = next(part for name, part in model.named_modules() if name.endswith("post_layernorm"))
    torch.nn.init.normal_(norm.weight)
    model.save_pretrained(tmp_path)
    processor = json.loads((vit_folder / "preprocessor_config.json").read_text())
    processor["image_processor_type"] = "CLIPImageProcessor"  # this architecture names none of its own
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    teacher = load_teacher("hf:someone/tiny-clip", weights=tmp_path)
    pixels = teacher.normalise(batch_of(teacher, 2))
    found = teacher.answer(pixels, ["cls", "pooled"])
    with torch.inference_mode():
        answer = model(pixels)
        patches = norm(answer.last_hidden_state[:, 1:])
    torch.testing.assert_close(found["cls"], answer.pooler_output)
    torch.testing.assert_close(found["pooled"], patches.mean(1))


def test_an_onnx_file_gives_its_other_outputs_by_name(teachers):
    teacher = teachers["onnx"]
    assert list(teacher.layers) == ["penultimate", "map"]
    assert teacher.layers["map"].kind == "maps"
    pixels = teacher.normalise(batch_of(teacher, 2))
    assert torch.equal(teacher.answer(pixels, ["map"])["map"], pixels), "the graph's identity"


def test_families_of_layers_are_expanded(teachers):
    for kind, stages in STAGED.items():
        teacher = teachers[kind]
        attention = [f"attention.{stage}" for stage in stages]
        assert expand_layers(teacher, ["attention"]) == tuple(attention)
        assert expand_layers(teacher, ["maps"]) == tuple(f"maps.{stage}" for stage in stages)
        repeated = [attention[1], "penultimate", "attention", "penultimate"]
        assert expand_layers(teacher, repeated) == (attention[1], "penultimate", attention[0], *attention[2:])
    assert expand_layers(teachers["clip-vit"], ["cls", "penultimate"]) == ("cls", "penultimate")


@pytest.mark.parametrize(
    ("kind", "layer", "hint"),
    [
        ("run", "attention.layer5", "did you mean attention.layer"),
        ("flava", "attention", "cls"),
        ("hf", "zzz", "pooled"),
    ],
)
def test_an_unknown_layer_is_refused_with_what_there_is(teachers, kind, layer, hint):
    with pytest.raises(UsageError) as error:
        expand_layers(teachers[kind], [layer])
    text = message(error)
    assert layer in text
    assert hint in text
    assert "penultimate" in text


def test_another_head_is_another_teacher(tmp_path, shufflenet):
    """Its logits are a layer, so the head's weights count, too."""
    state = {name: value.clone() for name, value in shufflenet.state_dict().items()}
    digests = []
    for i in range(2):
        state["fc.bias"] += i
        path = save_state(state, tmp_path / f"{i}.safetensors")
        digests.append(load_teacher("torchvision:shufflenet_v2_x0_5", weights=path, image_size=64).weights_digest)
    assert digests[0] != digests[1]

"""What a teacher's load compares with its own library: what is equal, what is not, and what is said of it."""

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from helpers.families import CLIP, IMAGENET, VIT, VIT_VIEW, cropped, fill, save_folder, squashed, towers
from helpers.family_libraries import clip, cosine, photos, torchvision
from torch import nn

from bird.devices import choose_device
from bird.errors import TeacherError, UsageError
from bird.images import decode_image
from bird.teachers import load_teacher
from bird.teachers.base import PENULTIMATE, Options, TorchTeacher
from bird.teachers.layers import Tap
from bird.teachers.open_clip import _from_tag
from bird.teachers.proof import Reference, ask_again, canaries, prove
from bird.teachers.views import LibraryView, View, view_of_transform

PLAIN = Options(None, choose_device("cpu"), "fp32", None)


@pytest.fixture(autouse=True)
def own_tags(monkeypatch):
    """What a test adds to open_clip's table of tags is gone after it."""
    from open_clip import pretrained

    monkeypatch.setattr(pretrained, "_PRETRAINED", dict(pretrained._PRETRAINED))


class Net(nn.Module):
    """Colours of a coarse grid, mixed: a network in which every pixel counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.mix = nn.AdaptiveAvgPool2d(4), nn.Linear(48, 8)

    def forward(self, pixels):
        return self.mix(self.pool(pixels).flatten(1))


def library_of(view, net, change=lambda pixels: pixels):
    """A library whose processor is a view of ours, with a rule of its own."""
    return Reference(
        processor="a library's Processor",
        see=lambda photo: change(view.normalise(view(np.asarray(photo))[None])[0]),
        say=lambda pixels: {PENULTIMATE: net(pixels)},
        rules={"rule": 1},
        libraries=("torch",),
    )


def proved(view, reference, net, read=lambda value: value):
    taps = {PENULTIMATE: Tap("penultimate", read=read)}
    return prove("t", net, view, reference, taps=taps, options=PLAIN, reading="output", config={"a": 1})


VIEWS = View(72, 64, "bicubic")


def test_an_equal_view_is_ours():
    net = Net()
    teacher = proved(VIEWS, library_of(VIEWS, net), net)
    assert teacher.preprocess(np.asarray(photos()[0])).dtype == torch.uint8
    assert teacher.notes["view"].startswith("ours, equal to a library's Processor: at most 0 of 255 levels")
    assert "cosine 1.0000000" in teacher.notes["vector"]
    assert teacher.notes["libraries"] == f"torch {version('torch')}"


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels.flip(0),  # BGR
        lambda pixels: pixels.roll(1, 2),  # a crop one column aside
        lambda pixels: pixels / 0.5,  # a second division
        lambda pixels: nn.functional.pad(pixels, (0, 8)),  # padding
    ],
)
def test_another_view_is_the_librarys_own(change):
    net = Net()
    reference = library_of(VIEWS, net, change)
    teacher = proved(VIEWS, reference, net)
    for photo in photos():
        seen, theirs = teacher.preprocess(np.asarray(photo)), reference.see(photo)
        assert torch.equal(seen, theirs)
        assert cosine(teacher.features(seen[None]), net(theirs[None])) > 0.99999
    assert teacher.notes["view"].startswith("a library's Processor itself, as ours")
    assert teacher.preprocessing["processor"] == {"rule": 1}


def test_the_centre_of_a_crop_is_rounded_as_the_library_does():
    """A quarter of all sizes has its crop one column aside between torchvision's rule and transformers'."""
    photo = np.asarray(photos()[0])
    floor, nearest = (View(64, 64, "bicubic", centre=centre)(photo) for centre in ("floor", "round"))
    assert torch.equal(floor[:, :, 1:], nearest[:, :, :-1])


def test_a_wrong_reading_is_refused():
    net = Net()
    with pytest.raises(TeacherError) as error:
        proved(VIEWS, library_of(VIEWS, net), net, lambda value: value.flip(1))
    assert "penultimate: cosine" in str(error.value)
    assert "own library" in str(error.value)


def test_a_library_that_fails_is_told_apart_from_a_missing_file():
    net = Net()
    broken = library_of(VIEWS, net, lambda pixels: pixels[:, :7, :7].view(5))
    with pytest.raises(TeacherError) as error:
        proved(VIEWS, broken, net)
    assert "a failure of a library's Processor on a 640 x 427 photo" in str(error.value)


class Drawn(Net):
    """A network that masks at random, in evaluation, too."""

    def forward(self, pixels):
        return super().forward(pixels * (torch.rand(len(pixels), 1, 1, 64) > 0.5))


class Scaled(Net):
    """A network quantised by the range of its batch, as dynamic int8 is."""

    def forward(self, pixels):
        step = pixels.abs().amax() / 4
        return super().forward((pixels / step).round() * step)


@pytest.mark.parametrize(
    ("net", "words"), [(Drawn, "asked for the same image again"), (Scaled, "what else is in the batch")]
)
def test_a_vector_that_is_not_the_images_alone_is_refused(net, words):
    device = choose_device("cpu")
    view = View(72, 64, mean=(0.45,) * 3, std=(0.25,) * 3)
    with pytest.raises(TeacherError) as error:
        ask_again(
            TorchTeacher("t", net(), view, taps={PENULTIMATE: Tap("penultimate")}, device=device, precision="fp32")
        )
    assert words in str(error.value)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    """As in torchvision's VGG16 features, whose classifier is published as NaN."""
    family = torchvision("squeezenet1_1", features=True)
    weights = family.make(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    state["features.0.weight"][0] = float("nan")
    save_file(state, weights)
    with pytest.raises(TeacherError) as error:
        load_teacher(family.spec, weights=weights)
    assert "not finite" in str(error.value)


def test_canaries_are_upright_and_in_colour():
    for name, data in canaries():
        image = decode_image(data, name)
        width, height = (360, 480) if "EXIF" in name else map(int, name.replace(" photo", "").split()[:3:2])
        assert image.shape == (height, width, 3)


# ---- the view of a transform ------------------------------------------------------------------------------------


def test_every_published_transform_of_torchvision_is_our_view():
    from torchvision import models

    seen = set()
    for name in models.list_models(module=models):
        for entry in models.get_model_weights(name):
            transform = entry.transforms()
            if repr(transform) in seen:
                continue
            seen.add(repr(transform))
            view = view_of_transform(transform)
            for photo in photos()[:2]:
                ours = view.normalise(view(np.asarray(photo))[None])[0]
                torch.testing.assert_close(ours, transform(photo), rtol=1e-5, atol=1e-4 / min(view.std))
    assert len(seen) > 20


def test_a_transform_with_a_rule_that_we_do_not_have_is_not_our_view():
    from open_clip.transform import PreprocessCfg, image_transform_v2

    assert view_of_transform(image_transform_v2(PreprocessCfg(64, resize_mode="longest"), is_train=False)) is None
    assert view_of_transform(image_transform_v2(PreprocessCfg(64), is_train=False)) == View(
        64, 64, "bicubic", "pillow", *(tuple(CLIP[f"image_{name}"]) for name in ("mean", "std"))
    )


# ---- open_clip's tags -------------------------------------------------------------------------------------------


def described(spec, tmp_path):
    return _from_tag(f"open_clip:{spec}", spec, Options(tmp_path / "w", choose_device("cpu"), "fp32", None))


def test_every_tag_has_the_activation_and_the_view_of_its_record(tmp_path):
    import open_clip

    published = [
        (model, tag) for model, tag in open_clip.list_pretrained() if not model.startswith("bird-")
    ]  # of tests
    for model, tag in published:
        record, given = open_clip.get_pretrained_cfg(model, tag), described(f"{model}/{tag}", tmp_path)
        plain = bool(open_clip.get_model_config(model).get("quick_gelu"))
        assert bool(given.model.get("quick_gelu")) == bool(record.get("quick_gelu", plain) or plain)
        assert given.view == {name: record[name] for name in ("mean", "std", "interpolation", "resize_mode")}
        assert not given.assumed


def test_without_a_tag_the_view_is_that_of_every_tag_or_a_tag_is_asked_for(tmp_path):
    given = described("ViT-B-16-SigLIP", tmp_path)
    assert given.view["resize_mode"] == "squash"
    assert "every published ViT-B-16-SigLIP" in given.assumed
    with pytest.raises(UsageError) as error:
        described("ViT-L-14", tmp_path)
    assert "openai" in str(error.value)
    with pytest.raises(UsageError) as error:
        described("ViT-B-32/open-ai", tmp_path)
    assert "did you mean openai" in str(error.value)


def test_the_tag_of_quickgelu_and_the_plain_one_are_two_teachers(tmp_path):
    loaded = []
    for folder, quick in (("a", True), ("b", False)):
        (tmp_path / folder).mkdir()
        family = clip("bird-vit", "openai", quick_gelu=quick)
        loaded.append(load_teacher(family.spec, weights=family.make(tmp_path / folder), device="cpu"))
    assert loaded[0].weights_digest == loaded[1].weights_digest
    assert dict(loaded[0].config) != dict(loaded[1].config)


def test_open_clip_from_the_hub_and_from_a_folder(tmp_path, monkeypatch):
    """The hub's local cache stands for the hub; a folder's place is no part of the teacher's name."""
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--clip"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    clip("bird-vit", view={"mean": [0.4] * 3}, folder_form=True).make(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub, local = load_teacher("open_clip:hf-hub:someone/clip"), load_teacher(f"open_clip:local-dir:{folder}")
    assert hub.weights_digest == local.weights_digest
    assert hub.preprocessing["mean"] == local.preprocessing["mean"] == [0.4] * 3
    assert str(tmp_path) not in json.dumps([local.name, dict(local.preprocessing), dict(local.notes)])
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(TeacherError) as error:
        load_teacher(f"open_clip:local-dir:{folder}")
    assert "open_clip_config.json" in str(error.value)


# ---- what a teacher is known by ---------------------------------------------------------------------------------


def test_the_same_tensors_in_another_architecture_are_another_teacher(tmp_path):
    found = []
    for heads in (2, 4):
        folder = tmp_path / str(heads)
        save_folder(
            lambda T, heads=heads: T.ViTModel(T.ViTConfig(**{**VIT, "num_attention_heads": heads})), VIT_VIEW, folder
        )
        found.append(load_teacher("hf:a/b", weights=folder))
    assert found[0].weights_digest == found[1].weights_digest
    assert [teacher.config["num_attention_heads"] for teacher in found] == [2, 4]
    assert "transformers_version" not in found[0].config
    assert "transformers" in found[0].notes["libraries"]


def test_one_tower_is_one_teacher_with_or_without_the_other(tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    towers("CLIP").make(both)
    import transformers

    transformers.CLIPModel.from_pretrained(both).vision_model.save_pretrained(alone)
    (alone / "preprocessor_config.json").write_text(json.dumps(CLIP))
    teachers = [load_teacher("hf:a/b", weights=folder) for folder in (both, alone)]
    assert teachers[0].weights_digest == teachers[1].weights_digest
    assert "projection" in teachers[0].layers
    assert "projection" not in teachers[1].layers


def test_the_projection_is_part_of_what_a_teacher_is_known_by(tmp_path):
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        towers("CLIP").make(folder)
        import transformers

        model = transformers.CLIPModel.from_pretrained(folder)
        fill(model.visual_projection, seed)
        model.save_pretrained(folder)
        found.append(load_teacher("hf:a/b", weights=folder))
    assert found[0].weights_digest == found[1].weights_digest
    assert dict(found[0].config) != dict(found[1].config)


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "open_clip", "torchvision"])
def test_a_size_that_is_the_librarys_to_say_is_refused(kind, tmp_path):
    family = {
        "hf": towers("CLIP"),
        "open_clip": clip("bird-vit"),
        "torchvision": torchvision("shufflenet_v2_x0_5", "IMAGENET1K_V1"),
    }[kind]
    with pytest.raises(UsageError) as error:
        load_teacher(family.spec, weights=family.make(tmp_path), image_size=96)
    assert "--image-size" in str(error.value)


def test_a_stored_crop_needs_our_view(tmp_path):
    seen = LibraryView(lambda photo: torch.zeros(3, 8, 8), {})
    assert seen(np.zeros((9, 9, 3), np.uint8), np.zeros(5, np.int32)).shape == (3, 8, 8)
    with pytest.raises(UsageError) as error:
        seen(np.zeros((9, 9, 3), np.uint8), np.array([0, 0, 8, 8, 0], np.int32))
    assert "--views" in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "no-such-type"}, ["cannot use", "newer transformers"]),
        ({"model_type": "x", "auto_map": {"AutoConfig": "code.Config"}}, ["code of the repository's own", "onnx:FILE"]),
    ],
)
def test_a_folder_that_the_library_cannot_use(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT_VIEW))
    with pytest.raises(TeacherError) as error:
        load_teacher("hf:a/b", weights=tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "downloaded" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:resnet19", ["did you mean", "resnet18"]),
        ("timm:resnet18.no_such_tag", ["a1_in1k"]),
        ("torchvision:resnet50/IMAGENET1K_V3", ["did you mean IMAGENET1K_V2"]),
    ],
)
def test_unknown_names_and_weights(spec, words):
    with pytest.raises(UsageError) as error:
        load_teacher(spec)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_state_dict_without_a_name_of_weights_says_what_it_assumes(tmp_path):
    family = torchvision("shufflenet_v2_x0_5")
    teacher = load_teacher(family.spec, weights=family.make(tmp_path))
    assert "the view of IMAGENET1K_V1 (resize 256, crop 224, bilinear)" in teacher.notes["assumed"]


def test_published_weights_are_named_where_they_have_to_be_fetched():
    with pytest.raises(TeacherError) as error:
        load_teacher("torchvision:resnet50/IMAGENET1K_V2")
    assert "https://download.pytorch.org/models/resnet50-" in str(error.value)


def test_squashed_and_cropped_views_of_transformers_are_ours(tmp_path):
    for number, rules in enumerate((squashed("ViTImageProcessor", IMAGENET), cropped("BitImageProcessor", IMAGENET))):
        folder = tmp_path / str(number)
        save_folder(lambda T: T.ViTModel(T.ViTConfig(**VIT)), rules, folder)
        assert load_teacher("hf:a/b", weights=folder).notes["view"].startswith("ours")

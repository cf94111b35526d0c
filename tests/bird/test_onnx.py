"""A black box gives the vector that its graph means: the output that is asked for, of the pixels that it wants, whatever
else is in the batch. Else it is refused."""

import json

import numpy as np
import pytest
import torch
from helpers.graphs import CLASSES, FEATURES, network, quantised, run
from PIL import Image

from bird.errors import TeacherError, UsageError
from bird.teachers import load_teacher
from bird.teachers.batch_independence import company, sample_views
from bird.teachers.claims import names_class_scores

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def teacher_of(path, **options):
    return load_teacher(f"onnx:{path}", **options)


def views_of(teacher, count=6):
    draw = np.random.default_rng(1)
    images = [Image.fromarray(draw.integers(0, 256, (8, 6, 3), np.uint8)).resize((50, 60)) for _ in range(count)]
    bright = [np.asarray(image) // (1 + 3 * (number % 2)) for number, image in enumerate(images)]
    return torch.stack([teacher.preprocess(image.astype(np.uint8)) for image in bright])


def expected(teacher, path, output, views):
    """What onnxruntime says of the teacher's pixels, image by image."""
    pixels = teacher.normalise(views).numpy()
    return torch.from_numpy(np.concatenate([run(path, pixels[row : row + 1], output) for row in range(len(pixels))]))


# ---- which output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [("features", "logits"), ("logits", "features"), ("map", "logits", "features")])
def test_class_scores_are_not_features(tmp_path, outputs):
    path = network(tmp_path / "a.onnx", outputs)
    teacher = teacher_of(path)
    views = views_of(teacher)
    torch.testing.assert_close(teacher.features(views), expected(teacher, path, "features", views))
    assert (teacher.feature_kind, teacher.layers["logits"].kind) == ("penultimate", "logits")
    scores = teacher_of(path, kind="logits")
    torch.testing.assert_close(scores.features(views), expected(scores, path, "logits", views))
    assert (scores.feature_kind, scores.dim, scores.layers["features"].kind) == ("logits", CLASSES, "token")
    assert dict(scores.preprocessing) != dict(teacher.preprocessing)
    with pytest.raises(TeacherError, match="--output features, or say --kind logits"):
        teacher_of(path, output="logits")
    with pytest.raises(TeacherError, match="--kind logits"):
        teacher_of(path, output="logits", kind="projection")


def test_nothing_but_class_scores(tmp_path):
    path = network(tmp_path / "a.onnx", ("logits",))
    with pytest.raises(TeacherError, match="a number for each class"):
        teacher_of(path)
    assert teacher_of(path, kind="logits").dim == CLASSES


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": str({number: f"c{number}" for number in range(CLASSES)})},
        {"labels": json.dumps([f"c{number}" for number in range(CLASSES)])},
        {"classes": ",".join("abcdefghij")},
        {"num_classes": str(CLASSES)},
        {"task": "image-classification"},
        {"output": "logits"},
    ],
)
def test_metadata_names_class_scores_too(tmp_path, metadata):
    path = network(tmp_path / "a.onnx", ("logits", "features"), metadata=metadata, names={"logits": "out"})
    assert teacher_of(path).dim == FEATURES
    with pytest.raises(TeacherError, match="by its name or by the graph's metadata"):
        teacher_of(path, output="out")
    assert teacher_of(path, kind="logits").dim == CLASSES


def test_metadata_about_something_else_is_no_obstacle(tmp_path):
    told = {"author": "someone", "classes": "a,b,c", "stride": "32"}
    assert teacher_of(network(tmp_path / "a.onnx", ("features",), metadata=told)).dim == FEATURES


def test_names_of_class_scores():
    for name in ("logits", "output.logits", "cls_logits", "classLogits", "probs", "softmax_1", "Predictions", "scores"):
        assert names_class_scores(name), name
    for name in ("features", "logistics", "class_token", "embedding", "output", "pooler_output", "problem"):
        assert not names_class_scores(name), name


def test_a_choice_is_the_persons(tmp_path):
    path = network(tmp_path / "a.onnx", ("features", "unit"))
    with pytest.raises(UsageError, match="2 outputs that are one vector an image: features, unit; wanted one"):
        teacher_of(path)
    assert teacher_of(path, output="features").feature_kind == "penultimate"
    with pytest.raises(UsageError, match="did you mean features"):
        teacher_of(path, output="feature")
    with pytest.raises(TeacherError, match="pool inside the graph"):
        teacher_of(network(tmp_path / "b.onnx", ("features", "map")), output="map")


def test_what_the_vectors_are_is_looked_at(tmp_path):
    unit = network(tmp_path / "a.onnx", ("unit",))
    assert teacher_of(unit).feature_kind == "projection_l2"
    with pytest.raises(TeacherError, match="length 1"):
        teacher_of(unit, kind="penultimate")
    with pytest.raises(TeacherError, match="vectors of length"):
        teacher_of(network(tmp_path / "b.onnx"), kind="projection_l2")
    soft = network(tmp_path / "c.onnx", ("probabilities",), names={"probabilities": "out"})
    for kind in (None, "penultimate", "logits"):
        with pytest.raises(TeacherError, match="last softmax"):
            teacher_of(soft, kind=kind)
    assert teacher_of(network(tmp_path / "d.onnx"), kind="projection").feature_kind == "projection"


# ---- of which pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, lambda x: x / 255),
        (IMAGENET, lambda x: (x / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])),
        ({"range_": (0, 255)}, lambda x: x),
        ({"range_": (-1, 1)}, lambda x: x / 127.5 - 1),
        (
            {"range_": (0, 255), "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            lambda x: (x - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375]),
        ),
    ],
)
def test_pixels_are_scaled_as_asked(tmp_path, options, wanted):
    path = network(tmp_path / "a.onnx", side=24)
    teacher = teacher_of(path, **options)
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    pixels = teacher.normalise(teacher.preprocess(image)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(pixels, wanted(image.astype(np.float64)), atol=1e-4)
    assert (dict(teacher.preprocessing) == dict(teacher_of(path).preprocessing)) == (options == {})
    low, high = options.get("range_", (0, 1))
    assert teacher.notes["assumed"].startswith(f"RGB in [{low}, {high}]")
    assert "--range" in teacher.notes["assumed"], "what is assumed is said"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "--mean"),
        ({"mean": IMAGENET["mean"], "range_": (0, 255)}, "--mean"),
        ({"std": IMAGENET["std"], "range_": (0, 255)}, "--std"),
        ({"std": (58.0, 57.0, 57.0)}, "--std"),
        ({"std": (0.0, 0.2, 0.2)}, "--std"),
        ({"range_": (1, 0)}, "--range"),
    ],
)
def test_values_of_another_range_are_refused(tmp_path, options, flag):
    with pytest.raises(UsageError, match=flag):
        teacher_of(network(tmp_path / "a.onnx"), **options)


# ---- in whatever company ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_fixed_batch_is_filled_up(tmp_path, batch, count):
    fixed, free = network(tmp_path / "fixed.onnx", batch=batch), network(tmp_path / "free.onnx")
    teacher = teacher_of(fixed, image_size=24)
    views = views_of(teacher, count)
    vectors = teacher.features(views)
    assert vectors.shape == (count, FEATURES)
    torch.testing.assert_close(vectors, expected(teacher, free, "features", views))


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_dynamically_quantised_network_is_asked_one_by_one(tmp_path, batch):
    """Its scales follow the largest number of the whole batch."""
    path = quantised(tmp_path / "int8.onnx", network(tmp_path / "a.onnx", batch=batch))
    teacher = teacher_of(path, image_size=24)
    views = views_of(teacher)
    alone = expected(teacher, path, "features", views)
    assert torch.equal(teacher.features(views), alone)
    assert torch.equal(teacher.features(views[2:4]), alone[2:4])
    if batch == "n":
        together = torch.from_numpy(run(path, teacher.normalise(views).numpy(), "features"))
        assert (together - alone).norm() > 1e-3 * alone.norm(), "it does depend on its company"
        assert teacher.preprocessing["asked"] == "one image at a time"
        assert "one image at a time: among other images its answers differ by" in teacher.notes["asked"]
    else:
        assert "asked" not in teacher.preprocessing


def test_a_fixed_batch_whose_filling_matters_is_refused(tmp_path):
    for name, path in (
        ("mates", network(tmp_path / "mates.onnx", batch=4, extra=("mates",))),
        ("int8", quantised(tmp_path / "int8.onnx", network(tmp_path / "a.onnx", batch=4))),
    ):
        with pytest.raises(TeacherError, match="depend on the other images of a call"):
            teacher_of(path, image_size=24)
        assert name


def test_batch_statistics_are_found_out(tmp_path):
    path = network(tmp_path / "a.onnx", extra=("mates",))
    teacher = teacher_of(path, image_size=24)
    views = views_of(teacher)
    assert torch.equal(teacher.features(views), expected(teacher, path, "features", views))


def test_a_graph_that_holds_for_one_image_alone(tmp_path):
    path = network(tmp_path / "a.onnx", extra=("rigid",))
    teacher = teacher_of(path, image_size=24)
    views = views_of(teacher)
    torch.testing.assert_close(teacher.features(views), expected(teacher, path, "features", views))


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_chance_is_refused(tmp_path, batch):
    with pytest.raises(TeacherError, match="two answers to one question"):
        teacher_of(network(tmp_path / "a.onnx", batch=batch, extra=("noise",)), image_size=24)


def test_company_of_torch_networks():
    """The same few questions serve any teacher: here batch statistics, random masks, and a sound network."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8 * 22 * 22, 4)]
    net = torch.nn.Sequential(*layers)

    def ask(views):
        return net(views.float() / 255).detach()

    net.train()
    assert company(ask, 24, 24).matters
    net.eval()
    found = company(ask, 24, 24)
    assert found.repeats
    assert not found.matters
    masked = company(lambda views: ask(torch.nn.functional.dropout(views.float(), 0.5)), 24, 24)
    assert not masked.repeats
    assert not company(lambda views: torch.full((len(views), 2), torch.nan), 24, 24).repeats


def test_sample_views_are_fixed():
    """What was found out of a teacher once is found out again."""
    assert sample_views(24, 20).shape == (4, 3, 24, 20)
    assert int(sample_views(24, 20).sum()) == int(sample_views(24, 20).sum())
    assert sample_views(24, 24).float().std(dim=(1, 2, 3)).min() > 20, "pictures, not flats"


# ---- nothing that is asked is ignored ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"), [("weights", "somewhere"), ("precision", "bf16"), ("image_size", 40), ("kind", "logits")]
)
def test_what_a_graph_cannot_honour_is_refused(tmp_path, option, value):
    path = network(tmp_path / "a.onnx", ("features",), side=24)
    if option == "kind":  # the person's word counts where nothing belies it
        assert teacher_of(path, kind=value).feature_kind == "logits"
        return
    with pytest.raises(UsageError) as caught:
        teacher_of(path, **{option: value})
    assert caught.value.where.startswith(f"--{option.replace('_', '-')}")
    assert teacher_of(path, image_size=24).dim == FEATURES

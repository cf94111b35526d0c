"""What each method does to a student in one step."""

import hashlib
import json

import pytest
import safetensors.torch
import torch
from helpers.methodkit import DIM, GROUPS, PAIRS, STAGED, batch_of, for_method, learner_of, ready

from bird.errors import RunError, UsageError
from bird.losses.terms import bias_loss, cross_entropy, feature_mse
from bird.methods import DESCRIPTIONS, METHODS, Hyperparameters, build_method
from bird.students import STUDENTS, TORCHVISION, build_student, load_student, student_files, torchvision_name


@pytest.mark.parametrize(("name", "student"), PAIRS)
def test_steps_lower_their_own_loss(name, student):
    method, learner = ready(name, student, lambda_=0.01, at_beta=10.0)
    batch, meta = (for_method(method, batch_of(student, seed=seed)) for seed in (0, 1))
    learner.model.train()
    losses = [
        method.step(learner, batch, lambda: meta, warm=True)["loss"].item()
        for _ in range(15 if student == "adapter" else 6)
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "student"), [pair for pair in PAIRS if pair[1] == "adapter" or pair[0] in STAGED])
def test_every_method_moves_the_running_mean_in_each_step(name, student):
    """At n steps seen, by 1 - min(.5, n / (n + 10)) towards the weights of that moment."""
    method, learner = ready(name, student, average=0.5)
    batch, meta = (for_method(method, batch_of(student, seed=seed)) for seed in (0, 1))
    learner.model.train()
    expected = None
    for seen in range(4):
        method.step(learner, batch, lambda: meta, warm=True)
        present = [value.detach().clone() for value in learner.model.student.parameters()]
        keep = min(0.5, seen / (seen + 10))
        expected = (
            present if expected is None else [a.lerp(b, 1 - keep) for a, b in zip(expected, present, strict=True)]
        )
    for found, wanted in zip(learner.student.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["at", "bird+at"])
def test_attention_needs_a_student_with_stages(name):
    with pytest.raises(UsageError, match="without spatial maps"):
        ready(name, "adapter")


def test_every_method_and_student_is_described():
    assert METHODS.keys() == DESCRIPTIONS.keys()
    assert all(kind.description for kind in STUDENTS.values())
    with pytest.raises(UsageError, match="one of baseline"):
        build_method("brid", Hyperparameters(), 2)
    with pytest.raises(UsageError, match="one of resnet18"):
        build_student("resnet81", classes=2)


def test_gate_moves_only_after_warmup_and_only_in_bird():
    for method, warm, moves in (("bird", False, False), ("bird", True, True), ("bird-no-meta", True, False)):
        learner, batch = learner_of("adapter"), batch_of("adapter")
        before = learner.gate.phi.detach().clone()
        build_method(method, Hyperparameters(), GROUPS).step(
            learner, batch, lambda: batch_of("adapter", seed=1), warm=warm
        )
        assert (not torch.equal(before, learner.gate.phi)) == moves


def test_bird_step_is_the_formula():
    """L_j = alpha D(h, sigmoid(phi_new) h_T) + (1 - alpha) CE + lambda L_o, its gradient taken at the original theta."""
    hyper = Hyperparameters(lambda_=0.3)
    learner, batch, meta = learner_of("adapter"), batch_of("adapter"), batch_of("adapter", seed=1)
    start = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    losses = build_method("bird", hyper, GROUPS).step(learner, batch, lambda: meta, warm=True)
    other = learner_of("adapter")
    other.model.load_state_dict({**other.model.state_dict(), **start})
    features, logits = other.model(batch.inputs)
    target = torch.sigmoid(learner.gate.phi.detach()) * batch.teacher  # the new phi
    expected = hyper.alpha * feature_mse(features, target) + (1 - hyper.alpha) * cross_entropy(logits, batch.labels)
    expected = expected + 0.3 * bias_loss(logits, batch.labels, batch.groups, GROUPS)
    torch.testing.assert_close(losses["loss"], expected.detach())
    other.descend(expected)
    for name, value in other.model.named_parameters():
        torch.testing.assert_close(value, dict(learner.model.named_parameters())[name])


@pytest.mark.parametrize("student", ["resnet18", "shufflenetv2"])
def test_running_statistics_change_once_a_step(student):
    """After a BIRD step they are what one plain forward pass of the train batch leaves."""
    learner, plain = learner_of(student), learner_of(student)
    batch = batch_of(student)
    learner.model.train()
    plain.model.train()
    plain.model(batch.inputs)
    build_method("bird", Hyperparameters(), GROUPS).step(learner, batch, lambda: batch_of(student, seed=1), warm=True)
    for name, value in plain.model.named_buffers():
        torch.testing.assert_close(dict(learner.model.named_buffers())[name], value, msg=name)


@pytest.mark.parametrize("student", STUDENTS)
def test_students_travel_through_files(tmp_path, student):
    built = learner_of(student).model.student.eval()
    for name, data in student_files(built).items():
        (tmp_path / name).write_bytes(data)
    loaded = load_student(tmp_path)
    inputs = batch_of(student).inputs
    for one, two in zip(built(inputs), loaded(inputs), strict=True):
        assert torch.equal(one, two)
    weights = tmp_path / "student.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunError, match="sha256"):
        load_student(tmp_path)


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_plain_torchvision_student_is_a_file_of_torchvision(tmp_path, name):
    from torchvision import models

    built = build_student(name, classes=3, image_size=64, seed=1).eval()
    files = student_files(built)
    network = getattr(models, torchvision_name(built))(num_classes=3).eval()
    network.load_state_dict(safetensors.torch.load(files["student.safetensors"]))
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    recipe = json.loads(files["student.json"])["input"]
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(recipe[each])[:, None, None] for each in ("mean", "std"))
    expected = built(pixels).logits
    assert torch.equal(network((pixels - mean) / std), expected)
    assert torch.equal(load_student(tmp_path)(pixels).logits, expected)
    old = safetensors.torch.save(built.state_dict())  # as files were before
    (tmp_path / "student.safetensors").write_bytes(old)
    about = json.loads(files["student.json"]) | {"format": "bird-student-1", "sha256": hashlib.sha256(old).hexdigest()}
    (tmp_path / "student.json").write_text(json.dumps(about))
    assert torch.equal(load_student(tmp_path)(pixels).logits, expected)


def test_what_is_no_network_of_torchvision_has_none_of_its_names():
    """The stem for small images has the same keys in a ShuffleNet, and torchvision's answers would be others."""
    for student in (
        build_student("shufflenetv2", classes=3, image_size=32),
        build_student("resnet18", classes=3, image_size=64, heads=2),
        build_student("tiny-vit", classes=3, image_size=64),
    ):
        assert torchvision_name(student) is None
        names = safetensors.torch.load(student_files(student)["student.safetensors"])
        assert all(name.startswith(("backbone.", "head.")) or name in ("mean", "std") for name in names)


def test_small_images_keep_their_resolution():
    """Below 64 pixels: 3x3 stem of stride 1, no max-pool."""
    for name in ("resnet18", "resnet34", "shufflenetv2"):
        backbone = build_student(name, classes=2, image_size=32).backbone
        stem = backbone.conv1 if name.startswith("resnet") else backbone.conv1[0]
        assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
        assert isinstance(backbone.maxpool, torch.nn.Identity)


def test_a_seed_fixes_the_student_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (build_student("shufflenetv2", classes=2, image_size=32, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_adapter_starts_as_the_identity():
    learner = learner_of("adapter")
    inputs = torch.randn(4, DIM)
    torch.testing.assert_close(learner.model(inputs).features, inputs)

"""The JVP form of the feedback is double backward, to rounding, with batch norm in train mode."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bird.errors import UsageError
from bird.losses.terms import bias_loss, cross_entropy, feature_mse
from bird.methods import Batch, Regressed
from bird.methods.distances import attention_distance, feature_distance, mmd_distance, reheaded_distance
from bird.step.feedback import Objective, feedback
from bird.students import build_student

ALPHA, MU1 = 0.9, 1e-3
CLASSES, GROUPS, WIDTH = 3, 2, 24


def double_backward(model, gate, x, teacher, y, distance, x_meta, meta_loss, through=None):
    """The feedback as the formula reads: differentiate L_o(theta - mu1 dL_in/dtheta) through the student, twice."""
    theta = {name: value for name, value in model.named_parameters() if through is None or through(name)}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    h = functional_call(model, (theta, buffers), (x,))
    inner = ALPHA * distance(h, gate(teacher)) + (1 - ALPHA) * cross_entropy(h.logits, y)
    gradients = torch.autograd.grad(inner, list(theta.values()), create_graph=True, materialize_grads=True)
    ahead = {name: p - MU1 * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    bias = meta_loss(functional_call(model, (ahead, buffers), (x_meta,)))
    return bias, torch.autograd.grad(bias, list(gate.parameters()))


def rehead(seed):
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, CLASSES).double().requires_grad_(False)


DISTANCES = {  # every distance that bird can use
    "mse": feature_distance(),
    "attention": attention_distance(10.0),
    "mmd": mmd_distance(3.0, GROUPS),
    "kl of re-headed logits": reheaded_distance(rehead(1), tau=4.0),
}


def problem(architecture, dtype, distance=DISTANCES["mse"], size=16, batch=6):
    """A student in train mode, a gate, a train batch, the inputs of a meta batch and L_o on it."""
    torch.manual_seed(0)
    mean, std = torch.zeros(WIDTH), torch.ones(WIDTH)
    student = build_student(architecture, classes=CLASSES, image_size=size, feature_mean=mean, feature_std=std, seed=1)
    model = Regressed(student, WIDTH, staged=distance.reads == "maps").to(dtype).train()
    shape = (batch, WIDTH) if student.input == "features" else (batch, 3, size, size)
    x, x_meta = torch.rand(shape, dtype=dtype), torch.rand(shape, dtype=dtype)
    y = torch.randint(0, CLASSES, (batch,))
    y_meta, a_meta = (
        torch.arange(batch) // 2 % CLASSES,
        torch.arange(batch) % GROUPS,
    )  # every class has both groups
    stages = tuple(torch.rand(batch, *shape, dtype=dtype) for shape in ((5, 16, 16), (7, 6, 4), (4, 2, 2)))
    train = Batch(x, y, a_meta, torch.randn(batch, WIDTH, dtype=dtype), stages=stages)
    gate = distance.new_gate(train).to(dtype)
    return model, gate, train, x_meta, lambda h: bias_loss(h.logits, y_meta, a_meta, GROUPS)


def both(architecture, distance, dtype, last=False, **kwargs):
    model, gate, train, x_meta, meta_loss = problem(architecture, dtype, distance, **kwargs)
    through = model.last_part().__contains__ if last else None
    given = distance.given(train)

    def between(h, gated):
        return distance.loss(h, gated, train)

    expected_bias, expected = double_backward(
        model, gate, train.inputs, given, train.labels, between, x_meta, meta_loss, through
    )
    before = {name: value.clone() for name, value in model.named_buffers()}
    output = functional_call(model, ({}, {k: v.clone() for k, v in model.named_buffers()}), (train.inputs,))

    def inner(h):
        return ALPHA * between(h, gate(given)) + (1 - ALPHA) * cross_entropy(h.logits, train.labels)

    bias, got = feedback(
        model,
        gate,
        Objective(train.inputs, inner),
        Objective(x_meta, meta_loss),
        output=output,
        mu1=MU1,
        through=through,
    )
    inner(output).backward()  # the caller's own backward pass still works
    after = dict(model.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(bias, expected_bias.detach())
    return (torch.cat([g.flatten() for g in gradients]) for gradients in (got, expected))


PAIRS = [
    (student, name)
    for student in ("resnet18", "shufflenetv2", "adapter")
    for name in DISTANCES
    if student != "adapter" or DISTANCES[name].reads == "features"
]


@pytest.mark.parametrize(("architecture", "name"), PAIRS)
def test_equals_double_backward_in_fp64(architecture, name):
    got, expected = both(architecture, DISTANCES[name], torch.float64)
    assert expected.norm() > 0
    assert ((got - expected).norm() / expected.norm()).item() < 1e-10


@pytest.mark.parametrize("architecture", ["resnet18", "shufflenetv2", "tiny-convnet"])
def test_through_the_last_stage_equals_double_backward_of_a_look_ahead_of_it_alone(architecture):
    got, expected = both(architecture, DISTANCES["mse"], torch.float64, last=True)
    whole, _ = both(architecture, DISTANCES["mse"], torch.float64)
    assert ((got - expected).norm() / expected.norm()).item() < 1e-10
    assert ((got - whole).norm() / whole.norm()).item() > 1e-3
    assert torch.nn.functional.cosine_similarity(got, whole, dim=0) > 0  # an approximation


@pytest.mark.parametrize(
    ("architecture", "first"), [("resnet18", "layer4.0.conv1.weight"), ("shufflenetv2", "stage4.0.branch1.0.weight")]
)
def test_the_last_part_is_the_last_stage_and_all_behind_it(architecture, first):
    model = Regressed(build_student(architecture, classes=CLASSES, image_size=16), WIDTH)
    names = [name for name, _ in model.named_parameters()]
    last = model.last_part()
    assert [name for name in names if name in last] == names[names.index(f"student.backbone.{first}") :]
    assert {"student.head.weight", "student.head.bias", "regressor.weight"} < last


def test_a_student_without_stages_has_no_last_one():
    mean, std = torch.zeros(WIDTH), torch.ones(WIDTH)
    adapter = build_student("adapter", classes=CLASSES, feature_mean=mean, feature_std=std)
    with pytest.raises(UsageError, match="--student adapter, which has no stages"):
        Regressed(adapter, WIDTH).last_part()


def test_equals_double_backward_in_fp32_to_rounding():
    got, expected = both("resnet18", DISTANCES["mse"], torch.float32)
    assert ((got - expected).norm() / expected.norm()).item() < 1e-3


def test_closed_form_for_mse():
    """mu1 alpha 2/(B d) sigmoid'(phi) sum_b (Jv)_b h_T,b on an adapter small enough to write J out."""
    model, gate, train, x_meta, meta_loss = problem("adapter", torch.float64)
    x, teacher, y = train.inputs, train.teacher, train.labels
    h = model(x)
    inner = ALPHA * feature_mse(h.features, gate(teacher)) + (1 - ALPHA) * cross_entropy(h.logits, y)
    theta = dict(model.named_parameters())
    g = torch.autograd.grad(inner, list(theta.values()), materialize_grads=True)
    ahead = {name: (p - MU1 * gi).detach().requires_grad_() for (name, p), gi in zip(theta.items(), g, strict=True)}
    v = dict(
        zip(
            ahead,
            torch.autograd.grad(meta_loss(functional_call(model, ahead, (x_meta,))), list(ahead.values())),
            strict=True,
        )
    )
    jv = x @ v["student.backbone.weight"].T + v["student.backbone.bias"]
    s = torch.sigmoid(gate.phi)
    expected = MU1 * ALPHA * 2 / teacher.numel() * s * (1 - s) * (jv * teacher).sum(0)
    got, _ = both("adapter", DISTANCES["mse"], torch.float64)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=0)


def test_feedback_descends_the_bias():
    """A small step of phi against the feedback lowers L_o(theta') to first order."""
    model, gate, train, x_meta, meta_loss = problem("adapter", torch.float64)
    x, teacher, y = train.inputs, train.teacher, train.labels

    def distance(h, gated):
        return feature_mse(h.features, gated)

    bias, (gradient,) = double_backward(model, gate, x, teacher, y, distance, x_meta, meta_loss)
    step = 1e-2 / gradient.norm()
    with torch.no_grad():
        gate.phi -= step * gradient
    moved, _ = double_backward(model, gate, x, teacher, y, distance, x_meta, meta_loss)
    predicted = -(step * gradient.square().sum()).item()
    assert (moved - bias).item() == pytest.approx(predicted, rel=0.05)

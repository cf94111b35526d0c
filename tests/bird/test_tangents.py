"""The short ways of forward mode are torch's own, term by term, and a tape misleads none of them."""

import itertools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.profiler import profile

from bird.step.feedback import Objective, feedback
from bird.step.gate import Gate
from bird.step.passes import in_forward_mode, probe
from bird.step.tangents import FastTangents, Tape
from bird.students import StudentOutput, build_student


def moved(arguments, tangents, **options):
    """Batch norm and its tangent."""
    with forward_ad.dual_level():
        duals = [
            None if value is None else value if tangent is None else forward_ad.make_dual(value, tangent)
            for value, tangent in zip(arguments, tangents, strict=True)
        ]
        x, weight, bias = duals
        return tuple(forward_ad.unpack_dual(F.batch_norm(x, None, None, weight, bias, **options)))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (4, 3, 5, 2)])
@pytest.mark.parametrize("dual", ["x", "x weight", "x bias", "x weight bias", "weight bias"])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_torch_s_own_rule(shape, dual, affine):
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": shape, "weight": (3,), "bias": (3,)}
    values, tangents = (
        [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes.values()] for _ in range(2)
    )
    tangents = [tangent if name in dual.split() else None for name, tangent in zip(sizes, tangents, strict=True)]
    if not affine:
        values, tangents = [values[0], None, None], [tangents[0], None, None]
    expected = moved(values, tangents, training=True, eps=1e-3)
    with FastTangents():
        found = moved(values, tangents, training=True, eps=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_weight_of_zero_and_a_constant_channel_are_no_trouble():
    x = torch.randn(5, 2, dtype=torch.float64)
    x[:, 1] = 3.0
    arguments = [x, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    tangents = [torch.randn_like(each) for each in arguments]
    expected = moved(arguments, tangents, training=True)
    with FastTangents():
        found = moved(arguments, tangents, training=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_evaluation_mode_is_left_alone():
    norm = nn.BatchNorm1d(3).double().eval()
    x, dx = torch.randn(2, 4, 3, dtype=torch.float64)
    with FastTangents(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, dx))).tangent
    torch.testing.assert_close(tangent, dx / (1 + norm.eps) ** 0.5)


def tangent_of(func, arguments, moving, how):
    """Value and tangent of `func`, along the ones of `arguments` that move."""
    generator = torch.Generator().manual_seed(1)
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(value, torch.randn(value.shape, generator=generator).double()) if moves else value
            for value, moves in zip(arguments, moving, strict=True)
        ]
        return tuple(forward_ad.unpack_dual(func(*duals, **how)))


@pytest.mark.parametrize("moving", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(
    ("func", "shapes", "how"),
    [
        (F.linear, [(5, 4), (3, 4), (3,)], {}),
        (F.linear, [(2, 5, 4), (3, 4), (3,)], {}),
        (F.conv1d, [(2, 4, 7), (6, 2, 3), (6,)], {"groups": 2, "padding": 1}),
        (F.conv2d, [(2, 4, 7, 6), (8, 1, 3, 2), (8,)], {"groups": 4, "stride": 2}),
        (F.conv2d, [(2, 4, 7, 6), (3, 4, 3, 3), (3,)], {"dilation": 2}),
    ],
)
def test_products_move_as_torch_says(func, shapes, how, moving):
    arguments = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = tangent_of(func, arguments, moving, how)
    with Tape() as tape:
        func(*arguments, **how)
    for known in (None, tape):
        with FastTangents(known):
            found = tangent_of(func, arguments, moving, how)
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Winding(nn.Module):
    """Whatever could mislead a tape: values overwritten, a layer used twice, chance, frozen statistics, no batch norm."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.frozen, self.pool = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(4, 2)
        self.frozen.eval()

    def forward(self, x):
        x = F.relu_(self.norm(self.first(x)))
        x = self.pool(x)
        x = F.relu_(self.twice(x)) + x
        x = F.dropout(self.frozen(self.twice(x)), 0.5)
        x, where = F.max_pool2d(x, 2, return_indices=True)
        return StudentOutput(x.mean((2, 3)), self.head(F.max_pool2d(x.mul_(where > 2), 2).flatten(1)))


@pytest.mark.parametrize("known", [True, False])
def test_a_jvp_along_a_tape_is_torch_s_own(known):
    torch.manual_seed(0)
    student, inputs = Winding().double(), torch.randn(8, 3, 8, 8, dtype=torch.float64)
    theta = {name: value.detach() for name, value in student.named_parameters()}
    direction = {name: torch.randn_like(value) for name, value in theta.items()}
    state = torch.get_rng_state()
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, direction[name]) for name, value in theta.items()}
        expected = [forward_ad.unpack_dual(each).tangent for each in probe(student, duals, inputs)]
    torch.set_rng_state(state)
    with Tape(student, keep=known) as tape:
        student(inputs)
    after = torch.get_rng_state()
    found = in_forward_mode(student, direction, inputs, tape)
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_what_the_tape_holds_is_not_computed_again():
    student, inputs = build_student("resnet18", classes=2, image_size=32, seed=0), torch.randn(4, 3, 32, 32)
    theta = {name: value.detach() for name, value in student.named_parameters()}
    with Tape(student) as tape:
        student(inputs)
    counts = []
    for known in (tape, Tape(student)):
        with profile() as calls:
            in_forward_mode(student, theta, inputs, known)
        counts.append({each.key: each.count for each in calls.key_averages()})
    convolutions = len([each for each in student.modules() if isinstance(each, nn.Conv2d)])
    assert counts[0]["aten::convolution"] == 2 * convolutions - 1  # the first one's input does not move
    assert counts[1]["aten::convolution"] == 3 * convolutions - 1
    assert "aten::max_pool2d_with_indices" not in counts[0]


class Drawing(nn.Module):
    """A student with dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        features = self.layers(x)
        return StudentOutput(features, features[:, :2])


def test_a_student_that_draws_is_seen_with_the_same_draws():
    """The gate's gradient, against double backward through the very masks of the forward pass."""
    torch.manual_seed(0)
    student, gate = Drawing().double(), Gate(3).double()
    inputs, teacher = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    theta, labels = dict(student.named_parameters()), torch.arange(6) % 2

    def inner(output):
        return F.mse_loss(output.features, gate(teacher))

    def outer(output):
        return F.cross_entropy(output.logits, labels)

    torch.manual_seed(1)
    with Tape() as tape:
        output = student(inputs)
    losses = Objective(inputs, inner), Objective(inputs, outer)
    _, (found,) = feedback(student, gate, *losses, output=output, tape=tape, mu1=1.0)
    torch.manual_seed(1)
    slopes = torch.autograd.grad(inner(student(inputs)), list(theta.values()), create_graph=True)
    ahead = {name: p - g for (name, p), g in zip(theta.items(), slopes, strict=True)}
    expected = torch.autograd.grad(outer(functional_call(student, ahead, (inputs,))), gate.phi)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

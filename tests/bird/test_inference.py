"""A teacher's faster forward pass against the plain module's: the same values, and no part replaced that may not be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from bird.teachers.base import PENULTIMATE, TorchTeacher, View, digest_of_state
from bird.teachers.inference import Attention, hasten
from bird.teachers.layers import Tap, stage_taps, token_taps


def filled(module, seed=0):
    """Batch norms as training leaves them: with statistics, and no weight at its first value."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval().requires_grad_(False)


def convolve(seed=0, inside=4):
    torch.manual_seed(seed)
    return nn.Conv2d(3 if not seed else inside, inside, 3, padding=1, bias=False)


def towers():
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import QuickGELU, VisionTransformer
    from torchvision import models

    torch.manual_seed(1)
    vit = VisionTransformer(32, 8, 32, 3, 2, 4.0, output_dim=24, act_layer=QuickGELU)
    resnet = ModifiedResNet([1, 2, 1, 1], 24, 4, 64, 8)
    return {
        "vit": (vit, 32, token_taps("ln_post", lambda tokens: tokens)),
        "resnet": (resnet, 64, stage_taps(resnet)),
        "mobilenet": (models.mobilenet_v3_small(num_classes=7), 64, {}),
        "torchvision-vit": (models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=7), 32, {}),
    }


def teacher_of(tower, side, taps, precision="fp32"):
    taps = {PENULTIMATE: Tap("penultimate"), **taps}
    module = copy.deepcopy(tower)
    return TorchTeacher("t", module, View((side, side)), taps=taps, device=torch.device("cpu"), precision=precision)


def views(side, count=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def relative(found, plain):
    return float((found - plain).norm() / plain.norm())


@pytest.mark.parametrize("kind", ["vit", "resnet", "mobilenet", "torchvision-vit"])
def test_the_same_vectors_in_less_time_and_by_the_same_name(kind):
    tower, side, taps = towers()[kind]
    filled(tower)
    if kind == "torchvision-vit":
        nn.init.normal_(tower.heads.head.weight)  # zero when it is made
    teacher, pixels = teacher_of(tower, side, taps), views(side)
    assert teacher.weights_digest == digest_of_state(tower.state_dict())
    parts = [type(part) for part in teacher._module.modules()]
    assert nn.BatchNorm2d not in parts, "a norm is left"
    assert parts.count(nn.MultiheadAttention) == parts.count(Attention), "an attention is left"
    with torch.inference_mode():
        plain = tower(pixels)
    assert relative(teacher.features(pixels), plain) < 1e-5
    together = teacher.answer(pixels, tuple(teacher.layers))
    assert relative(together[PENULTIMATE], plain) < 1e-5
    assert cosine_similarity(together[PENULTIMATE].double(), plain.double()).min() >= 1 - 1e-6
    assert all(values.is_contiguous() for values in together.values())


@pytest.mark.parametrize("kind", ["vit", "resnet", "mobilenet", "torchvision-vit"])
def test_bf16_is_as_near_as_autocast_of_the_plain_module(kind):
    tower, side, taps = towers()[kind]
    filled(tower)
    if kind == "torchvision-vit":
        nn.init.normal_(tower.heads.head.weight)
    pixels = views(side)
    with torch.inference_mode():
        exact = tower(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            plain = tower(pixels).float()
    found = teacher_of(tower, side, taps, "bf16").features(pixels)
    assert not torch.equal(found, exact)
    missing = 1 - cosine_similarity(plain, exact)
    assert (1 - cosine_similarity(found, exact) <= 2 * missing.max() + 1e-5).all()


class Net(nn.Module):
    """Two convolutions and two norms, joined by `way`."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first, self.second = convolve(), convolve(1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.way(self, x)


def read_twice(net, x):
    maps = net.first(x)
    return net.norm(maps) + maps


def norm_called_twice(net, x):
    return net.norm(net.second(net.norm(net.first(x))))


def convolution_called_twice(net, x):
    maps = net.first(x)
    return net.norm(net.second(maps)) + net.other(net.second(maps.relu()))


def something_between(net, x):
    return net.norm(net.first(x).relu())


def looks_at_values(net, x):
    return net.norm(net.first(x)) if x.mean() < 9 else x


def uses_the_norms_weight(net, x):
    return net.norm(net.first(x)) * net.norm.weight[0]


@pytest.mark.parametrize(
    "way",
    [
        read_twice,
        norm_called_twice,
        convolution_called_twice,
        something_between,
        looks_at_values,
        uses_the_norms_weight,
    ],
)
def test_no_wrong_pair(way):
    net, pixels = filled(Net(way)), views(8)
    plain, parts = net(pixels), [*net.modules()]
    assert not hasten(net, lambda: {"maps": net(views(8, 2))}, lambda: False)
    assert [*net.modules()] == parts, "a part was not put back"
    assert torch.equal(net(pixels), plain)


def test_a_fold_that_changes_the_answer_is_undone():
    """Whatever the reason: the answers decide."""
    net, pixels = filled(Net(lambda net, x: net.norm(net.first(x)))), views(8)
    plain, answers = net(pixels), iter([torch.ones(3), 1.001 * torch.ones(3)])
    assert not hasten(net, lambda: {"vector": next(answers)}, lambda: False)
    assert torch.equal(net(pixels), plain)


def test_pairs_are_found_below_what_cannot_be_traced():
    inner = Net(lambda net, x: net.other(net.second(net.norm(net.first(x)))))
    net, pixels = filled(nn.Sequential(inner, Net(looks_at_values).norm)), views(8)
    plain = net(pixels)
    assert hasten(net, lambda: {"maps": net(views(8, 2))}, lambda: False)
    assert relative(net(pixels), plain) < 1e-5

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net(lambda net, x: net.norm(net.first(x)))

        def forward(self, x):
            return self.inner(x) if x.mean() < 9 else x

    outer = filled(Outer())
    plain = outer(pixels)
    assert hasten(outer, lambda: {"maps": outer(views(8, 2))}, lambda: False)
    assert type(outer.inner.norm) is nn.Identity
    assert relative(outer(pixels), plain) < 1e-5


@pytest.mark.parametrize(("path", "of"), [("norm", "output"), ("first", "output"), ("norm", "input")])
def test_a_part_that_is_tapped_stays_and_says_the_same(path, of):
    net = filled(Net(lambda net, x: net.other(net.second(net.norm(net.first(x)))).mean((2, 3))))
    teacher, pixels = teacher_of(net, 8, {"maps.inner": Tap("maps", path, of=of)}), views(8)
    assert type(teacher._module.other) is nn.Identity, "the other pair is free"
    maps = net.first(pixels)
    assert torch.equal(
        teacher.answer(pixels, ["maps.inner"])["maps.inner"], net.norm(maps) if of + path == "outputnorm" else maps
    )
    assert relative(teacher.features(pixels), net(pixels)) < 1e-5


def test_attention_that_wants_more_is_the_plain_one():
    torch.manual_seed(3)
    plain = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    fast, x, y = Attention(plain), torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(fast(x, x, x)[1], plain(x, x, x)[1])
    for arguments in ({}, {"attn_mask": mask}, {"average_attn_weights": False}):
        expected = plain(x, x, x, need_weights=False, **arguments)[0]
        torch.testing.assert_close(fast(x, x, x, need_weights=False, **arguments)[0], expected)
    torch.testing.assert_close(fast(x, y, y, need_weights=False)[0], plain(x, y, y, need_weights=False)[0])

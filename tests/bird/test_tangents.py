"""Batch norm's short way in forward mode is torch's own, term by term."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from bird.tangents import FastTangents


def moved(arguments, tangents, **options):
    """Batch norm and its tangent."""
    with torch.no_grad(), forward_ad.dual_level():
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
    with FastTangents(), torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, dx))).tangent
    torch.testing.assert_close(tangent, dx / (1 + norm.eps) ** 0.5)

"""The losses against loops written from their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bird.losses.terms import bias_loss, distillation_kl, feature_mse
from bird.step.gate import Gate


def bias_from_definition(logits, labels, protected, groups, largest=torch.max):
    """sum_i max_j |CE(i, j) - CE(i)| with loops; absent cells left out, classes with fewer than two groups give 0."""
    ce = F.cross_entropy(logits, labels, reduction="none")
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(logits.shape[1]):
        of_class = labels == i
        present = [j for j in range(groups) if (of_class & (protected == j)).any()]
        if len(present) >= 2:
            gaps = [(ce[of_class & (protected == j)].mean() - ce[of_class].mean()).abs() for j in present]
            total = total + largest(torch.stack(gaps))
    return total


@pytest.mark.parametrize("soft_max", [0.0, 0.3])
@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 4), st.integers(0, 10_000))
def test_bias_loss_and_its_gradient_equal_the_definition(soft_max, count, classes, groups, seed):
    def largest(gaps):
        return soft_max * (gaps / soft_max).exp().mean().log() if soft_max else gaps.max()

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(classes, (count,), generator=generator)
    protected = torch.randint(groups, (count,), generator=generator)
    got, expected = (
        bias_loss(logits, labels, protected, groups, soft_max),
        bias_from_definition(logits, labels, protected, groups, largest),
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    if expected.requires_grad:
        one, two = (torch.autograd.grad(value, logits)[0] for value in (got, expected))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_a_soft_maximum_lies_between_mean_and_maximum_and_moves_every_group():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 2, dtype=torch.float64, generator=generator).requires_grad_()
    labels, groups = torch.arange(64) % 2, torch.arange(64) // 2 % 8
    values = [bias_loss(logits, labels, groups, 8, each) for each in (0.0, 1e-3, 1.0, 1e3)]
    ce = F.cross_entropy(logits, labels, reduction="none").view(-1, 8, 2).mean(0)
    mean = (ce - ce.mean(0)).abs().mean(0).sum()
    assert mean < values[2] < values[0]
    assert values[1].item() == pytest.approx(values[0].item(), abs=5e-3)
    assert values[3].item() == pytest.approx(mean.item(), abs=1e-3)
    moved = [torch.autograd.grad(each, logits, retain_graph=True)[0].norm(dim=1).view(-1, 8, 2) for each in values]
    assert (moved[2] > 0.01 * moved[2].max()).any(0).all()  # every cell


def test_bias_loss_is_zero_for_one_group_and_for_equal_groups():
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    assert bias_loss(logits, labels, torch.zeros(8, dtype=torch.long), 1) == 0
    doubled = torch.cat([logits, logits])
    groups = torch.arange(2).repeat_interleave(8)
    assert bias_loss(doubled, labels.repeat(2), groups, 2).item() == pytest.approx(0, abs=1e-6)


def test_kl_is_zero_for_equal_logits_and_gradchecks():
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64)
    assert distillation_kl(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: distillation_kl(z, teacher, 4.0), student)


def test_kl_tends_to_the_mse_of_centred_logits_at_high_temperature():
    """Hinton et al. 2015, section 2.1: for large tau, tau^2 KL -> sum over classes of (z - v)^2 / (2 C), centred."""
    z, v = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    z, v = z - z.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    limit = ((z - v) ** 2).sum(1).mean() / (2 * 5)
    assert distillation_kl(z, v, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)


def test_gate_starts_between_half_and_three_quarters_and_scales_features():
    gate = Gate(1000, seed=3)
    values = gate(torch.ones(1, 1000))
    assert 0.5 <= values.min() < values.max() < 0.7311
    assert torch.equal(gate.phi, Gate(1000, seed=3).phi)
    teacher = torch.randn(4, 1000)
    torch.testing.assert_close(gate(teacher), values * teacher)
    assert feature_mse(teacher, teacher) == 0

"""Attention transfer and MMD against loops written from their definitions."""

import pytest
import torch
from torch.nn import functional as F

from bird.losses.attention import attention, attention_loss
from bird.losses.mmd import class_mmd

CLASSES, GROUPS = 3, 2


def test_attention_loss_is_its_definition():
    """sum over stages of mean (L2norm(mean_c S^2) - L2norm(mean_c T^2))^2, sample by sample."""
    shapes = [(6, 4, 4), (5, 8, 2)]
    student, teacher = ([torch.randn(3, *shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        gaps = []
        for one, two in zip(s, t, strict=True):
            a, b = ((maps**2).mean(0).flatten() for maps in (one, two))
            gaps.append((a / a.norm() - b / b.norm()) ** 2)
        expected += torch.stack(gaps).mean()
    got = attention_loss([attention(s) for s in student], [attention(t) for t in teacher])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    sums = attention_loss([attention(s) for s in student], [t.square().sum(1) for t in teacher])
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)  # attention.STAGE of a cache is a sum


def test_attention_of_other_sizes_and_numbers_of_stages_meets_at_the_deepest():
    deep, shallow = torch.rand(2, 4, 4), torch.rand(2, 8, 8)
    wide = deep.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert attention_loss([shallow, deep], [wide]).item() == pytest.approx(0, abs=1e-12)
    assert attention_loss([wide], [shallow, deep]).item() == pytest.approx(0, abs=1e-12)
    assert attention_loss([torch.zeros(2, 4, 4)], [deep]).isfinite()
    with pytest.raises(ValueError, match="at least one stage"):
        attention_loss([], [deep])


def test_attention_loss_gradchecks_through_pooling():
    maps = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: attention_loss([attention(s)], [teacher]), maps)
    assert torch.autograd.gradgradcheck(lambda s: attention_loss([attention(s)], [teacher]), maps)


def mmd_from_definition(student, teacher, labels, groups):
    """Loops over classes, groups and pairs; the biased estimator: all pairs, with those of a sample and itself."""
    width = 2 * torch.stack([(t - s).square().sum() for t in teacher for s in student]).mean().item()

    def mean_kernel(one, two):
        return torch.stack([torch.exp(-(x - y).square().sum() / width) for x in one for y in two]).mean()

    total = torch.zeros((), dtype=student.dtype)
    for c in range(CLASSES):
        for g in range(GROUPS):
            own, all_of_class = student[(labels == c) & (groups == g)], teacher[labels == c]
            if len(own):
                total = total + mean_kernel(all_of_class, all_of_class) + mean_kernel(own, own)
                total = total - 2 * mean_kernel(all_of_class, own)
    return total


def cells(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(kinds, (count,), generator=generator) for kinds in (CLASSES, GROUPS))


@pytest.mark.parametrize("count", [4, 17])  # with 4 samples, cells are absent
def test_mmd_and_its_gradient_equal_the_definition(count):
    student = torch.randn(count, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(count, 5, dtype=torch.float64)
    labels, groups = cells(count)
    got = class_mmd(student, teacher, labels, groups, CLASSES, GROUPS)
    expected = mmd_from_definition(student, teacher, labels, groups)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    # the kernel's width is a constant of the loss: the loop takes it out of the graph, too
    one, two = (torch.autograd.grad(value, student)[0] for value in (got, expected))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)


def test_mmd_is_zero_for_equal_samples_and_never_negative():
    labels = torch.arange(CLASSES).repeat_interleave(4)
    groups = torch.arange(12) % 4 // 2
    half = torch.randn(CLASSES, 2, 5, dtype=torch.float64)
    features = torch.cat([half, half], 1).flatten(0, 1)  # in each class both groups have the same samples
    assert class_mmd(features, features, labels, groups, CLASSES, GROUPS).item() == pytest.approx(0, abs=1e-12)
    assert class_mmd(torch.randn(12, 5), torch.randn(12, 5), labels, groups, CLASSES, GROUPS) > 0


def test_mmd_gives_the_teacher_no_gradient_and_gradchecks_at_a_fixed_width():
    labels, groups = cells(6)
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 4, dtype=torch.float64)
    loss = class_mmd(student, teacher, labels, groups, CLASSES, GROUPS)
    loss.backward()
    assert student.grad.norm() > 0
    assert teacher.grad is None
    # turning the student about the teacher's mean leaves the mean squared distance, the kernel's width, as it is
    turn = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    centre = teacher.mean(0)

    def rotated(a):
        return class_mmd(
            (student.detach() - centre) @ torch.linalg.matrix_exp(a - a.T) + centre,
            teacher,
            labels,
            groups,
            CLASSES,
            GROUPS,
        )

    assert torch.autograd.gradcheck(rotated, turn)


@pytest.mark.parametrize("models", [(2,), (2, 3)])
def test_leading_dimensions_are_models_of_their_own(models):
    count = 8
    student, teacher = torch.randn(*models, count, 5), torch.randn(*models, count, 5)
    labels, groups = torch.randint(CLASSES, (*models, count)), torch.randint(GROUPS, (*models, count))
    maps, targets = torch.rand(*models, count, 3, 6, 6), torch.rand(*models, count, 4, 4)
    mmd = class_mmd(student, teacher, labels, groups, CLASSES, GROUPS)
    at = attention_loss([attention(maps)], [targets])
    assert mmd.shape == at.shape == models
    for index in torch.cartesian_prod(*(torch.arange(size) for size in models)).view(-1, len(models)).tolist():
        i = tuple(index)
        alone = class_mmd(student[i], teacher[i], labels[i], groups[i], CLASSES, GROUPS)
        torch.testing.assert_close(mmd[i], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(at[i], attention_loss([attention(maps[i])], [targets[i]]))


def test_normalised_attention_is_what_normalize_gives():
    maps = torch.rand(3, 4, 4)
    expected = (F.normalize(maps.flatten(1)) - F.normalize(maps.square().flatten(1))).square().mean()
    torch.testing.assert_close(attention_loss([maps], [maps.square()]), expected)

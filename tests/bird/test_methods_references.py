"""What the methods do that know the groups: reweight, group-DRO, domain-independent, and the adversary of AD."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.methodkit import CLASSES, DIM, GROUPS, batch_of, ready
from torch.nn import functional as F

from bird.losses.terms import bias_loss, cross_entropy
from bird.losses.weighting import (
    cell_cross_entropy,
    exponentiated,
    inverse_frequencies,
    own_head,
    weighted_cross_entropy,
)
from bird.methods import METHODS, Hyperparameters, build_method
from bird.methods.adversary import is_linear, linear_update, tensor_update, without
from bird.students import load_student, student_files


def test_reweight_is_ce_on_a_balanced_resample_in_expectation():
    """Over the whole training set: weighted CE is the mean over the cells of their CE."""
    counts = torch.tensor([[9, 1], [4, 6], [5, 0]])
    labels = torch.repeat_interleave(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([9, 1, 4, 6, 5]))
    groups = torch.repeat_interleave(torch.tensor([0, 1, 0, 1, 0]), torch.tensor([9, 1, 4, 6, 5]))
    logits = torch.randn(25, 3, dtype=torch.float64)
    weights = inverse_frequencies(counts).double()
    got = weighted_cross_entropy(logits, labels, groups, weights)
    ce = F.cross_entropy(logits, labels, reduction="none")
    every = [ce[(labels == c) & (groups == g)].mean() for c in range(3) for g in range(2) if counts[c, g]]
    torch.testing.assert_close(got, torch.stack(every).mean())
    assert (weights * counts).sum().item() == pytest.approx(25)
    assert weights[2, 1] == 0


def test_reweight_on_equal_cells_is_the_baseline():
    (reweight, one), (baseline, two) = ready("reweight", "adapter"), ready("baseline", "adapter")
    batch = batch_of("adapter")
    for method, learner in ((reweight, one), (baseline, two)):
        method.step(learner, batch, lambda: batch, warm=True)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="prepare"):
        build_method("reweight", Hyperparameters(), GROUPS).step(one, batch, lambda: batch, warm=True)


def test_exponentiated_gradient_by_hand():
    """q = (1/2, 1/2), losses (ln 2, 0), step 1: (1, 1/2) / (3/2) = (2/3, 1/3)."""
    q, losses = torch.tensor([[0.5, 0.5]]), torch.tensor([[math.log(2.0), 0.0]])
    torch.testing.assert_close(exponentiated(q, losses, 1.0), torch.tensor([[2 / 3, 1 / 3]]))
    torch.testing.assert_close(exponentiated(q, losses, 0.0), q)


def test_group_dro_by_hand():
    """Two classes, two groups, three cells present; weights first, then the loss through the new weights."""
    method, learner = ready("group-dro", "adapter", dro_step=0.5)
    batch = batch_of("adapter", count=4)
    batch = replace(batch, labels=torch.tensor([0, 0, 1, 1]), groups=torch.tensor([0, 0, 0, 1]))
    ce = F.cross_entropy(learner.model(batch.inputs).logits, batch.labels, reduction="none").detach()
    expected = torch.zeros(CLASSES, GROUPS)
    expected[0, 0], expected[1, 0], expected[1, 1] = ce[:2].mean(), ce[2], ce[3]
    grown = torch.exp(0.5 * expected)
    q = grown / grown.sum()
    losses = method.step(learner, batch, lambda: batch, warm=True)
    torch.testing.assert_close(learner.aide.q, q)
    torch.testing.assert_close(losses["loss"], (q * expected).sum())


def test_cell_losses_take_leading_dimensions():
    logits = torch.randn(2, 12, CLASSES)
    labels, groups = torch.arange(12).repeat(2, 1) % CLASSES, torch.arange(12).repeat(2, 1) % GROUPS
    cells, weighted = (
        cell_cross_entropy(logits, labels, groups, GROUPS),
        weighted_cross_entropy(logits, labels, groups, torch.rand(CLASSES, GROUPS)),
    )
    assert cells.shape == (2, CLASSES, GROUPS)
    assert weighted.shape == (2,)
    torch.testing.assert_close(cells[1], cell_cross_entropy(logits[1], labels[1], groups[1], GROUPS))
    assert exponentiated(torch.rand(2, CLASSES, GROUPS), cells, 0.1).sum((-2, -1)).tolist() == pytest.approx([1, 1])
    heads = torch.randn(2, 12, GROUPS, CLASSES)
    torch.testing.assert_close(own_head(heads, groups)[1, 5], heads[1, 5, groups[1, 5]])


def test_domain_independent_gradients_touch_only_the_own_groups_head():
    _, learner = ready("domain-independent", "adapter")
    student, batch = learner.model.student, batch_of("adapter")
    first = torch.zeros_like(batch.groups)
    cross_entropy(own_head(student.by_head(batch.inputs), first), batch.labels).backward()
    by_head = student.head.weight.grad.view(GROUPS, CLASSES, DIM)
    assert by_head[0].norm() > 0
    assert by_head[1].norm() == 0


@pytest.mark.parametrize("name", ["adapter", "shufflenetv2"])
def test_a_domain_independent_student_ships_with_summed_logits(tmp_path, name):
    _, learner = ready("domain-independent", name)
    student, inputs = learner.model.student.eval(), batch_of(name).inputs
    for file, data in student_files(student).items():
        (tmp_path / file).write_bytes(data)
    loaded = load_student(tmp_path)
    assert loaded.heads == GROUPS
    logits = loaded(inputs).logits
    assert logits.shape == (12, CLASSES)
    torch.testing.assert_close(logits, student.by_head(inputs).sum(1))


def test_the_projected_update_is_orthogonal_to_the_adversary():
    for shape in ((7,), (4, 5), (3, 2, 3, 3)):
        g, adversary = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        rest = without(g, adversary)
        assert (rest * adversary).sum().item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(without(rest, adversary), rest)
    assert torch.equal(without(g, torch.zeros_like(g)), g)


def test_the_adversarial_step_takes_both_gradients_first():
    """The student's update is g - proj g - w g_adv at the parameters before either moved; SGD shows it."""
    method, learner = ready("ad", "adapter", ad_weight=0.5)
    batch = batch_of("adapter")
    theta = list(learner.model.parameters())
    logits = learner.model(batch.inputs).logits
    g = torch.autograd.grad(cross_entropy(logits, batch.labels), theta, retain_graph=True)
    g_adv = torch.autograd.grad(cross_entropy(learner.aide(logits), batch.groups), theta)
    before = [p.detach().clone() for p in theta]
    own = [p.detach().clone() for p in learner.aide.parameters()]
    learner.optimizer = torch.optim.SGD(theta, lr=0.1)
    method.step(learner, batch, lambda: batch, warm=True)
    for p, old, one, two in zip(theta, before, g, g_adv, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * (without(one, two) - 0.5 * two))
    assert not any(torch.equal(p, old) for p, old in zip(learner.aide.parameters(), own, strict=True))


@pytest.mark.parametrize("blind", [False, True])
def test_an_adapter_s_short_way_is_that_of_every_student(blind):
    """One product a layer, equal to the projection of whole gradients; also where the adversary's are zero."""
    _, learner = ready("ad", "adapter")
    batch, model = batch_of("adapter", count=40), learner.model.double()
    inputs = batch.inputs.double()
    output = model(inputs)
    ce, caught = cross_entropy(output.logits, batch.labels), output.logits.square().mean() * (0.0 if blind else 1.0)
    assert is_linear(model)
    for one, two in zip(
        linear_update(model, inputs, output, ce, caught, 0.5),
        tensor_update(model, inputs, output, ce, caught, 0.5),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert not is_linear(ready("ad", "shufflenetv2")[1].model)


def test_the_adversary_learns_every_epoch_and_the_student_every_nth():
    method, learner = ready("ad", "adapter", ad_every=3)
    batch = batch_of("adapter")
    moved = []
    for epoch in range(4):
        method.begin_epoch(epoch)
        student, adversary = learner.model.student.head.weight.clone(), learner.aide[0].weight.clone()
        method.step(learner, batch, lambda: batch, warm=True)
        moved.append(not torch.equal(student, learner.model.student.head.weight))
        assert not torch.equal(adversary, learner.aide[0].weight)
    assert moved == [True, False, False, True]


def test_one_group_has_no_bias():
    logits, labels = torch.randn(9, CLASSES), torch.arange(9) % CLASSES
    assert bias_loss(logits, labels, torch.zeros(9, dtype=torch.long), 1) == 0


def test_bird_fitnet_is_bird():
    assert METHODS["bird+fitnet"] is METHODS["bird"]

"""bird-plus: adjusted logits, averaged weights, and nothing else but BIRD."""

import copy

import pytest
import torch
from helpers.methodkit import CLASSES, GROUPS, batch_of, learner_of, ready
from torch import nn

from bird.losses.terms import cross_entropy
from bird.losses.weighting import adjusted_cross_entropy, log_prior
from bird.methods import Hyperparameters, build_method
from bird.methods.bird_step import BirdStep
from bird.step.averaging import running_mean


def test_the_prior_is_the_class_s_frequency_within_the_group():
    prior = log_prior(torch.tensor([[99, 0], [9, 49]]))
    torch.testing.assert_close(prior.exp(), torch.tensor([[100 / 110, 1 / 51], [10 / 110, 50 / 51]]))
    torch.testing.assert_close(prior.exp().sum(0), torch.ones(GROUPS))


def test_equal_frequencies_adjust_nothing():
    batch, logits = batch_of("adapter"), torch.randn(12, CLASSES)
    got = adjusted_cross_entropy(logits, batch.labels, batch.groups, log_prior(torch.full((CLASSES, GROUPS), 7)))
    torch.testing.assert_close(got, cross_entropy(logits, batch.labels))


def test_each_sample_is_adjusted_by_its_own_group():
    batch, logits = batch_of("adapter"), torch.randn(12, CLASSES)
    prior = log_prior(torch.tensor([[90, 5], [5, 90], [5, 5]]))
    one_by_one = [
        cross_entropy(z[None] + prior[:, a], y[None])
        for z, y, a in zip(logits, batch.labels, batch.groups, strict=True)
    ]
    got = adjusted_cross_entropy(logits, batch.labels, batch.groups, prior)
    torch.testing.assert_close(got, torch.stack(one_by_one).mean())


def test_the_adjusted_loss_removes_a_shortcut_that_is_only_in_the_frequencies():
    """Inputs tell the group and nothing of the class; the classes are skewed by group. CE answers with the frequencies, the
    adjusted loss with equal chances."""
    counts = torch.tensor([[90, 10], [10, 90]])
    inputs, labels, groups = (
        torch.cat(each)
        for each in zip(
            *[
                (torch.eye(2)[[a] * n], torch.full((n,), c), torch.full((n,), a))
                for c, row in enumerate(counts.tolist())
                for a, n in enumerate(row)
            ],
            strict=True,
        )
    )
    confident = []
    for prior in (torch.zeros(2, 2), log_prior(1000 * counts)):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200)

        def closure(model=model, optimizer=optimizer, prior=prior):
            optimizer.zero_grad()
            loss = adjusted_cross_entropy(model(inputs), labels, groups, prior)
            loss.backward()
            return loss

        optimizer.step(closure)
        confident.append(model(torch.eye(2)).softmax(-1).max().item())
    assert confident[0] == pytest.approx(0.9, abs=1e-3)
    assert confident[1] == pytest.approx(0.5, abs=1e-3)


def test_the_mean_follows_its_formula():
    model = nn.BatchNorm1d(3)
    mean = running_mean(model, 0.9)
    expected = None
    for n in range(200):
        with torch.no_grad():
            model.weight.normal_()
        model(torch.randn(8, 3))
        mean.update_parameters(model)
        k = min(0.9, n / (n + 10))
        present = {name: value.clone() for name, value in model.state_dict().items()}
        expected = (
            present
            if expected is None
            else {
                name: k * expected[name] + (1 - k) * value if value.is_floating_point() else value
                for name, value in present.items()
            }
        )
    for name, value in mean.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert mean.module.num_batches_tracked == 200


@pytest.mark.parametrize("student", ["adapter", "shufflenetv2"])
def test_what_ships_is_the_mean_and_what_trains_is_not(student):
    method, learner = ready("bird-plus", student)
    batch, meta = batch_of(student), batch_of(student, seed=1)
    learner.model.train()
    for _ in range(4):
        method.step(learner, batch, lambda: meta, warm=True)
    shipped, trained = learner.student.head.weight, learner.model.student.head.weight
    assert not torch.equal(shipped, trained)
    assert not {id(each) for each in learner.student.parameters()} & {id(each) for each in learner.model.parameters()}
    _, plain = ready("bird", student)
    assert plain.student is plain.model.student


def test_without_its_changes_it_is_bird_without_the_regulariser():
    """Equal counts and no averaging: the same weights as bird with lambda 0, lambda itself without effect."""
    ends = []
    for name, hyper in (("bird", {"lambda_": 0.0}), ("bird-plus", {"lambda_": 5.0, "average": 0.0})):
        method, learner = ready(name, "adapter", **hyper)
        for seed in range(3):
            method.step(learner, batch_of("adapter", seed=seed), lambda: batch_of("adapter", seed=9), warm=True)
        ends.append(copy.deepcopy(learner.student.state_dict()))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value)


def test_the_prior_comes_first():
    with pytest.raises(ValueError, match="prepare"):
        build_method("bird-plus", Hyperparameters(), GROUPS).step(
            learner_of("adapter"), batch_of("adapter"), lambda: batch_of("adapter"), warm=False
        )


def test_a_loop_of_one_s_own_can_have_the_adjusted_loss():
    prior, batch = log_prior(torch.tensor([[90, 5], [5, 90], [5, 5]])), batch_of("adapter")
    learner = learner_of("adapter")
    step = BirdStep(
        learner.model,
        learner.gate,
        groups=GROUPS,
        task=lambda logits, batch: adjusted_cross_entropy(logits, batch.labels, batch.groups, prior),
    )
    _, parts = step(batch, batch_of("adapter", seed=1))
    logits = learner.model(batch.inputs).logits
    torch.testing.assert_close(parts["ce"], adjusted_cross_entropy(logits, batch.labels, batch.groups, prior).detach())

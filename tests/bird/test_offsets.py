"""phi in other places than the gate: the feedback is double backward for offsets, cell weights, temperatures, their sum."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bird import BirdStep
from bird.errors import UsageError
from bird.losses.terms import bias_loss, cross_entropy, feature_mse, sample_cross_entropy
from bird.losses.weighting import log_prior
from bird.methods import Batch, Hyperparameters, Regressed, build_method
from bird.methods.bird_step import held
from bird.step.feedback import Objective, feedback
from bird.step.offsets import Offsets, mixed_bias
from bird.step.stack import StackedLearner
from bird.students import build_student

CLASSES, GROUPS, DIM, ROWS, MU1 = 3, 2, 16, 12, 0.1


class CellWeights(nn.Module):
    """w(class, group) = exp(phi) of each sample's CE."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(CLASSES, GROUPS, dtype=torch.float64))

    def loss(self, h, batch):
        return (self.phi.exp()[batch.labels, batch.groups] * sample_cross_entropy(h.logits, batch.labels)).mean(-1)


class Temperatures(nn.Module):
    """z times exp(phi) of the sample's group: the multiplicative adjustment of Kini et al. (2021)."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(GROUPS, dtype=torch.float64))

    def loss(self, h, batch):
        return cross_entropy(h.logits * self.phi.exp()[batch.groups, None], batch.labels)


class Added(nn.Module):
    """Offsets, and D through the gate as drawn."""

    def __init__(self):
        super().__init__()
        self.offsets = Offsets(CLASSES, GROUPS, DIM).double()
        self.offsets.start(torch.randn(CLASSES, GROUPS))

    def loss(self, h, batch):
        adjusted = self.offsets.adjust(h.logits, batch.groups)
        return 0.5 * feature_mse(h.features, self.offsets(batch.teacher)) + 0.5 * cross_entropy(adjusted, batch.labels)


class Weighed(nn.Module):
    """Offsets that learn alpha, too."""

    def __init__(self):
        super().__init__()
        self.offsets = Offsets(CLASSES, GROUPS, DIM, weighs=0.3).double()
        self.offsets.start(torch.randn(CLASSES, GROUPS))

    def loss(self, h, batch):
        alpha = self.offsets.weigh(0.9)
        adjusted = self.offsets.adjust(h.logits, batch.groups)
        distance = feature_mse(h.features, self.offsets(batch.teacher))
        return alpha * distance + (1 - alpha) * cross_entropy(adjusted, batch.labels)


class Sum(nn.Module):
    """All of them at once."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([CellWeights(), Temperatures(), Added(), Weighed()])

    def loss(self, h, batch):
        return sum(part.loss(h, batch) for part in self.parts)


def batch_of(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, DIM, generator=generator, dtype=dtype)
    cells = torch.arange(ROWS) % (CLASSES * GROUPS)
    return Batch(features, cells % CLASSES, cells // CLASSES, teacher=features)


def student():
    mean, std = torch.zeros(DIM), torch.ones(DIM)
    fresh = build_student("adapter", classes=CLASSES, image_size=0, feature_mean=mean, feature_std=std, seed=1)
    return Regressed(fresh, DIM).double().train()


OUTERS = {
    "L_o": lambda h, meta: bias_loss(h.logits, meta.labels, meta.groups, GROUPS),
    "mixed": lambda h, meta: mixed_bias(h.logits, meta.labels, meta.groups, GROUPS, 0.3),
    "soft": lambda h, meta: mixed_bias(h.logits, meta.labels, meta.groups, GROUPS, 0.3, soft_max=0.2),
}


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("place", [CellWeights, Temperatures, Added, Weighed, Sum])
def test_feedback_is_double_backward_wherever_phi_is(place, outer):
    torch.manual_seed(0)
    model, phi, batch, meta = student(), place(), batch_of(0), batch_of(1)
    _, found = feedback(
        model,
        phi,
        Objective(batch.inputs, lambda h: phi.loss(h, batch)),
        Objective(meta.inputs, lambda h: OUTERS[outer](h, meta)),
        output=model(batch.inputs),
        mu1=MU1,
    )
    theta = dict(model.named_parameters())
    slope = torch.autograd.grad(phi.loss(model(batch.inputs), batch), list(theta.values()), create_graph=True)
    ahead = {name: value - MU1 * g for (name, value), g in zip(theta.items(), slope, strict=True)}
    expected = torch.autograd.grad(
        OUTERS[outer](functional_call(model, ahead, (meta.inputs,)), meta), [*phi.parameters()]
    )
    for one, two in zip(found, expected, strict=True):
        assert two.norm() > 0
        assert ((one - two).norm() / two.norm()).item() < 1e-10


def test_offsets_are_added_by_the_samples_own_group():
    offsets = Offsets(CLASSES, GROUPS, DIM)
    offsets.start(torch.arange(6.0).view(CLASSES, GROUPS))
    found = offsets.adjust(torch.zeros(2, CLASSES), torch.tensor([0, 1]))
    assert found.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_the_balanced_loss_weighs_cells_alike_and_leaves_out_absent_ones():
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    labels, groups = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 1])
    each = sample_cross_entropy(logits, labels)
    expected = torch.stack([each[:2].mean(), each[2], each[3], each[4]]).mean()
    assert mixed_bias(logits, labels, groups, GROUPS, 1.0).item() == pytest.approx(expected.item())
    both = mixed_bias(logits, labels, groups, GROUPS, 0.25).item()
    equality = bias_loss(logits, labels, groups, GROUPS).item()
    assert both == pytest.approx(0.75 * equality + 0.25 * expected.item())


META_ROWS = torch.tensor([[40, 2], [4, 20], [10, 10]])


def learners(method, seeds):
    method.prepare(torch.tensor([[90, 5], [10, 60], [30, 30]]), META_ROWS)
    mean, std = torch.zeros(DIM), torch.ones(DIM)
    for seed in seeds:
        given = {"classes": CLASSES, "image_size": 0, "feature_mean": mean, "feature_std": std}
        fresh = build_student("adapter", seed=seed, **given)
        yield method.learner(fresh, teacher_dim=DIM, lr=1e-2, mu2=0.03, seed=seed)


@pytest.mark.parametrize("start", ["prior", "zero"])
def test_where_phi_starts_and_that_it_moves(start):
    method = build_method("bird-offsets", Hyperparameters(offsets_from=start, mu1=0.05, alpha=0.5), GROUPS)
    (learner,) = learners(method, [0])
    begun = learner.gate.phi.detach().clone()
    prior = log_prior(torch.tensor([[90, 5], [10, 60], [30, 30]]))
    assert torch.equal(begun, prior if start == "prior" else torch.zeros(CLASSES, GROUPS))
    batch, meta = batch_of(0, torch.float32), batch_of(1, torch.float32)
    method.step(learner, batch, lambda: meta, warm=False)
    assert torch.equal(learner.gate.phi, begun)  # during warmup it stays
    losses = method.step(learner, batch, lambda: meta, warm=True)
    assert (learner.gate.phi - begun).abs().amin() > 0.02  # Adam's first step is mu2 long
    assert losses["meta_bias"] > 0
    assert learner.gate.phi.requires_grad


@pytest.mark.parametrize("start", ["prior", "zero"])
def test_shrink_is_how_far_a_cell_of_n_rows_may_go(start):
    """Whatever the feedback says, and however large mu2 is: n / shrink nats from where phi starts."""
    method = build_method("bird-offsets", Hyperparameters(offsets_from=start, shrink=8.0), GROUPS)
    (learner,) = learners(method, [0])
    begun, towards = learner.gate.phi.detach().clone(), torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    for _ in range(4000):
        learner.move_gate([-1e-9 * towards])  # all gradients have one sign
    assert torch.allclose(learner.gate.phi - begun, towards * META_ROWS / 8, rtol=1e-3)


def test_shrink_holds_back_what_meta_batches_do_not_agree_on():
    method = build_method("bird-offsets", Hyperparameters(offsets_from="zero", shrink=8.0), GROUPS)
    (learner,) = learners(method, [0])
    for number in range(4000):
        learner.move_gate([torch.full((CLASSES, GROUPS), 1e-9 if number % 2 else -1e-9)])
    assert (learner.gate.phi.abs() < 0.05 * META_ROWS / 8).all()


@pytest.mark.parametrize("start", ["prior", "zero"])
def test_pooled_offsets_move_along_the_prior_alone_by_what_the_cells_say_together(start):
    method = build_method("bird-offsets", Hyperparameters(offsets_from=start, pool=True), GROUPS)
    (learner,) = learners(method, [0])
    begun = learner.gate.phi.detach().clone()
    prior = log_prior(torch.tensor([[90, 5], [10, 60], [30, 30]]))
    along = prior - prior.mean(0)
    learner.move_gate([-along])
    moved = learner.gate.phi.detach() - begun
    strength = (moved / along).flatten()
    assert torch.allclose(strength, strength[0].expand(6), rtol=1e-4)
    # Adam moves each by mu2: of that, the part in this direction
    assert strength[0].item() == pytest.approx((0.03 * along.abs().sum() / along.square().sum()).item(), rel=1e-3)
    other = next(learners(method, [0]))
    other.move_gate([torch.full((CLASSES, GROUPS), 1e-6)])  # all classes alike: no part of it is in this direction
    assert torch.allclose(other.gate.phi, begun, atol=1e-6)


def test_pooled_offsets_without_a_skew_stay():
    offsets = Offsets(CLASSES, GROUPS, DIM)
    offsets.start(torch.zeros(CLASSES, GROUPS), along=torch.full((CLASSES, GROUPS), -1.0))
    with torch.no_grad():
        offsets.phi.add_(1.0)
    offsets.hold_back(0.1)
    assert torch.equal(offsets.phi, torch.zeros(CLASSES, GROUPS))


def telling(batch):
    """The batch with inputs that tell the class."""
    return dataclasses.replace(batch, inputs=batch.inputs + 3 * nn.functional.one_hot(batch.labels, DIM))


@pytest.mark.parametrize("wrong", ["teacher", "labels"])
def test_alpha_follows_which_of_the_two_is_right(wrong):
    """A teacher whose features are those of another class loses its weight; it gains some where the labels are wrong."""
    hyper = Hyperparameters(mu1=0.05, mu2=0.03, alpha=0.3, learn_alpha=True, balance=1.0)
    method = build_method("bird-offsets", hyper, GROUPS)
    (learner,) = learners(method, [0])
    assert learner.gate.weigh(0.9).item() == pytest.approx(0.3)
    for number in range(30):
        batch, meta = (telling(batch_of(2 * number + each, torch.float32)) for each in (0, 1))
        other, head = (batch.labels + 1) % CLASSES, learner.model.student.head.weight.detach()
        told, labels = (other, batch.labels) if wrong == "teacher" else (batch.labels, other)
        lesson = dataclasses.replace(batch, teacher=5 * head[told], labels=labels)
        method.step(learner, lesson, lambda meta=meta: meta, warm=True)
    assert (learner.gate.weigh(0.9).item() < 0.3) == (wrong == "teacher")


def test_a_teacher_without_a_say_gets_one_where_alpha_is_learned():
    """At 0 the log-odds are infinite, and no slope leads away."""
    offsets = Offsets(CLASSES, GROUPS, DIM, weighs=0.0)
    assert offsets.weigh(0.9).item() == pytest.approx(1e-3)
    assert {*offsets.state_dict()} == {"phi", "trust", "gate"}
    assert Offsets(CLASSES, GROUPS, DIM).weigh(0.9) == 0.9


def test_what_was_saved_goes_on_to_the_bit():
    """A checkpoint holds phi; where it started, and the pull, follow from the run's settings."""
    method = build_method("bird-offsets", Hyperparameters(mu1=0.05, shrink=8.0), GROUPS)
    whole, resumed = next(learners(method, [0])), next(learners(method, [0]))

    def steps(learner, numbers):
        for number in numbers:
            meta = batch_of(100 + number, torch.float32)
            method.step(learner, batch_of(number, torch.float32), lambda meta=meta: meta, warm=True)

    steps(whole, range(4))
    for name in ("model", "optimizer", "gate", "gate_optimizer"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(whole, name).state_dict()))
    steps(whole, range(4, 8))
    steps(resumed, range(4, 8))
    assert torch.equal(whole.gate.phi, resumed.gate.phi)


def test_a_cell_without_meta_rows_stays_where_it_starts():
    offsets = Offsets(CLASSES, GROUPS, DIM)
    offsets.start(torch.ones(CLASSES, GROUPS), torch.tensor([[0, 1], [1, 1], [1, 1]]), 1.0)
    with torch.no_grad():
        offsets.phi.add_(1.0)
    offsets.hold_back(0.1)
    assert offsets.phi[0, 0] == 1
    assert offsets.phi[1, 1].item() == pytest.approx(1 + 1 / 1.1)


def test_without_shrink_no_bit_is_different():
    methods = [build_method("bird-offsets", Hyperparameters(mu1=0.05, shrink=each), GROUPS) for each in (0.0, 1.0)]
    pair = [next(learners(method, [0])) for method in methods]
    for learner, method in zip(pair, methods, strict=True):
        method.step(learner, batch_of(0, torch.float32), lambda: batch_of(1, torch.float32), warm=True)
    free, held_back = (learner.gate.phi.detach() - learner.gate.begin for learner in pair)
    assert torch.allclose(held_back, free / (1 + 0.03 / META_ROWS), atol=1e-6)
    assert not pair[0].gate.pulled
    assert {*pair[1].gate.state_dict()} == {"phi", "gate"}  # checkpoints are as they were


def test_the_twin_without_feedback_never_moves():
    method = build_method("bird-offsets-no-meta", Hyperparameters(), GROUPS)
    (learner,) = learners(method, [0])
    begun = learner.gate.phi.detach().clone()
    method.step(learner, batch_of(0, torch.float32), lambda: pytest.fail("no meta batch is asked for"), warm=True)
    assert torch.equal(learner.gate.phi, begun)


def test_of_so_many_steps_one_has_feedback():
    method = build_method("bird-offsets", Hyperparameters(feedback_every=3), GROUPS)
    (learner,) = learners(method, [0])
    batch, meta, moved = batch_of(0, torch.float32), batch_of(1, torch.float32), []
    for number in range(6):
        method.number, before = number, learner.gate.phi.detach().clone()
        method.step(learner, batch, lambda: meta, warm=True)
        moved.append(not torch.equal(before, learner.gate.phi))
    assert moved == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    "more",
    [{}, {"shrink": 20.0}, {"pool": True}, {"learn_alpha": True}, {"soft_max": 0.5}],
    ids=["plain", "shrink", "pool", "alpha", "soft"],
)
def test_a_stack_does_what_its_models_do_alone(more):
    method = build_method("bird-offsets", Hyperparameters(mu1=0.05, alpha=0.5, balance=0.5, **more), GROUPS)
    alone, together = [*learners(method, [0, 1])], [*learners(method, [0, 1])]
    stack = StackedLearner(together)

    def joined(*batches):
        fields = [field.name for field in dataclasses.fields(Batch)]
        pairs = {name: [getattr(each, name) for each in batches] for name in fields}
        return Batch(**{name: None if pair[0] is None else torch.stack(pair) for name, pair in pairs.items()})

    for step in range(3):
        batches = [batch_of(10 * step + number, torch.float32) for number in range(4)]
        for learner, batch, meta in zip(alone, batches[:2], batches[2:], strict=True):
            method.step(learner, batch, lambda meta=meta: meta, warm=True)
        method.step(stack, joined(*batches[:2]), lambda batches=batches: joined(*batches[2:]), warm=True)
    for one, two in zip(alone, together, strict=True):
        assert torch.allclose(one.gate.phi, two.gate.phi, atol=1e-5)
        assert torch.allclose(*(torch.as_tensor(each.gate.weigh(0.5)) for each in (one, two)), atol=1e-6)
        for name, value in one.student.state_dict().items():
            assert torch.allclose(value, two.student.state_dict()[name], atol=1e-5), name


def test_a_held_gate_is_a_constant():
    offsets = Offsets(CLASSES, GROUPS, DIM)
    with held(offsets):
        assert not offsets.adjust(torch.zeros(2, CLASSES), torch.tensor([0, 1])).requires_grad
    assert offsets.phi.requires_grad


def test_a_step_of_ones_own_does_what_the_method_does():
    method = build_method(
        "bird-offsets",
        Hyperparameters(mu1=0.05, mu2=0.03, alpha=0.5, balance=0.5, average=0.0, shrink=9.0, soft_max=0.1),
        GROUPS,
    )
    (learner,), (twin,) = learners(method, [0]), learners(method, [0])
    step = BirdStep(
        twin.model,
        twin.gate,
        groups=GROUPS,
        task=lambda logits, batch: cross_entropy(twin.gate.adjust(logits, batch.groups), batch.labels),
        outer=lambda logits, meta: mixed_bias(logits, meta.labels, meta.groups, GROUPS, 0.5, 0.1),
        soft_max=0.1,
        alpha=0.5,
        lambda_=0.0,
        mu1=0.05,
        mu2=0.03,
    )
    for seed in (0, 2, 4):
        batch, meta = batch_of(seed, torch.float32), batch_of(seed + 1, torch.float32)
        method.step(learner, batch, lambda meta=meta: meta, warm=True)
        loss, _ = step(batch, meta)
        twin.descend(loss)
    assert torch.equal(learner.gate.phi, twin.gate.phi)
    assert all(torch.equal(*pair) for pair in zip(learner.model.parameters(), twin.model.parameters(), strict=True))


def test_a_step_of_ones_own_refuses_what_would_do_nothing_or_harm():
    def step(gate=None, groups=GROUPS, **numbers):
        return BirdStep(student(), gate or Offsets(CLASSES, GROUPS, DIM, weighs=0.5), groups=groups, **numbers)

    assert step()
    assert step(lambda_=0.0, alpha=1.0, soft_max=0.0)
    nan = float("nan")
    wrong = {
        "alpha": (-0.1, 1.1, nan),
        "lambda_": (-1.0, nan),
        "mu1": (0.0, nan),
        "mu2": (0.0, nan),
        "soft_max": (-1.0, nan),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UsageError, match=name):
                step(**{name: value})
    with pytest.raises(UsageError, match="Offsets of 2 groups; wanted the same number"):
        step(groups=GROUPS + 1)
    with pytest.raises(UsageError, match="does not add the offsets"):
        step(Offsets(CLASSES, GROUPS, DIM))
    for weighs in (-0.1, 1.1, nan):
        with pytest.raises(UsageError, match="weighs"):
            Offsets(CLASSES, GROUPS, DIM, weighs=weighs)

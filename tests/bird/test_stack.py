"""Models side by side are the same models: losses, steps and gates of a stack are those of each alone."""

import pytest
import torch

from bird.losses.terms import bias_loss, cross_entropy, distillation_kl, feature_mse
from bird.methods import METHODS, Batch, Hyperparameters, SingleLearner, build_method
from bird.step.stack import StackedLearner
from bird.students import build_student

CLASSES, GROUPS, DIM, COUNT, MODELS = 3, 2, 8, 24, 3
BUILT = {name: build_method(name, Hyperparameters(), GROUPS) for name in METHODS}
STACKED = [name for name, method in BUILT.items() if method.stackable and not method.stages]


def adapter(seed, lr=1e-3, method=BUILT["bird"]):
    mean, std = torch.zeros(DIM), torch.ones(DIM)
    student = build_student("adapter", classes=CLASSES, feature_mean=mean, feature_std=std, seed=seed)
    return method.learner(student, teacher_dim=DIM, lr=lr, mu2=1e-2, seed=seed)


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(COUNT, DIM, generator=generator)
    labels = torch.randint(0, CLASSES, (COUNT,), generator=generator)
    groups = torch.randint(0, GROUPS, (COUNT,), generator=generator)
    return Batch(features, labels, groups, features, torch.randn(COUNT, CLASSES, generator=generator))


def together(batches):
    parts = ("inputs", "labels", "groups", "teacher", "teacher_logits")
    return Batch(*(torch.stack([getattr(batch, part) for batch in batches]) for part in parts))


def test_leading_dimensions_are_models():
    z, t = torch.randn(2, MODELS, COUNT, CLASSES), torch.randn(2, MODELS, COUNT, CLASSES)
    y, a = torch.randint(0, CLASSES, (2, MODELS, COUNT)), torch.randint(0, GROUPS, (2, MODELS, COUNT))
    for loss, arguments in (
        (cross_entropy, (z, y)),
        (feature_mse, (z, t)),
        (lambda z, t: distillation_kl(z, t, 4.0), (z, t)),
        (lambda z, y, a: bias_loss(z, y, a, GROUPS), (z, y, a)),
    ):
        got = loss(*arguments)
        assert got.shape == (2, MODELS)
        for i in range(2):
            for s in range(MODELS):
                torch.testing.assert_close(got[i, s], loss(*(each[i, s] for each in arguments)))


@pytest.fixture(params=[(torch.float32, 1e-4), (torch.float64, 1e-11)], ids=["float32", "float64"])
def close(request):
    """Whether two tensors are equal to rounding: what float64 brings down with it is no more than that."""
    dtype, rtol = request.param
    torch.set_default_dtype(dtype)
    yield lambda one, two, atol=rtol / 10: torch.testing.assert_close(one, two, rtol=rtol, atol=atol)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", STACKED)
def test_a_stack_moves_each_model_as_it_moves_alone(method, close):
    """Different seeds, batches, lambda, alpha, mu1 and lr; ten steps."""
    weights = {
        "lambda_": [0.0, 0.1, 0.3],
        "alpha": [0.9, 0.5, 0.7],
        "mu1": [1e-3, 1e-2, 1e-1],
        "mfd_weight": [1.0, 3.0, 7.0],
    }
    rates = [1e-3, 3e-3, 1e-2]
    hyper = Hyperparameters(**{name: torch.tensor(values) for name, values in weights.items()})
    all_at_once = build_method(method, hyper, GROUPS)
    own = [
        build_method(method, Hyperparameters(**{name: values[s] for name, values in weights.items()}), GROUPS)
        for s in range(MODELS)
    ]
    for each in (all_at_once, *own):
        each.prepare(torch.tensor([[5, 3], [2, 7], [4, 4]]))
    alone, stacked = ([adapter(seed, rates[seed], own[seed]) for seed in range(MODELS)] for _ in range(2))
    stack = StackedLearner(stacked)
    for step in range(10):
        batches, metas = ([batch_of(base + step * MODELS + s) for s in range(MODELS)] for base in (0, 1000))
        losses = all_at_once.step(stack, together(batches), lambda metas=metas: together(metas), warm=step > 2)
        for s in range(MODELS):
            one = own[s].step(alone[s], batches[s], lambda s=s, metas=metas: metas[s], warm=step > 2)
            assert one.keys() == losses.keys()
            for name in one:
                close(losses[name][s], one[name])
    for one, two in zip(alone, stacked, strict=True):
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
            close(a, b)
        close(one.gate.phi, two.gate.phi)


def test_a_stack_s_models_live_in_its_memory():
    learners = [adapter(seed) for seed in range(MODELS)]
    stack = StackedLearner(learners)
    with torch.no_grad():
        stack.model.backbone_weight[1].fill_(7.0)
        stack.gate.phi[2].fill_(5.0)
    assert (learners[1].model.student.backbone.weight == 7).all()
    assert not (learners[0].model.student.backbone.weight == 7).any()
    assert (learners[2].gate.phi == 5).all()


def test_only_adapters_stack():
    student = build_student("shufflenetv2", classes=2, image_size=32)
    with pytest.raises(ValueError, match="only adapters"):
        StackedLearner([SingleLearner(student, teacher_dim=None, lr=1e-3, mu2=1e-3, seed=0)])

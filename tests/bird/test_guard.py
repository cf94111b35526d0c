"""The guard: < u, Jv > = < J^T u, v > for what is right, not for what is wrong, and nothing of a run depends on it."""

import copy

import pytest
import torch
from helpers.methodkit import CLASSES, DIM, GROUPS, batch_of, ready
from helpers.strangers import WIDTH, Checkpointed, by_step, conv, made, normed
from helpers.strangers import batch_of as images
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bird import BirdStep
from bird.errors import StudentError
from bird.methods import Hyperparameters, SingleLearner, build_method
from bird.precision import in_bf16
from bird.step.guard import Guard, Sides, distance_apart
from bird.step.stack import StackedLearner
from bird.step.tangents import Tape
from bird.students import build_student

MODELS = 3


def sides(models=0, dtype=torch.float64):
    """u, J^T u, v and Jv of an affine student, for `models` models (0: one without that dimension)."""
    generator = torch.Generator().manual_seed(0)
    lead = (models,) if models else ()
    x, v, u = (torch.randn(*lead, *shape, generator=generator, dtype=dtype) for shape in ((6, 5), (4, 5), (6, 4)))
    return Sides([u], {"weight": u.mT @ x}, {"weight": v}, len(lead)), [x @ v.mT]


@pytest.mark.parametrize("models", [0, MODELS])
def test_what_is_right_agrees_and_what_is_wrong_does_not(models):
    right, jv = sides(models)
    assert distance_apart(right, jv).shape == ((models,) if models else ())
    assert distance_apart(right, jv).max() < 1e-14
    assert distance_apart(right, [1.01 * jv[0]]).max() > 1e-3
    assert distance_apart(right, [torch.zeros_like(jv[0])]).min() == torch.inf  # a missing tangent is not a zero
    assert distance_apart(right, [jv[0] * torch.nan]).min() == torch.inf


def test_each_model_has_its_own_figure():
    right, (jv,) = sides(MODELS)
    jv[1] *= 2
    found = distance_apart(right, [jv])
    assert found[[0, 2]].max() < 1e-14
    assert found[1] > 0.1


def test_a_step_without_feedback_says_nothing():
    right, (jv,) = sides()
    nothing = Sides(right.u, right.gradient, {"weight": 0 * right.v["weight"]}, 0)
    diverged = Sides(right.u, {"weight": right.gradient["weight"] * torch.nan}, right.v, 0)
    assert distance_apart(nothing, [0 * jv]) is None
    assert distance_apart(diverged, [jv]) is None
    guard = Guard()  # which asks the next step then
    assert [guard.due() and guard.agrees(nothing, [0 * jv], Tape()) for _ in range(20)] == [
        True
    ] * 20  # so the next is asked
    assert [guard.due() and guard.agrees(right, [jv], Tape()) for _ in range(10)] == [True] * 8 + [False] * 2


def test_the_first_eight_of_so_many_steps_are_checked():
    guard = Guard(every=20)
    assert [step for step in range(50) if guard.due()] == [*range(8), *range(20, 28), *range(40, 48)]
    assert not any(Guard(every=0).due() for _ in range(3))


def test_coarse_figures_decide_together():
    right, (jv,) = sides()
    guard, tape = Guard(), Tape()
    tape.dtypes.add(torch.bfloat16)
    answers = [guard.agrees(right, [jv + right.u[0]], tape) for _ in range(8)]
    assert answers == [True] * 7 + [False]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_is_the_same_to_the_bit_with_and_without_it(recompute, precision):
    """A student that draws, moves running statistics and checkpoints."""
    found = []
    for check in (0, 1):
        student, gate = made(lambda: Checkpointed(again=True), torch.float32)
        if precision == "bfloat16":
            student = InHalf(student)
        optimizer = torch.optim.Adam(student.parameters())
        step = BirdStep(student, gate, groups=GROUPS, mu2=1e-2, recompute=recompute, check=check)
        for seed in range(9):
            loss, parts = step(images(seed, torch.float32), images(20 + seed, torch.float32))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append([*parts.values(), gate.phi, *student.state_dict().values(), torch.get_rng_state()])
        assert (step.guard.apart is not None) == bool(check)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


class InHalf(nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.student(x)


def adapters(dtype):
    torch.set_default_dtype(dtype)
    try:
        students = [
            build_student(
                "adapter", classes=CLASSES, feature_mean=torch.zeros(DIM), feature_std=torch.ones(DIM), seed=s
            )
            for s in range(MODELS)
        ]
        return [SingleLearner(each, teacher_dim=DIM, lr=1e-2, mu2=1e-2, seed=s) for s, each in enumerate(students)]
    finally:
        torch.set_default_dtype(torch.float32)


def given(seed, lead, dtype):
    batches = [batch_of("adapter", seed=seed + number) for number in range(MODELS)]
    together = {
        name: torch.stack([getattr(b, name) for b in batches]) for name in ("inputs", "labels", "groups", "teacher")
    }
    parts = {name: value.to(dtype) if value.is_floating_point() else value for name, value in together.items()}
    return type(batches[0])(**(parts if lead else {name: value[0] for name, value in parts.items()}))


@pytest.mark.parametrize("method", ["bird", "bird-plus", "bird+mfd"])
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("lead", [False, True], ids=["single", "stack"])
def test_it_is_content_with_our_own_students(method, kind, lead):
    dtype = torch.float64 if kind == "float64" else torch.float32
    learners = adapters(dtype)
    learner = StackedLearner(learners) if lead else learners[0]
    if kind == "bfloat16":
        in_bf16(learner.model)
    learner.guard = Guard(every=1)
    weights = {"mu1": torch.tensor([1e-3, 1e-1, 1.0], dtype=dtype), "alpha": torch.tensor([0.1, 0.5, 0.9], dtype=dtype)}
    how = build_method(method, Hyperparameters(**weights) if lead else Hyperparameters(mu1=0.1), GROUPS)
    how.prepare(torch.full((CLASSES, GROUPS), 2))
    worst = 0.0
    for seed in range(0, 120, 10):
        how.step(learner, given(seed, lead, dtype), lambda seed=seed: given(500 + seed, lead, dtype), warm=True)
        worst = max(worst, learner.guard.apart or 0.0)
    assert 0 < worst < {"float64": 1e-10, "float32": 2e-4, "bfloat16": 0.25}[kind]


@pytest.mark.parametrize("student", ["tiny-resnet", "tiny-vit"])
def test_it_is_content_with_students_that_see(student):
    method, learner = ready("bird", student)
    learner.guard = Guard(every=1)
    for seed in range(3):
        method.step(
            learner, batch_of(student, seed=seed), lambda seed=seed: batch_of(student, seed=9 + seed), warm=True
        )
        assert 0 < learner.guard.apart < 2e-4


def test_a_stack_whose_short_way_is_wrong_for_one_model_is_refused():
    stack, how = StackedLearner(adapters(torch.float32)), build_method("bird", Hyperparameters(), GROUPS)
    right = stack.model.sensitivity

    def wrong(*batches, **options):
        bias, jv = right(*batches, **options)
        jv.features[1] *= 1.1
        return bias, jv

    stack.model.sensitivity = wrong

    def step(number):
        how.step(stack, given(number, True, torch.float32), lambda: given(500, True, torch.float32), warm=True)

    for number in range(7):  # eight decide together
        step(number)
    with pytest.raises(StudentError, match="StackedAdapters: found a `sensitivity` that disagrees"):
        step(7)


def test_a_corner_that_rounding_turns_over_in_one_step_refuses_no_stack():
    """One step of eight in which the two sides are apart as they were seen to be at a ReLU's corner."""
    stack, how = StackedLearner(adapters(torch.float32)), build_method("bird", Hyperparameters(), GROUPS)
    right, steps = stack.model.sensitivity, []

    def once(*batches, **options):
        bias, jv = right(*batches, **options)
        steps.append(0)
        if len(steps) == 5:
            jv.features[1] *= 1.1
        return bias, jv

    stack.model.sensitivity = once
    for number in range(16):
        how.step(stack, given(number, True, torch.float32), lambda: given(500, True, torch.float32), warm=True)
    assert stack.guard.apart < 1e-3


def test_a_diverged_student_is_not_its_business():
    student, gate = made(normed, torch.float32)
    with torch.no_grad():
        student.head.weight.fill_(torch.nan)
    loss, _ = BirdStep(student, gate, groups=GROUPS)(images(0, torch.float32), images(1, torch.float32))
    assert loss.isnan()


class WrongJvp(torch.autograd.Function):
    """A forward rule that is not its backward rule's."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0].cos() * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 1.01 * ctx.saved_tensors[0].cos() * tangent


class Waving(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = conv()

    def forward(self, x):
        return WrongJvp.apply(self.layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_rule_that_is_1_percent_off_is_found_and_gone_around(dtype):
    student, gate = made(Waving, dtype)
    plain, own = copy.deepcopy((student, gate))
    plain.body.forward = lambda x: plain.body.layer(x).sin()
    batches = images(0, dtype), images(1, dtype)
    with pytest.warns(UserWarning, match="disagrees with the student's gradient"):
        found = by_step(student, gate, *batches)
    torch.testing.assert_close(found, by_step(plain, own, *batches), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("slopes", [1, WIDTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prelu_at_zero_takes_the_side_of_the_backward_pass(dtype, slopes):
    """torch's forward mode and its second derivative take the other one (findings/torch-prelu-jvp.sh)."""

    def body():
        layer = conv()
        nn.init.zeros_(layer.bias)
        return nn.Sequential(layer, nn.PReLU(slopes), conv(WIDTH))

    def plain():
        """The same in operators whose two modes agree."""
        layers = body()
        layers[1].forward = lambda x: x.relu() - layers[1].weight.view(-1, 1, 1) * (-x).clamp_min(0)
        return layers

    batches = images(0, dtype), images(1, dtype)
    student, gate = made(body, dtype)
    step = BirdStep(student, gate, groups=GROUPS)
    for each in batches:
        each.inputs[:, :, :4] = 0  # black: there the layer gives exactly 0
    step(*batches)  # warnings are errors
    assert step.guard.apart < (1e-12 if dtype is torch.float64 else 1e-4)
    for each in batches:
        each.inputs[:, :, :4] = 0.1  # away from 0 both are the same
    found = [by_step(*made(build, dtype), *batches) for build in (body, plain)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)


class Kernels(TorchDispatchMode):
    """Whether fused attention was allowed while masks were drawn."""

    def __init__(self):
        super().__init__()
        self.fused = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "bernoulli" in func.__name__ or "dropout" in func.__name__:
            self.fused.append(torch.backends.cuda.flash_sdp_enabled())
        return func(*args, **(kwargs or {}))


def test_attention_that_drops_draws_as_the_second_pass_will():
    """A GPU's fused kernels draw other masks than the one that has a forward mode."""
    q = torch.randn(2, 2, 5, 4)
    attend = nn.MultiheadAttention(8, 2, dropout=0.5)
    for call in (
        lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
        lambda: attend(*[torch.randn(5, 2, 8)] * 3),
    ):
        with Kernels() as plain:
            call()
        with Tape(), Kernels() as taped:
            call()
        assert (plain.fused, taped.fused) == ([True], [False])

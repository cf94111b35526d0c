"""Real architectures under BirdStep: the gate's gradient is that of double backward, and the guard is content. The figures:

python -m pytest tests/bird/test_architectures.py -m "torture or not torture" -s
"""

import numpy as np
import pytest
import torch
from helpers.architectures import SMALL, TINY, Half, build
from helpers.strangers import CLASSES, GROUPS, apart, batch_of, by_double_backward
from torch import nn

from bird import BirdStep, Gate
from bird.errors import StudentError

COUNT = 6  # one sample of each class and group
NO_NUMBERS = {"lambda_resnet26t"}  # torch 2.14.1's gradient of its Conv3d in bfloat16 on a CPU with AVX512-BF16
ROUNDED = {"efficientvit_b0": 1e-5}  # a part of it computes in float32 whatever it is given


def side_of(name):
    return 32 if name in TINY else 64


def made(name, dtype=torch.float64):
    student = build(name, CLASSES, side_of(name))
    return student.to(dtype).train(), Gate(student.width).to(dtype)


def batches(name, width, seeds, dtype=torch.float64):
    return [batch_of(seed, dtype, COUNT, side_of(name), width) for seed in seeds]


def everywhere(test):
    names = [*TINY, *(pytest.param(name, marks=pytest.mark.torture) for name in SMALL)]
    return pytest.mark.parametrize("name", names)(test)


@everywhere
def test_the_gradient_is_that_of_double_backward(name):
    student, gate = made(name)
    given = batches(name, student.width, (0, 1))
    step = BirdStep(student, gate, groups=GROUPS, mu1=0.1, optimizer=torch.optim.SGD(gate.parameters(), lr=0.0))
    torch.manual_seed(5)
    step(*given)
    found, bound = gate.phi.grad, ROUNDED.get(name, 1e-9)
    assert found.norm() > 0
    assert step.guard.way == 0
    assert step.guard.apart < bound
    try:
        expected = by_double_backward(*made(name), *given)
    except RuntimeError as error:  # what torch has no second derivative of, such as hardsigmoid
        missing = str(error)
    else:
        missing = None
        assert apart(found, expected) < bound
    print(f"{name} float64: gradient {missing or apart(found, expected)}, guard {step.guard.apart:.1e}")
    assert missing is None or "not implemented" in missing


both = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


@both
@everywhere
def test_the_guard_is_content(name, half):
    """Training moves the student meanwhile."""
    if half and name in NO_NUMBERS:
        pytest.skip("its gradient in bfloat16 is no number on some CPUs")
    student, gate = made(name, torch.float32)
    step = BirdStep(Half(student) if half else student, gate, groups=GROUPS, check=1)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    worst = 0.0
    for seed in range(0, 16 if half else 6, 2):
        loss, _ = step(*batches(name, student.width, (seed, seed + 1), torch.float32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        worst = max(worst, step.guard.apart or 0.0)
    print(f"{name} {'bfloat16' if half else 'float32'}: guard {worst:.1e}")
    assert step.guard.way == 0
    assert 0 < worst < (0.25 if half else 2e-4)


class Noisy(nn.Module):
    """A student with a tenth of its inputs dropped, by numpy."""

    def __init__(self, student):
        super().__init__()
        self.student, self.chance = student, np.random.default_rng(0)

    def forward(self, x):
        return self.student(x * torch.from_numpy(self.chance.random(x.shape) > 0.1).to(x) / 0.9)


@both
@everywhere
def test_the_guard_finds_other_masks(name, half):
    student, gate = made(name, torch.float32)
    step = BirdStep(Noisy(Half(student) if half else student), gate, groups=GROUPS)
    given = [batches(name, student.width, (seed, seed + 1), torch.float32) for seed in range(0, 16, 2)]
    found = None
    for number, each in enumerate(given):
        try:
            step(*each)
        except StudentError as error:
            found = number, str(error)
            break
    print(f"{name} {'bfloat16' if half else 'float32'}: {found and found[0]}")
    assert found or half
    assert found is None or "another answer" in found[1]

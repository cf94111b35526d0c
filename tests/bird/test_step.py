"""BirdStep: the iteration by itself, for a training loop of one's own."""

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.methodkit import CLASSES, DIM, GROUPS, batch_of, learner_of, ready
from torch import nn

from bird import Batch, BirdStep, Distance, Gate, StageGates
from bird.gate import Gate as OwnGate
from bird.methods.distances import attention_distance
from bird.students import StagedOutput

ROOT = Path(__file__).resolve().parents[2]


def test_importing_bird_imports_no_torch():
    code = "import sys, bird; assert 'torch' not in sys.modules; assert bird.Gate(3); assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert Gate is OwnGate
    import bird

    assert all(getattr(bird, name) for name in bird.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Bird'"):
        _ = bird.Bird


def test_it_is_the_step_of_the_method():
    """The same student, gate and batches: the same parameters after three steps, one of them in the warmup."""
    method, theirs = ready("bird", "adapter", lambda_=0.3, mu2=1e-2)
    ours = learner_of("adapter")
    step = BirdStep(ours.model, ours.gate, groups=GROUPS, lambda_=0.3, mu2=1e-2)
    for seed, warm in ((0, False), (1, True), (2, True)):
        batch, meta = batch_of("adapter", seed=seed), batch_of("adapter", seed=10 + seed)
        expected = method.step(theirs, batch, lambda meta=meta: meta, warm=warm)
        loss, parts = step(batch, meta, warm=warm)
        ours.descend(loss)
        assert parts.keys() == expected.keys()
        for name, value in parts.items():
            torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(ours.gate.phi, theirs.gate.phi)
    for one, two in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_the_example_distils_and_moves_the_gate():
    history = runpy.run_path(str(ROOT / "examples" / "own_distance.py"))["main"]()
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["distance"] < history[0]["distance"]
    assert "meta_bias" not in history[0]
    assert "meta_bias" in history[-1]


class Convolutions(nn.Module):
    """A student of one's own whose answer is neither named nor in order."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, stride=4), nn.Conv2d(6, 9, 3, stride=2)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(9, CLASSES)

    def forward(self, x):
        one = self.norm(self.one(x)).relu()
        two = self.two(one).relu()
        features = two.mean((-2, -1))
        return {"logits": self.head(features), "features": features, "maps": (one, two)}


def test_a_student_of_ones_own_with_maps_and_gates_a_stage():
    torch.manual_seed(0)
    student, distance = Convolutions(), attention_distance(10.0)
    images = batch_of("resnet18")
    batch = replace(images, teacher=None, stages=tuple(torch.rand(12, c, 4, 4) for c in (4, 5)))
    gate = distance.new_gate(batch)
    assert isinstance(gate, StageGates)
    step = BirdStep(
        student, gate, distance, groups=GROUPS, adapt=lambda a: StagedOutput(a["features"], a["logits"], *a["maps"])
    )
    before = [phi.clone() for phi in gate.phi]
    loss, _ = step(batch, images)
    loss.backward()
    assert student.one.weight.grad.norm() > 0
    assert not any(torch.equal(*pair) for pair in zip(before, gate.phi, strict=True))
    assert student.norm.num_batches_tracked == 1
    with pytest.raises(ValueError, match="teacher's maps"):
        step(replace(images, stages=None), images)


def test_without_a_meta_batch_the_gate_stays():
    learner, batch = learner_of("adapter"), batch_of("adapter")
    before = learner.gate.phi.clone()
    step = BirdStep(
        learner.model, learner.gate, Distance(lambda h, gated, _: (h.features - gated).abs().mean()), groups=2
    )
    loss, parts = step(batch)
    assert torch.equal(before, learner.gate.phi)
    assert set(parts) == {"ce", "bias", "distance", "loss"}
    assert loss.requires_grad
    assert isinstance(batch, Batch)
    assert batch.teacher.shape[-1] == DIM

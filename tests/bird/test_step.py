"""BirdStep: the iteration by itself, for a training loop of one's own."""

import copy
import runpy
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.methodkit import CLASSES, DIM, GROUPS, batch_of, learner_of, ready
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from bird import Batch, BirdStep, Distance, Gate, StageGates
from bird.losses.terms import bias_loss
from bird.methods.distances import attention_distance
from bird.step.gate import Gate as OwnGate
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


def test_through_names_the_parameters_of_the_student_that_was_given():
    ours, theirs = learner_of("adapter"), learner_of("adapter")
    step, whole = (
        BirdStep(each.model, each.gate, groups=GROUPS, mu1=0.1, mu2=1e-2, through=through)
        for each, through in ((ours, lambda name: name.startswith("student.backbone.")), (theirs, None))
    )
    seen = []
    step.optimizer.register_step_pre_hook(lambda *_: seen.append(ours.gate.phi.grad.clone()))
    whole.optimizer.register_step_pre_hook(lambda *_: seen.append(theirs.gate.phi.grad.clone()))
    for each in (step, whole):
        each(batch_of("adapter", seed=0), batch_of("adapter", seed=10))
    assert seen[0].norm() > 0
    assert not torch.allclose(*seen, rtol=1e-3, atol=0)  # the head moves, too


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


class Dropping(Convolutions):
    """With masks that are drawn anew in every pass."""

    def forward(self, x):
        answer = super().forward(nn.functional.dropout(x, 0.3))
        return answer["features"], answer["logits"]


class Held:
    """A tensor that a graph holds."""

    def __init__(self, tensor):
        self.tensor = tensor


def steps_of(recompute):
    """What three steps leave: loss, parts, gate, weights, buffers; and how much the graphs held as each pass began."""
    torch.manual_seed(0)
    student, gate, live, held = Dropping(), Gate(9), weakref.WeakSet(), []
    optimizer = torch.optim.Adam(student.parameters())
    step = BirdStep(student, gate, groups=GROUPS, mu2=1e-2, recompute=recompute, check=0)
    student.register_forward_pre_hook(lambda *_: held.append(len(live)))

    def pack(tensor):
        live.add(kept := Held(tensor))
        return kept

    found = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        for seed in range(3):
            batch, meta = (replace(batch_of("resnet18", seed=s), teacher=torch.rand(12, 9)) for s in (seed, 10 + seed))
            loss, parts = step(batch, meta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found += [loss.detach(), *parts.values(), gate.phi.clone()]
    return found + list(student.state_dict().values()), held


def test_recomputing_gives_the_same_bits_and_holds_one_graph_at_a_time():
    (kept, held), (again, freed) = steps_of(recompute=False), steps_of(recompute=True)
    assert len(kept) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    # passes of a step: the train batch; the meta batch; (the train batch again;) its JVP
    assert len(held) == 9
    assert held[1] - held[0] > 15
    assert len(freed) == 12
    assert max(freed[1:3]) - freed[0] <= 2  # the gate's own


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


class Shared(nn.Module):
    """One layer under two names, and one tensor in two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(DIM, DIM)
        self.again, self.tied, self.head = self.first, nn.Linear(DIM, DIM), nn.Linear(DIM, CLASSES)
        self.tied.weight = self.first.weight

    def forward(self, x):
        features = self.tied(self.again(self.first(x).tanh()).tanh())
        return features, self.head(features)


class Attentive(nn.Module):
    """torch's own transformer layer, whose attention is a fused kernel."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        features = self.layer(x.view(len(x), -1, 4)).flatten(1)
        return features, self.head(features)


@pytest.mark.parametrize("kind", [Shared, Attentive])
def test_shared_layers_and_fused_attention_train_with_the_gradient_of_double_backward(kind):
    torch.manual_seed(0)
    student, gate = kind().double(), Gate(DIM).double()
    step = BirdStep(student, gate, groups=GROUPS)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    given = [batch_of("adapter", seed=seed) for seed in (0, 1)]
    batch, meta = (replace(each, inputs=each.inputs.double(), teacher=each.teacher.double()) for each in given)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        expected = doubly_backward(student, gate, batch, meta, step.hyper)
    before = {name: value.clone() for name, value in student.named_parameters()}
    step._move_gate = lambda gradients: torch.testing.assert_close(gradients[0], expected)
    loss, _ = step(batch, meta)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for name, value in student.named_parameters():
        assert value.requires_grad
        assert not torch.equal(value, before[name]) or "in_proj_bias" in name, name
    assert {*before} == {name for name, _ in student.named_parameters()}


def doubly_backward(student, gate, batch, meta, hyper):
    """phi's gradient, the student's parameters replaced by hand."""
    own = dict(student.named_parameters())
    features, logits = student(batch.inputs)
    loss = hyper.alpha * (features - gate(batch.teacher)).square().mean()
    loss = loss + (1 - hyper.alpha) * cross_entropy(logits, batch.labels)
    slope = torch.autograd.grad(loss, list(own.values()), create_graph=True)
    ahead = {id(value): value - hyper.mu1 * g for value, g in zip(own.values(), slope, strict=True)}
    twin = copy.deepcopy(student)
    for mine, other in zip(student.modules(), twin.modules(), strict=True):
        for name, value in mine.named_parameters(recurse=False):
            del other._parameters[name]
            object.__setattr__(other, name, ahead[id(value)])
    bias = bias_loss(twin(meta.inputs)[1], meta.labels, meta.groups, GROUPS)
    return torch.autograd.grad(bias, gate.phi)[0]


def test_a_teacher_with_more_stages_than_the_student_leaves_a_gate_where_it_is():
    torch.manual_seed(0)
    student, distance = Convolutions(), attention_distance(10.0)
    batch = replace(batch_of("resnet18"), teacher=None, stages=tuple(torch.rand(12, c, 4, 4) for c in (3, 4, 5)))
    gate = distance.new_gate(batch)
    before = [phi.detach().clone() for phi in gate.phi]
    step = BirdStep(
        student, gate, distance, groups=GROUPS, adapt=lambda a: StagedOutput(a["features"], a["logits"], *a["maps"])
    )
    step(batch, batch)
    assert [torch.equal(phi, old) for phi, old in zip(gate.phi, before, strict=True)] == [True, False, False]


def test_a_group_that_is_not_there_is_refused():
    learner, batch = learner_of("adapter"), batch_of("adapter")
    step = BirdStep(learner.model, learner.gate, groups=GROUPS)
    for wrong in (batch.groups + 1, batch.groups - 1):
        with pytest.raises(ValueError, match="groups"):
            step(batch, replace(batch, groups=wrong))

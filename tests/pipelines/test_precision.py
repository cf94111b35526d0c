"""bf16 is an option of the run: it changes the arithmetic of the student's answer, and nothing that is stored."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers.shell import distilled

import bird.precision
from bird.errors import RunError, UsageError
from bird.losses.terms import bias_loss, cross_entropy, feature_mse
from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.precision import in_bf16, require_precision
from bird.step.feedback import Objective, Sensitive, feedback, look_ahead
from bird.step.passes import in_forward_mode
from bird.step.stack import StackedLearner
from bird.step.tangents import Tape
from bird.students import build_student, load_student
from bird_pipelines.config import resolve
from bird_pipelines.distilling.evaluate import evaluate
from bird_pipelines.distilling.side_by_side import distill_many

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "warmup": 1, "batch_size": 32}
able = pytest.mark.skipif(
    bird.precision.CPU_FLAGS_HERE.isdisjoint(bird.precision.CPU_FLAGS), reason="no bfloat16 on this processor"
)


def learner(student):
    return SingleLearner(
        build_student(student, classes=4, image_size=16, seed=0), teacher_dim=64, lr=1e-3, mu2=1e-3, seed=0
    )


def batch(seed, count=32):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.rand(count, 3, 16, 16, generator=generator),
        torch.arange(count) % 4,
        torch.arange(count) // 4 % 2,
        torch.randn(count, 64, generator=generator),
    )


@pytest.mark.parametrize("student", ["tiny-resnet", "tiny-vit"])
@pytest.mark.parametrize("method", ["fitnet", "bird", "domain-independent"])
def test_answers_are_near_and_weights_stay_float32(student, method):
    step = build_method(method, Hyperparameters(), 2)
    losses = []
    for bf16 in (False, True):
        heads = 2 if step.heads_by_group else 1
        one = step.learner(
            build_student(student, classes=4, image_size=16, seed=0, heads=heads),
            teacher_dim=64,
            lr=1e-3,
            mu2=1e-3,
            seed=0,
        )
        if bf16:
            in_bf16(one.model)
        losses.append(step.step(one, batch(0), lambda: batch(1), warm=True))
        assert all(parameter.dtype == torch.float32 for parameter in one.model.parameters())
    for name, value in losses[0].items():
        assert losses[1][name].dtype == torch.float32
        assert losses[1][name] == pytest.approx(float(value), rel=0.05, abs=0.01), name
    assert losses[0]["loss"] != losses[1]["loss"], "nothing was rounded"


def test_the_feedback_points_the_same_way():
    found = []
    for bf16 in (False, True):
        one = learner("tiny-resnet")
        if bf16:
            in_bf16(one.model)
        train, meta = batch(0), batch(1)
        output = one.model(train.inputs)
        _, gradients = feedback(
            one.model,
            one.gate,
            Objective(
                train.inputs,
                lambda h, one=one, train=train: (h.features - one.gate(train.teacher)).square().mean(),
            ),
            Objective(meta.inputs, lambda h, y=meta.labels: torch.nn.functional.cross_entropy(h.logits, y)),
            output=output,
            mu1=1e-3,
        )
        found.append(gradients[0])
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.95


def adapters(bf16):
    """Two learners of one adapter, and their stack."""
    made = []
    for seed in (0, 1):
        student = build_student(
            "adapter", classes=4, feature_mean=torch.zeros(64), feature_std=torch.ones(64), seed=seed
        )
        made.append(SingleLearner(student, teacher_dim=64, lr=1e-3, mu2=1e-3, seed=seed))
    stack = StackedLearner(made)
    for model in (*(one.model for one in made), stack.model) if bf16 else ():
        in_bf16(model)
    return made, stack


def seen_ahead(model, inputs, meta_inputs, labels):
    """Jv after a long step, to where the classes' loss leads as well as the distance."""
    groups = torch.arange(32) // 4 % 2 + 0 * labels
    with Tape(model) as tape:
        output = model(inputs)
    h = type(output)(*(each.detach().requires_grad_() for each in output))
    inner = 0.1 * feature_mse(h.features, 0.6 * inputs) + 0.9 * cross_entropy(h.logits, labels)
    given = {"output": output, "u": torch.autograd.grad(inner.sum(), list(h)), "mu1": 5.0}
    outer = Objective(meta_inputs, lambda h: bias_loss(h.logits, labels, groups, 2))
    if isinstance(model, Sensitive):
        return model.sensitivity(inputs, outer, **given)[1]
    return in_forward_mode(model, look_ahead(model, outer, **given, tape=tape).v, inputs, tape)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_stack_looks_ahead_through_the_head_as_one_model_does(bf16):
    made, stack = adapters(bf16)
    x, labels = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
    alone = seen_ahead(made[0].model, *x, labels).features
    together = seen_ahead(stack.model, *x.unsqueeze(1).expand(2, 2, 32, 64), labels.expand(2, 32)).features[0]
    assert (together - alone).norm() / alone.norm() < (0.05 if bf16 else 1e-5)


@pytest.mark.parametrize("method", ["ad", "fitnet", "mfd"])
def test_an_adapter_moves_in_bf16_as_in_fp32(method):
    kind, weights = build_method(method, Hyperparameters(), 2), []
    for bf16 in (False, True):
        student = build_student("adapter", classes=4, feature_mean=torch.zeros(64), feature_std=torch.ones(64), seed=0)
        one = kind.learner(student, teacher_dim=64, lr=1e-3, mu2=1e-3, seed=0)
        if bf16:
            in_bf16(one.model)
        given = batch(0)
        for _ in range(3):
            kind.step(one, replace(given, inputs=given.teacher), lambda: None, warm=True)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()]))
    fresh = build_student("adapter", classes=4, feature_mean=torch.zeros(64), feature_std=torch.ones(64), seed=0)
    start = torch.cat([parameter.detach().flatten() for parameter in fresh.parameters()])
    moved = [each - start for each in weights]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95


def test_a_copy_computes_with_its_own_weights():
    one = learner("tiny-resnet").model
    in_bf16(one)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert other(batch(0).inputs).logits.abs().sum() > 0


def test_a_processor_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(bird.precision, "CPU_FLAGS_HERE", frozenset({"sse2"}))
    require_precision("fp32", CPU)
    with pytest.raises(UsageError, match="processor with none of avx512_bf16"):
        require_precision("bf16", CPU)


@able
def test_a_run_in_bf16(cache, tmp_path):
    """It is part of what the run is; its student is stored, scored and loaded as any other; stacks have it, too."""
    info = distilled(cache, tmp_path / "run", precision="bf16", **SHORT)
    assert info["config"]["precision"] == "bf16"
    assert evaluate(tmp_path / "run") == info["metrics"]["test"]
    plain = distilled(cache, tmp_path / "plain", **SHORT)
    assert abs(info["metrics"]["test"]["auroc"] - plain["metrics"]["test"]["auroc"]) < 3
    states = [load_student(tmp_path / name).state_dict() for name in ("run", "plain")]
    assert all(value.dtype == torch.float32 for value in states[0].values())
    assert any((states[0][name] != states[1][name]).any() for name in states[0])
    with pytest.raises(RunError, match="precision = bf16"):
        distilled(cache, tmp_path / "run", **SHORT)
    flags = {
        "dataset": "digits-s",
        "student": "adapter",
        "method": "bird",
        "cache": cache,
        **SHORT,
        "precision": "bf16",
    }
    many = distill_many([resolve({**flags, "seed": seed, "out": tmp_path / str(seed)}) for seed in range(2)])
    assert abs(many[0]["metrics"]["test"]["auroc"] - info["metrics"]["test"]["auroc"]) < 1


def test_a_folder_older_than_the_option_resumes(cache, tmp_path):
    distilled(cache, tmp_path / "run", **SHORT)
    path = tmp_path / "run" / "config.json"
    found = json.loads(path.read_text())
    del found["identity"]["precision"], found["identity"]["average"]
    path.write_text(json.dumps(found))
    assert distilled(cache, tmp_path / "run", **SHORT)["complete"]
    del found["identity"]["offsets_from"]
    found["identity"]["average"] = 0.999  # which every run recorded, and this method did not heed
    path.write_text(json.dumps(found))
    assert distilled(cache, tmp_path / "run", **SHORT)["complete"]

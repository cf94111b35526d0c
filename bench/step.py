"""One BIRD step against a plain FitNet step and against other ways to the same gate gradient: paired, in one process.

    python bench/step.py [--students resnet18 shufflenetv2] [--sizes 64 176] [--batch 64] [--rounds 9]

Each round times every variant once, in turn; a ratio is taken within a round. The other ways build the inner gradient's
graph and differentiate it again: by hand, by `higher`, by `torchopt` (where they are installed). `betty` has no exact
gradient of one step; what comes nearest is its finite difference (two more forward passes), put around the same look-ahead.
Before anything is timed each gate gradient is compared with ours. Memory is a process's peak less what it held before its
first step.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from results import paired, save
from torch.func import functional_call

from bird.losses.terms import bias_loss, cross_entropy, feature_mse
from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.students import build_student

CLASSES, GROUPS, TEACHER_DIM = 2, 2, 512
META_PER_CELL = 8  # the default: 32 meta samples for two classes and two groups, as in CelebA


def make_batch(size, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        inputs=torch.rand(count, 3, size, size, generator=generator),
        labels=torch.arange(count) % CLASSES,
        groups=torch.arange(count) // CLASSES % GROUPS,
        teacher=torch.randn(count, TEACHER_DIM, generator=generator),
    )


def inner_loss(hyper, learner, output, batch):
    ce = cross_entropy(output.logits, batch.labels)
    return hyper.alpha * feature_mse(output.features, learner.gate(batch.teacher)) + (1 - hyper.alpha) * ce


def meta_loss(answer, meta):
    return bias_loss(answer.logits, meta.labels, meta.groups, GROUPS)


def by_hand(learner, hyper, batch, meta):
    """phi's gradient, and the answer on the batch with its graph."""
    theta = dict(learner.model.named_parameters())
    output = learner.model(batch.inputs)
    loss = inner_loss(hyper, learner, output, batch)
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True, materialize_grads=True)
    ahead = {name: p - hyper.mu1 * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    buffers = {name: value.clone() for name, value in learner.model.named_buffers()}
    outer = meta_loss(functional_call(learner.model, (ahead, buffers), (meta.inputs,)), meta)
    return torch.autograd.grad(outer, learner.gate.phi, retain_graph=True)[0], output


def by_higher(learner, hyper, batch, meta):
    import higher

    plain = torch.optim.SGD(learner.model.parameters(), lr=hyper.mu1)
    with higher.innerloop_ctx(learner.model, plain, copy_initial_weights=False) as (model, optimizer):
        output = model(batch.inputs)
        optimizer.step(inner_loss(hyper, learner, output, batch))
        outer = meta_loss(model(meta.inputs), meta)
        return torch.autograd.grad(outer, learner.gate.phi, retain_graph=True)[0], output


def by_torchopt(learner, hyper, batch, meta):
    import torchopt

    model, optimizer = learner.model, torchopt.MetaSGD(learner.model, lr=hyper.mu1)
    before = torchopt.extract_state_dict(model, by="reference")
    output = model(batch.inputs)
    optimizer.step(inner_loss(hyper, learner, output, batch))
    outer = meta_loss(model(meta.inputs), meta)
    gradient = torch.autograd.grad(outer, learner.gate.phi, retain_graph=True)[0]
    torchopt.recover_state_dict(model, before)
    return gradient, output


def by_betty(learner, hyper, batch, meta):
    from betty.hypergradient.darts import darts

    theta = dict(learner.model.named_parameters())
    output = learner.model(batch.inputs)
    loss = inner_loss(hyper, learner, output, batch)
    gradients = torch.autograd.grad(loss, list(theta.values()), retain_graph=True, materialize_grads=True)
    ahead = {
        name: (p - hyper.mu1 * g).detach().requires_grad_()
        for (name, p), g in zip(theta.items(), gradients, strict=True)
    }
    buffers = {name: value.clone() for name, value in learner.model.named_buffers()}
    outer = meta_loss(functional_call(learner.model, (ahead, buffers), (meta.inputs,)), meta)
    direction = torch.autograd.grad(outer, list(ahead.values()), materialize_grads=True)
    before = [p.detach().clone() for p in theta.values()]
    student = SimpleNamespace(
        config=SimpleNamespace(darts_alpha=0.01),  # its default
        cur_batch=batch,
        trainable_parameters=lambda: list(theta.values()),
        training_step_exec=lambda batch: inner_loss(hyper, learner, learner.model(batch.inputs), batch),
    )
    gate = SimpleNamespace(trainable_parameters=lambda: [learner.gate.phi])
    (gradient,) = darts(direction, student, gate)
    for p, value in zip(theta.values(), before, strict=True):  # darts leaves them where its second pass was
        p.data.copy_(value)
    return hyper.mu1 * gradient, output


WAYS = {"double backward": by_hand, "higher": by_higher, "torchopt": by_torchopt, "betty": by_betty}
OURS = ("bird", "bird, stratified", "bird, recompute", "bird, stratified, recompute")
EXACT = ("double backward", "higher", "torchopt")


def whole_step(way, learner, hyper, batch, meta):
    """The iteration of BIRD around another way to the feedback."""
    gradient, output = way(learner, hyper, batch, meta)
    learner.move_gate([gradient])
    with torch.no_grad():
        target = learner.gate(batch.teacher)
    ce = cross_entropy(output.logits, batch.labels)
    loss = hyper.alpha * feature_mse(output.features, target) + (1 - hyper.alpha) * ce
    learner.descend(loss + hyper.lambda_ * bias_loss(output.logits, batch.labels, batch.groups, GROUPS))


def make_learner(student, size):
    fresh = build_student(student, classes=CLASSES, image_size=size, seed=0)
    learner = SingleLearner(fresh, teacher_dim=TEACHER_DIM, lr=1e-3, mu2=1e-3, seed=0)
    learner.model.train()
    return learner


def variants(student, size, count):
    hyper = Hyperparameters()
    batch, equal = make_batch(size, count, 0), make_batch(size, count, 1)
    stratified = make_batch(size, META_PER_CELL * CLASSES * GROUPS, 2)

    def ours(name, meta, recompute=False):
        method, learner = build_method(name, hyper, GROUPS), make_learner(student, size)
        method.recompute = recompute
        return lambda: method.step(learner, batch, lambda: meta, warm=True)

    def theirs(way):
        learner = make_learner(student, size)
        return lambda: whole_step(way, learner, hyper, batch, equal)

    steps = {
        "fitnet": ours("fitnet", equal),
        "bird": ours("bird", equal),
        "bird, stratified": ours("bird", stratified),
        "bird, recompute": ours("bird", equal, recompute=True),
        "bird, stratified, recompute": ours("bird", stratified, recompute=True),
    }
    return steps | {name: theirs(way) for name, way in WAYS.items() if available(name)}


def available(name):
    """Whether the library that the way needs is here."""
    try:
        __import__("torch" if name == "double backward" else name)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return False
    return True


def check_gradients(student, size):
    """The largest relative difference of each way's gate gradient from ours, on one small batch."""
    from bird.step.feedback import Objective, feedback
    from bird.step.tangents import Tape

    hyper, batch, meta = Hyperparameters(), make_batch(size, 16, 0), make_batch(size, 16, 1)
    learner = make_learner(student, size)
    with Tape(learner.model) as tape:
        output = learner.model(batch.inputs)
    _, (ours,) = feedback(
        learner.model,
        learner.gate,
        Objective(batch.inputs, lambda h: inner_loss(hyper, learner, h, batch)),
        Objective(meta.inputs, lambda h: meta_loss(h, meta)),
        output=output,
        mu1=hyper.mu1,
        tape=tape,
    )
    found = {}
    for name, way in WAYS.items():
        if available(name):
            gradient, _ = way(make_learner(student, size), hyper, batch, meta)
            found[name] = ((gradient - ours).norm() / ours.norm()).item()
            assert found[name] < 1e-3 or name not in EXACT, (name, found)
    return found


def measure(student, size, count, rounds):
    steps = variants(student, size, count)
    for step in steps.values():  # the first calls allocate and choose kernels
        step()
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    row = {"student": student, "px": str(size), "fitnet, ms": 1000 * sorted(seconds["fitnet"])[rounds // 2]}
    row |= {f"{name} / fitnet": paired(seconds[name], seconds["fitnet"]) for name in OURS}
    return row | {f"bird / {name}": paired(seconds["bird"], seconds[name]) for name in WAYS if name in seconds}


def peak(name, student, size, count):
    """MiB that three steps need beyond what the process held before, in this process."""
    step = variants(student, size, count)[name]
    held = kibibytes("VmRSS")
    for _ in range(3):
        step()
    return (kibibytes("VmHWM") - held) / 1024


def kibibytes(name):
    """A line of /proc/self/status. (getrusage's peak would be the parent's, where that was larger.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_memory(student, size, count):
    """One process a variant."""

    def of(name):
        command = [sys.executable, __file__, "--peak", name, student, str(size), str(count)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    others = (*OURS, "double backward")
    found = {name: of(name) for name in ("fitnet", *others)}
    row = {"student": student, "px": str(size), "fitnet, MiB": found["fitnet"]}
    return row | {f"{name} / fitnet": found[name] / found["fitnet"] for name in others}


def measure_steps(options, cases):
    checked = {student: check_gradients(student, 32) for student in options.students}
    rows = [measure(student, size, options.batch, options.rounds) for student, size in cases]
    notes = [
        f"batch {options.batch}, meta batch of the same size; stratified: 8 of each of 4 cells, {META_PER_CELL * 4} in all.",
        f"Gate gradients, relative difference from ours before timing: {json.dumps(checked)}.",
    ]
    save("step", "Seconds of a step as ratios within a round.", rows[0], rows, notes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 176])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only-memory", action="store_true")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        name, student, size, count = options.peak
        print(peak(name, student, int(size), int(count)))
        return
    cases = [(student, size) for size in options.sizes for student in options.students]
    if not options.only_memory:
        measure_steps(options, cases)
    memory = [measure_memory(student, size, options.batch) for student, size in cases]
    save("step-memory", "Peak memory of a step, beyond student and data.", memory[0], memory)


if __name__ == "__main__":
    main()

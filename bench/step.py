"""One BIRD step against a plain FitNet step and against double backward: paired, in one process.

    python bench/step.py [--students resnet18 shufflenetv2] [--size 64] [--batch 64] [--rounds 15] [--out FILE]

Each round times every variant once, in turn; what is reported is the ratio within a round (median, quartiles).
Double backward is the usual way to the same gate gradient: build the inner gradient's graph, differentiate it again.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.func import functional_call

from bird.losses import bias_loss, cross_entropy, feature_mse
from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.students import build_student

CLASSES, GROUPS, TEACHER_DIM = 10, 2, 512


def make_batch(size, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        inputs=torch.rand(count, 3, size, size, generator=generator),
        labels=torch.arange(count) % CLASSES,
        groups=torch.arange(count) // CLASSES % GROUPS,
        teacher=torch.randn(count, TEACHER_DIM, generator=generator),
    )


def double_backward_step(learner, hyper, batch, meta):
    """The same iteration with the inner gradient's graph differentiated a second time."""
    theta = dict(learner.model.named_parameters())
    output = learner.model(batch.inputs)
    ce = cross_entropy(output.logits, batch.labels)
    inner = hyper.alpha * feature_mse(output.features, learner.gate(batch.teacher)) + (1 - hyper.alpha) * ce
    gradients = torch.autograd.grad(inner, list(theta.values()), create_graph=True, materialize_grads=True)
    ahead = {name: p - hyper.mu1 * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    buffers = {name: value.clone() for name, value in learner.model.named_buffers()}
    answer = functional_call(learner.model, (ahead, buffers), (meta.inputs,))
    outer = bias_loss(answer.logits, meta.labels, meta.groups, GROUPS)
    learner.gate.phi.grad = torch.autograd.grad(outer, learner.gate.phi, retain_graph=True)[0]
    learner.gate_optimizer.step()
    with torch.no_grad():
        target = learner.gate(batch.teacher)
    bias = bias_loss(output.logits, batch.labels, batch.groups, GROUPS)
    learner.descend(hyper.alpha * feature_mse(output.features, target) + (1 - hyper.alpha) * ce + hyper.lambda_ * bias)


def variants(student, size, count):
    hyper = Hyperparameters()
    batch, meta = make_batch(size, count, 0), make_batch(size, count, 1)

    def learner():
        fresh = build_student(student, classes=CLASSES, image_size=size, seed=0)
        return SingleLearner(fresh, teacher_dim=TEACHER_DIM, lr=1e-3, mu2=1e-3, seed=0)

    fitnet, bird, double = learner(), learner(), learner()
    fitnet_method, bird_method = (build_method(name, hyper, GROUPS) for name in ("fitnet", "bird"))
    return {
        "fitnet": lambda: fitnet_method.step(fitnet, batch, lambda: meta, warm=True),
        "bird": lambda: bird_method.step(bird, batch, lambda: meta, warm=True),
        "double backward": lambda: double_backward_step(double, hyper, batch, meta),
    }


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
    ratio = {
        f"bird / {other}": quartiles([a / b for a, b in zip(seconds["bird"], seconds[other], strict=True)])
        for other in ("fitnet", "double backward")
    }
    return {"student": student, "size": size, "batch": count, "ratio": ratio} | {
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    }


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartiles": [low, high], "rounds": len(values)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [measure(student, options.size, options.batch, options.rounds) for student in options.students]
    text = json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

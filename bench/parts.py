"""Where a BIRD step goes: each of its passes by itself, one after the other, in one process.

python bench/parts.py [--students resnet18 shufflenetv2] [--rounds 10]
"""

import argparse
import statistics
import time

import torch
from results import save
from step import inner_loss, make_batch, make_learner, meta_loss
from torch.autograd import grad

from bird.methods import Hyperparameters
from bird.step.passes import in_forward_mode, probe
from bird.step.tangents import Tape


def measure(student, rounds):
    hyper, learner, took = Hyperparameters(), make_learner(student, 64), {}
    model, theta = learner.model, dict(learner.model.named_parameters())
    batch, meta = make_batch(64, 64, 0), make_batch(64, 64, 1)

    def timed(name, work):
        began = time.perf_counter()
        result = work()
        took.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return result

    def recorded():
        with Tape(model) as tape:
            return model(batch.inputs), tape

    def look_ahead(loss):
        slope = grad(loss, list(theta.values()), retain_graph=True, materialize_grads=True)
        moved = zip(theta.items(), slope, strict=True)
        return {name: (value.detach() - hyper.mu1 * each).requires_grad_() for (name, value), each in moved}

    for _ in range(rounds + 2):  # the first two allocate and choose kernels
        timed("forward, no tape", lambda: model(batch.inputs))
        output, tape = timed("forward", recorded)
        loss = inner_loss(hyper, learner, output, batch)
        ahead = timed("look-ahead", lambda loss=loss: look_ahead(loss))
        bias = timed("meta forward", lambda ahead=ahead: meta_loss(probe(model, ahead, meta.inputs), meta))
        slope = timed(
            "meta backward", lambda bias=bias, ahead=ahead: grad(bias, list(ahead.values()), materialize_grads=True)
        )
        v = dict(zip(ahead, slope, strict=True))
        timed("Jv", lambda v=v, tape=tape: in_forward_mode(model, v, batch.inputs, tape))
        timed("Jv, no tape", lambda v=v: in_forward_mode(model, v, batch.inputs, Tape(model, keep=False)))
        timed("own backward", lambda loss=loss: grad(loss, list(theta.values()), materialize_grads=True))
    return {"student": student} | {f"{name}, ms": statistics.median(values[2:]) for name, values in took.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = [measure(student, options.rounds) for student in options.students]
    note = f"64 px, batch and meta batch 64, medians of {options.rounds}."
    save("parts", "The passes of a step.", tuple(rows[0]), rows, [note])


if __name__ == "__main__":
    main()

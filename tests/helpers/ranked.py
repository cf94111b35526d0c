"""Steps that one process takes, or several together: `torchrun ... -m helpers.ranked OUT` writes OUT/RANK-of-WORLD.npz.

A case gives named vectors. On every rank they must be those of one process on all rows."""

import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from helpers.methodkit import PAIRS, for_method, ready
from helpers.methodkit import batch_of as method_batch
from helpers.strangers import CLASSES, GROUPS, WIDTH, Body, Net, batch_of, conv, normed
from torch import distributed, nn

from bird import BirdStep, Gate, Offsets
from bird.losses.terms import cross_entropy
from bird.methods.distances import Distance
from bird.step.gate import StageGates
from bird.step.offsets import mixed_bias
from bird.step.ranks import Ranks

STEPS, ROWS = 3, 13  # an odd number of rows: the ranks' shares differ
REFUSED = {"mfd", "bird+mfd"}  # a distance over all pairs of the batch


def grouped():
    """Group norm: a row's answer is its own."""
    return nn.Sequential(conv(), nn.GroupNorm(2, WIDTH), nn.ReLU(), conv(WIDTH))


def frozen():
    """Batch norm with statistics that stay."""
    body = normed()
    with torch.no_grad():
        body[1].running_mean.uniform_(-1, 1)
    return body.eval()


def distances(x, rank, slow):
    """Of each sample's places to two points; `slow` has no forward rule."""
    flat, points = x.flatten(2).mT, torch.stack([torch.zeros(3), torch.ones(3)]).to(x)
    apart = torch.cdist(flat, points) if slow else (flat.unsqueeze(2) - points).square().sum(-1).sqrt()
    return apart.mean(1)


def stubborn(rank):
    """A student that has no forward mode on rank 1 alone."""

    def forward(x, layer, last):
        return last(distances(layer(x), rank, slow=rank == 1))

    return Body(forward, conv(3, 3), nn.Linear(2, WIDTH))


def own(batch, rank, world):
    """The rank's rows."""

    def cut(value):
        if value is None:
            return None
        return tuple(each[rank::world] for each in value) if isinstance(value, tuple) else value[rank::world]

    return replace(batch, **{each.name: cut(getattr(batch, each.name)) for each in fields(batch)})


def by_step(rank, world, reduce, body, gate=None, poison=False, **options):
    """A BirdStep: phi's gradient, the student's, the global parts of the loss, and the weights at the end."""
    torch.manual_seed(0)
    student = Net(body(rank) if body is stubborn else body()).double()
    student.train(body is not frozen)
    gate = (gate or Gate(WIDTH)).double()
    step = BirdStep(student, gate, groups=GROUPS, mu1=0.1, mu2=1e-2, lambda_=0.2, reduce=reduce, **options)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    found = {}
    for number in range(STEPS):
        batch, meta = batch_of(number, count=ROWS), batch_of(100 + number)
        if poison:
            batch.inputs[1] = torch.nan  # of rank 1
        loss, parts = step(own(batch, rank, world), own(meta, rank, world))
        optimizer.zero_grad()
        loss.backward()
        step.reduce_gradients()
        found[f"{number} phi"] = flat(each.grad for each in gate.parameters())
        found[f"{number} theta"] = flat(each.grad for each in student.parameters())
        found[f"{number} parts"] = torch.stack([parts["bias"], parts["meta_bias"]])
        optimizer.step()
    found["weights"] = flat([*student.parameters(), *gate.parameters()])
    found["way"] = torch.tensor(step.guard.way)
    return found


def with_offsets(rank, world, reduce):
    offsets = Offsets(CLASSES, GROUPS, WIDTH)
    total = None if reduce is None else Ranks(reduce).total
    return by_step(
        rank,
        world,
        reduce,
        grouped,
        offsets,
        task=lambda logits, batch: cross_entropy(offsets.adjust(logits, batch.groups), batch.labels),
        outer=lambda logits, meta: mixed_bias(logits, meta.labels, meta.groups, GROUPS, 0.5, 0.1, total),
    )


class Halves(nn.Module):
    """A gate a stage, on the halves of the features as maps of one place."""

    def __init__(self):
        super().__init__()
        self.gates = StageGates([WIDTH // 2, WIDTH // 2])

    def forward(self, teacher):
        maps = self.gates([half[..., None, None] for half in teacher.chunk(2, -1)])
        return torch.cat([each.flatten(1) for each in maps], -1)


def cosine(h, gated, batch):
    return (1 - torch.cosine_similarity(h.features, gated, -1)).mean()


STEP_CASES = {
    "group norm": lambda *at: by_step(*at, grouped),
    "frozen batch norm": lambda *at: by_step(*at, frozen),
    "offsets, mixture": with_offsets,
    "a gate a stage": lambda *at: by_step(*at, grouped, Halves()),
    "soft maximum": lambda *at: by_step(*at, grouped, soft_max=0.1),
    "another distance": lambda *at: by_step(*at, grouped, distance=Distance(cosine)),
    "recompute": lambda *at: by_step(*at, grouped, recompute=True),
    "last layer alone": lambda *at: by_step(*at, grouped, through=lambda name: name.startswith("head")),
    "unchecked": lambda *at: by_step(*at, grouped, check=0),
    "no forward mode on rank 1": lambda *at: by_step(*at, stubborn),
}
OTHER_CASES = {
    "no number": lambda *at: by_step(*at, grouped, poison=True, check=0),
    "batch norm": lambda *at: by_step(*at, normed),
}


def by_method(name, kind, rank, world, reduce):
    """Steps of a method around a student without batch statistics."""
    torch.manual_seed(0)
    method, learner = ready(name, kind, alpha=0.5, mu1=0.1, lambda_=0.2, soft_max=0.0, balance=0.3)
    group_norm(learner.model)
    for part in (learner.model, learner.gate, learner.aide, learner.average):
        if part is not None:
            part.double()
    learner.ranks, found, gradients = Ranks(reduce), {}, []
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(flat(each.grad for each in learner.model.parameters() if each.grad is not None))
    )
    for number in range(STEPS):
        batch, meta = (in_double(for_method(method, method_batch(kind, ROWS, seed))) for seed in (number, 100 + number))
        learner.ranks.count(len(batch.labels[rank::world]), batch.inputs)
        method.number = number
        mine, other = own(batch, rank, world), own(meta, rank, world)
        method.step(learner, mine, lambda other=other: other, warm=True)
        found[f"{number} theta"] = gradients.pop()
        if method.meta:
            found[f"{number} phi"] = flat(each.grad for each in learner.gate.parameters())
        if learner.aide is not None:
            found[f"{number} aide"] = flat([*learner.aide.parameters(), *learner.aide.buffers()])
    return found


def group_norm(module):
    """Batch norms become group norms."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
            for old, new in zip(child.parameters(), getattr(module, name).parameters(), strict=True):
                new.data = old.data
                setattr(getattr(module, name), "weight" if new is getattr(module, name).weight else "bias", old)
        else:
            group_norm(child)


def in_double(batch):
    def wide(value):
        if isinstance(value, tuple):
            return tuple(map(wide, value))
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return replace(batch, **{each.name: wide(getattr(batch, each.name)) for each in fields(batch)})


def flat(tensors):
    return torch.cat([each.detach().flatten() for each in tensors])


METHOD_CASES = {
    f"{name}, {kind}": lambda *at, name=name, kind=kind: by_method(name, kind, *at)
    for name, kind in PAIRS
    if name not in REFUSED
}


def everything(rank, world, reduce, images=True):
    """All cases, by "case: vector"."""
    cases = STEP_CASES | OTHER_CASES | METHOD_CASES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            f"{case}: {name}": value.numpy()
            for case, run in cases.items()
            if images or "shufflenet" not in case or case.startswith(("bird+at", "at,"))
            for name, value in run(rank, world, reduce).items()
        }


def all_reduce(vector):
    distributed.all_reduce(vector)
    return vector


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    found = everything(rank, world, all_reduce, images="--all" in sys.argv)
    np.savez(Path(sys.argv[1]) / f"{rank}-of-{world}.npz", **found)
    distributed.destroy_process_group()

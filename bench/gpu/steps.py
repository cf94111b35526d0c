"""One BIRD step against a FitNet step and against double backward by hand: time and memory, fp32 (TF32 on) and bf16."""

from functools import partial

import torch
from here import DEVICE, SMALL, held_and_peak, milliseconds, name_of_device
from results import save
from step import CLASSES, GROUPS, META_PER_CELL, TEACHER_DIM, make_batch, whole_step
from step import by_hand as double_backward
from torch import nn

from bird.methods import Hyperparameters, SingleLearner, build_method
from bird.precision import in_bf16
from bird.students import STUDENTS, StudentKind, build_student

STEPS = [("resnet18", 176), ("shufflenetv2", 176), ("resnet50", 176)] if not SMALL else [("tiny-convnet", 16)]
BATCH, ROUNDS = (128, 10) if not SMALL else (8, 1)
COLUMNS = ["student", "px", "precision", "fitnet, ms", "bird / fitnet", "bird, stratified / fitnet"]
COLUMNS += ["double backward / fitnet", "fitnet, MiB", "bird / fitnet, memory", "bird, stratified / fitnet, memory"]
COLUMNS += ["double backward / fitnet, memory"]


def resnet50(image_size, feature_dim):
    """torchvision's, from scratch: 2048 features."""
    from torchvision.models import resnet50

    net = resnet50(weights=None)
    net.fc = nn.Identity()
    return net, 2048


STUDENTS["resnet50"] = StudentKind("image", "ResNet-50 from scratch", resnet50)


def on_device(batch):
    """The batch, where the step computes."""
    return type(batch)(*(each if each is None else each.to(DEVICE) for each in vars(batch).values()))


def learner_of(student, size, precision):
    """A student with its gate and optimisers, in training."""
    fresh = build_student(student, classes=CLASSES, image_size=size, seed=0).to(DEVICE)
    learner = SingleLearner(fresh, teacher_dim=TEACHER_DIM, lr=1e-3, mu2=1e-3, seed=0)
    if precision == "bf16":
        in_bf16(learner.model)
    learner.model.train()
    return learner


def variants(student, size, precision):
    """What is measured: a step each, on a learner of its own that is made when it is wanted."""
    hyper = Hyperparameters()
    batch, equal = on_device(make_batch(size, BATCH, 0)), on_device(make_batch(size, BATCH, 1))
    stratified = on_device(make_batch(size, META_PER_CELL * CLASSES * GROUPS, 2))

    def ours(name, meta):
        method, learner = build_method(name, hyper, GROUPS), learner_of(student, size, precision)
        return partial(method.step, learner, batch, lambda: meta, warm=True)

    def by_hand():
        return partial(whole_step, double_backward, learner_of(student, size, precision), hyper, batch, equal)

    return {
        "fitnet": partial(ours, "fitnet", equal),
        "bird": partial(ours, "bird", equal),
        "bird, stratified": partial(ours, "bird", stratified),
        "double backward": by_hand,
    }


def row_of(student, size, precision):
    """One row: milliseconds and memory of fitnet, the others as ratios."""
    times, memory = {}, {}
    for name, make in variants(student, size, precision).items():
        step = make()
        times[name] = milliseconds(step, ROUNDS)
        memory[name] = held_and_peak(step)
        del step
    row = {"student": student, "px": str(size), "precision": precision, "fitnet, ms": times["fitnet"]}
    row["fitnet, MiB"] = memory["fitnet"]
    for name in ("bird", "bird, stratified", "double backward"):
        row[f"{name} / fitnet"] = times[name] / times["fitnet"]
        row[f"{name} / fitnet, memory"] = memory[name] / memory["fitnet"] if memory[name] else None
    return row


def main():
    """Row by row, kept as they come: the stage may run over its budget."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    notes = [
        f"{name_of_device()}; batch {BATCH}, meta batch of the same size, or stratified: {META_PER_CELL} a cell.",
        f"Medians of {ROUNDS}; memory: peak of a step beside student, optimisers and batches. fp32 with TF32; bf16 as "
        "`--precision bf16` has it, channels_last. Wanted: bird, stratified <= 3.0 in bf16; memory <= 1.6.",
    ]
    rows = []
    for student, size in STEPS:
        for precision in ("fp32", "bf16"):
            try:
                rows.append(row_of(student, size, precision))
            except torch.OutOfMemoryError:
                rows.append(
                    {"student": student, "px": str(size), "precision": precision, "fitnet, ms": "out of memory"}
                )
            save("gpu-step", "The BIRD step on a GPU, as ratios to FitNet's.", COLUMNS, rows, notes)


if __name__ == "__main__":
    main()

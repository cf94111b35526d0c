"""Small batches, students, and methods with their learners."""

from dataclasses import replace

import torch

from bird.losses.attention import attention
from bird.methods import METHODS, Batch, Hyperparameters, SingleLearner, build_method
from bird.students import build_student

CLASSES, GROUPS, DIM = 3, 2, 8
CHANNELS = (5, 7, 6)
STAGED = ("at", "bird+at")
PAIRS = [(m, s) for m in METHODS for s in ("adapter", "shufflenetv2") if s != "adapter" or m not in STAGED]


def batch_of(student, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, DIM) if student == "adapter" else (count, 3, 32, 32)
    return Batch(
        inputs=torch.rand(shape, generator=generator),
        labels=torch.arange(count) // 2 % CLASSES,
        groups=torch.arange(count) % GROUPS,
        teacher=torch.randn(count, DIM, generator=generator),
        teacher_logits=torch.randn(count, CLASSES, generator=generator),
        stages=tuple(torch.rand(count, channels, 8, 8, generator=generator) for channels in CHANNELS),
    )


def for_method(method, batch):
    """The batch with the stages as the method reads them."""
    if method.stages != "attention":
        return batch
    return replace(batch, stages=tuple(attention(maps) for maps in batch.stages))


def student_of(student, heads=1):
    mean, std = torch.zeros(DIM), torch.ones(DIM)
    return build_student(
        student, classes=CLASSES, image_size=32, feature_mean=mean, feature_std=std, seed=0, heads=heads
    )


def learner_of(student):
    return SingleLearner(student_of(student), teacher_dim=DIM, lr=1e-3, mu2=1e-2, seed=0)


def ready(name, student, **hyper):
    """A method with its learner, told all that the pipelines tell it."""
    method = build_method(name, Hyperparameters(**hyper), GROUPS)
    built = student_of(student, GROUPS if method.heads_by_group else 1)
    method.prepare(torch.full((CLASSES, GROUPS), 2))
    method.begin_epoch(0)
    return method, method.learner(built, teacher_dim=DIM, stage_channels=CHANNELS, lr=1e-3, mu2=1e-2, seed=0)

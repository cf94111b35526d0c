"""The distillation methods, one small class each. `METHODS` is the list.

A method turns a train batch (and, where it asks for one, a meta batch) into one update of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bird.errors import UsageError
from bird.methods.base import Batch, Hyperparameters, Learner, Losses, Method, Regressed, SingleLearner
from bird.methods.baselines import BKD, Baseline, FitNet
from bird.methods.birds import Bird

__all__ = [
    "DESCRIPTIONS",
    "METHODS",
    "Batch",
    "Hyperparameters",
    "Learner",
    "Losses",
    "Method",
    "Regressed",
    "SingleLearner",
    "build_method",
]

METHODS: Mapping[str, Callable[[Hyperparameters, int], Method]] = {
    "baseline": Baseline,
    "bkd": BKD,
    "fitnet": FitNet,
    "bird": Bird,
    "bird-no-meta": partial(Bird, learn_gate=False),
}


DESCRIPTIONS: Mapping[str, str] = {
    "baseline": "cross-entropy alone, no teacher",
    "bkd": "softened teacher logits (Hinton et al. 2015); logits of a head fitted on the cached features",
    "fitnet": "penultimate features, MSE (Romero et al. 2015)",
    "bird": "gated features with student feedback (Java et al. 2023)",
    "bird-no-meta": "BIRD with the gate as it was drawn (Java et al. 2023, Table 7)",
}


def build_method(name: str, hyper: Hyperparameters, groups: int) -> Method:
    """The method of that name for `groups` protected groups. Raises UsageError for an unknown name."""
    if name not in METHODS:
        raise UsageError(
            where="--method",
            found=repr(name),
            wanted=f"one of {', '.join(METHODS)}",
            fix="see `bird list methods`",
        )
    return METHODS[name](hyper, groups)

"""The distillation methods, one small class each. `METHODS` is the list.

A method turns a train batch (and, where it asks for one, a meta batch) into one update of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bird.errors import unknown_name
from bird.methods.adversary import AD
from bird.methods.base import Batch, Hyperparameters, Learner, Losses, Method, Regressed, SingleLearner
from bird.methods.baselines import AT, BKD, MFD, Baseline, FitNet
from bird.methods.birds import Bird, BirdOffsets, BirdPlus, bird_at, bird_mfd
from bird.methods.own import made_by, own_method
from bird.methods.references import DomainIndependent, GroupDRO, Reweight
from bird.own import Part

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
    "own_method",
]

METHODS: Mapping[str, Callable[[Hyperparameters, int], Method]] = {
    "baseline": Baseline,
    "bkd": BKD,
    "fitnet": FitNet,
    "at": AT,
    "ad": AD,
    "mfd": MFD,
    "bird": Bird,
    "bird-no-meta": partial(Bird, learn_gate=False),
    "bird+fitnet": Bird,
    "bird+at": bird_at,
    "bird+mfd": bird_mfd,
    "bird-plus": BirdPlus,
    "bird-plus-no-meta": partial(BirdPlus, learn_gate=False),
    "bird-offsets": BirdOffsets,
    "bird-offsets-no-meta": partial(BirdOffsets, learn_gate=False),
    "reweight": Reweight,
    "group-dro": GroupDRO,
    "domain-independent": DomainIndependent,
}


DESCRIPTIONS: Mapping[str, str] = {
    "baseline": "cross-entropy alone, no teacher",
    "bkd": "softened teacher logits (Hinton et al. 2015); logits of a head fitted on the cached features",
    "fitnet": "penultimate features, MSE (Romero et al. 2015)",
    "at": "attention maps of the residual stages (Zagoruyko and Komodakis 2017); image students, cached attention or maps",
    "ad": "no teacher; an adversary must not read the group off the logits (Zhang et al. 2018)",
    "mfd": "each group's features distributed as the teacher's of the class, by MMD (Jung et al. 2021)",
    "bird": "gated features with student feedback (Java et al. 2023)",
    "bird-no-meta": "BIRD with the gate as it was drawn (Java et al. 2023, Table 7)",
    "bird+fitnet": "another name of bird (Java et al. 2023, Table 5)",
    "bird+at": "BIRD around attention transfer, a gate on each stage's channels; image students, cached maps",
    "bird+mfd": "BIRD around MFD, the teacher's features gated",
    "bird-plus": "BIRD without lambda L_o, with logits adjusted by log p(class | group) and averaged weights (ours)",
    "bird-plus-no-meta": "bird-plus with the gate as it was drawn",
    "bird-offsets": "the feedback learns offsets of the logits by class and group; averaged weights (ours)",
    "bird-offsets-no-meta": "bird-offsets with phi where it starts",
    "reweight": "no teacher; cross-entropy with inverse frequencies of the (class, group) cells",
    "group-dro": "no teacher; cross-entropy of the worst cells (Sagawa et al. 2020)",
    "domain-independent": "no teacher; one head a group, logits summed at test (Wang et al. 2020)",
}


def build_method(name: str, hyper: Hyperparameters, groups: int, part: Part | None = None) -> Method:
    """The method of that name for `groups` protected groups, or the user's own `part`. Raises UsageError for an unknown
    name."""
    if part is not None:
        return made_by(part, hyper, groups)
    if name not in METHODS:
        raise unknown_name("--method", name, METHODS, "see `bird list methods`")
    return METHODS[name](hyper, groups)

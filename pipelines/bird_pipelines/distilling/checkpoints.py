"""The tensors of a checkpoint: the student, and all that is trained beside it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bird.methods import SingleLearner
from bird_pipelines import runs

__all__ = ["take", "tensors_of"]


def tensors_of(learner: SingleLearner, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `take` needs to go on with the same bits, and the `best` student so far, where a run may stop early."""
    tensors = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    tensors |= runs.optimizer_tensors("optimizer", learner.optimizer)
    if learner.gate is not None and learner.gate_optimizer is not None:
        tensors |= {f"gate.{name}": value for name, value in learner.gate.state_dict().items()}
        tensors |= runs.optimizer_tensors("gate_optimizer", learner.gate_optimizer)
    if learner.aide is not None:
        tensors |= {f"aide.{name}": value for name, value in learner.aide.state_dict().items()}
    if learner.aide_optimizer is not None:
        tensors |= runs.optimizer_tensors("aide_optimizer", learner.aide_optimizer)
    if learner.average is not None:
        tensors |= {f"average.{name}": value for name, value in learner.average.state_dict().items()}
    return tensors | {f"best.{name}": value for name, value in best.items()}


def take(learner: SingleLearner, tensors: Mapping[str, Tensor], *, average: bool = False) -> None:
    """The student, and what is trained beside it, as a checkpoint has them. The running mean of the weights comes with
    `average` alone: another run has one of its own."""
    learner.model.load_state_dict(runs.under("model", tensors))
    runs.restore_optimizer("optimizer", learner.optimizer, tensors)
    if learner.gate is not None and learner.gate_optimizer is not None:
        learner.gate.load_state_dict(runs.under("gate", tensors))
        runs.restore_optimizer("gate_optimizer", learner.gate_optimizer, tensors)
    if learner.aide is not None:
        learner.aide.load_state_dict(runs.under("aide", tensors))
    if learner.aide_optimizer is not None:
        runs.restore_optimizer("aide_optimizer", learner.aide_optimizer, tensors)
    if average and learner.average is not None:
        learner.average.load_state_dict(runs.under("average", tensors))

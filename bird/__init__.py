"""BIRD: fair knowledge distillation with student feedback. Tensors in, tensors out: no disk format, no terminal.

Use these in a training loop of your own: `BirdStep`, `Batch`, `Distance`, `Gate`, `Offsets`, `StageGates`. Each is
imported at its first use, so `import bird` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bird.methods.base import Batch
    from bird.methods.bird_step import BirdStep
    from bird.methods.distances import Distance
    from bird.step.gate import Gate, StageGates
    from bird.step.offsets import Offsets

__version__ = "0.1.0"
__all__ = ["Batch", "BirdStep", "Distance", "Gate", "Offsets", "StageGates", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Gate", "StageGates"):
        from bird.step import gate

        return {"Gate": gate.Gate, "StageGates": gate.StageGates}[name]
    if name == "Offsets":
        from bird.step.offsets import Offsets

        return Offsets
    if name in ("Batch", "BirdStep", "Distance"):
        from bird.methods import base, distances
        from bird.methods import bird_step as step

        return {"Batch": base.Batch, "BirdStep": step.BirdStep, "Distance": distances.Distance}[name]
    raise AttributeError(f"module 'bird' has no attribute {name!r}")

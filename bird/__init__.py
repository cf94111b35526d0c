"""BIRD: fair knowledge distillation with student feedback. Tensors in, tensors out: no disk format, no terminal."""

__version__ = "0.1.0"

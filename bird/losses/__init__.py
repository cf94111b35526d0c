"""Losses: tensors in, one value a model out."""

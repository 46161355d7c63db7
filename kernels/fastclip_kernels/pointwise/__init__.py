"""Backward passes between a transformer block's products, with the column sums that biases need."""

from .op import activation_after_bias, heads_after_bias

__all__ = ["activation_after_bias", "heads_after_bias"]

"""Evaluation: retrieval on pairs, zero-shot classification on ImageNet folders."""

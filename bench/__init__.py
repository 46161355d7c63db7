"""Benchmarks: fastclip beside the reference implementation and its peers."""

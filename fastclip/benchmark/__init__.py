"""Published benchmarks on a finished checkpoint: what `fastclip eval` does."""

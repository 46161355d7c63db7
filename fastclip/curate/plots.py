"""The pictures of a check's report, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastclip import optional
from fastclip.curate.whole_file import whole_file


def draw(samples: np.ndarray, path: Path) -> str | None:
    """Four histograms of `samples`, (n,) of SAMPLE, as a PNG. None, or why there are none."""
    figures = optional.find("matplotlib.figure")
    if isinstance(figures, str):
        return figures
    if not len(samples):
        return "there are no samples"
    figure = figures.Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    width, height = samples["width"].astype(np.float64), samples["height"].astype(np.float64)
    for axis, values, label in (
        (axes[0], np.log2(np.minimum(width, height)), "shorter edge, log2 of pixels"),
        (axes[1], np.log2(width / height), "width / height, log2"),
        (axes[2], np.log2(np.maximum(samples["bytes"], 1)), "encoded picture, log2 of bytes"),
        (axes[3], samples["tokens"], "caption, tokens"),
    ):
        axis.hist(values, bins=50)
        axis.set_xlabel(label)
        axis.set_ylabel("samples")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return None

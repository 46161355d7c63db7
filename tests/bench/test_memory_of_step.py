"""Our step's peak memory beside the reference's with all blocks checkpointed, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

from bench.memory_of_step import measure_each

# many rows and little else, so that what is seen are activations
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 128,
        "layers": 8,
        "width": 128,
        "patch_size": 16,
        "head_width": 32,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 8},
}


def test_the_step_with_checkpointing_takes_no_more_than_the_references(tmp_path: Path) -> None:
    """The bars of the real size: 1.5 times in `auto`, which is pointwise here, and 1.0 in `full`."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    peaks = measure_each(["reference", "auto", "full"], f"local-dir:{tmp_path}", 32, "fp32")
    print({way: f"{peak / 1e6:.0f} MB" for way, peak in peaks.items()})
    assert peaks["auto"] <= 1.5 * peaks["reference"]
    assert peaks["full"] <= 1.0 * peaks["reference"]

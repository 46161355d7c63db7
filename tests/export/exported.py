"""Checkpoints of open_clip's own small models, and the command that exports them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from fastclip.cli.main import main

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 48,
        "layers": 2,
        "width": 64,
        "head_width": 16,
        "patch_size": 16,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {"context_length": 19, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}


def config(**changes: Any) -> dict[str, Any]:
    """SMALL with top-level changes, and `vision` and `text` merged into the towers'."""
    result = copy.deepcopy(SMALL)
    result["vision_cfg"].update(changes.pop("vision", {}))
    result["text_cfg"].update(changes.pop("text", {}))
    return {**result, **changes}


def reference_model(folder: Path, model_cfg: dict[str, Any], preprocess: dict[str, Any]) -> Any:
    """open_clip's model of a folder with that configuration and no weights, random ones instead."""
    folder.mkdir(parents=True)
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    with torch.no_grad():  # zeros and ones of a fresh model would hide a name that is mixed up
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def pictures(rng: np.random.Generator) -> list[Image.Image]:
    """Of several shapes: waves, which show a shift of half a pixel, under noise."""
    made = []
    for height, width in [(48, 48), (97, 61), (60, 130)]:
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(rows / a + columns / 9) for a in (5, 11, 17)], axis=-1)
        noise = rng.normal(0, 20, (height, width, 3))
        made.append(Image.fromarray((127 + 90 * waves + noise).clip(0, 255).astype(np.uint8)))
    return made

"""A small CLIP in the hub layout, whose features differ from picture to picture; and OpenCLIP's view of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import fastclip

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
}


def make_hub(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(seed)
    state = fastclip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        state[name].zero_()  # else they outweigh what is in the picture
    for name in list(state):
        if name.endswith(("in_proj_weight", "token_embedding.weight", "conv1.weight")):
            state[name] *= 4
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


class Reference:
    """The same model by OpenCLIP."""

    def __init__(self, hub: Path) -> None:
        self._model, _, self._transform = open_clip.create_model_and_transforms(f"local-dir:{hub}")
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(f"local-dir:{hub}")

    @torch.no_grad()
    def images(self, pictures: list[Image.Image]) -> Tensor:
        batch = torch.stack([self._transform(picture) for picture in pictures])
        return self._model.encode_image(batch, normalize=True)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(texts), normalize=True)

    def classifier(self, names: list[str], templates: list[str]) -> Tensor:
        """(classes, D)."""
        rows = []
        for name in names:
            mean = self.texts([t.replace("{c}", name) for t in templates]).mean(dim=0)
            rows.append(mean / mean.norm())
        return torch.stack(rows)

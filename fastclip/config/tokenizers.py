"""Which tokenizer a model's text tower wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec:
    """What the reference's `get_tokenizer` reads from a model's name and config, as plain values.

    `kind` is "clip" (the BPE of OpenAI's CLIP), "hf" (a Hugging Face tokenizer called `hf_name`) or "siglip"
    (sentencepiece; `hf_name` holds its variant). `file` is a local tokenizer.json, or a folder with one.
    """

    kind: Literal["clip", "hf", "siglip"] = "clip"
    context_length: int = 77
    hf_name: str | None = None
    mode: str | None = None  # text_cfg.tokenizer_mode
    kwargs: dict[str, Any] = field(default_factory=dict)  # text_cfg.tokenizer_kwargs
    file: str | None = None
    cache_dir: str | None = None

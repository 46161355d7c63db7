"""OpenCLIP's trainer, drop-in: same flags, same checkpoints, same loss curve, less work per step.

The public functions load torch when they are first asked for, not when this package is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastclip.api import (
        create_model,
        create_model_and_transforms,
        encode_to_disk,
        get_tokenizer,
        read_features,
        zero_shot,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "create_model",
    "create_model_and_transforms",
    "encode_to_disk",
    "get_tokenizer",
    "read_features",
    "zero_shot",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from fastclip import api

        return getattr(api, name)
    raise AttributeError(f"module 'fastclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

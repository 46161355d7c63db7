"""Opens what was written as a user would, and compares it with the model that was written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip import optional
from fastclip.data.tokenizer import build_tokenizer
from fastclip.errors import DataError, FastclipError
from fastclip.export.source import Source
from fastclip.model.factory import create_model
from fastclip.model.model_config import tokenizer_spec
from fastclip.model.one_line import first_line

TOLERANCE = 1e-5  # of unit-norm features in fp32
# Plain and long ones, digits, signs and other scripts; all as our cleaning leaves them
TEXTS = [
    "a photo of a cat!",
    "",
    "two birds, 1984 — naïve café; 日本語 русский",
    " ".join(f"word{i}" for i in range(120)),
]

logger = logging.getLogger(__name__)


class Features(NamedTuple):
    """Of random pictures and of TEXTS."""

    image: Tensor  # (N, D), unit norm
    text: Tensor  # (M, D)


class Expected(NamedTuple):
    """Inputs, and what the exported model makes of them."""

    images: Tensor  # float (N, 3, H, W), normalised
    ids: Tensor  # int64 (M, L)
    features: Features


@torch.no_grad()
def expect(source: Source) -> Expected:
    model: Any = source.model
    images = torch.randn(2, 3, *source.preprocess.size)
    ids = source.tokenizer(TEXTS)
    return Expected(images, ids, _encode(model, images, ids))


def check_open_clip(source: Source, expected: Expected, folder: Path) -> list[str]:
    """Opens `folder` with our loader and, where it is installed, with open_clip; a line for each.

    Raises DataError where one does not open it, or ids or features differ.
    """
    name = f"local-dir:{folder}"
    with _opening("fastclip"):
        ours = create_model(name).eval()
        ids = build_tokenizer(tokenizer_spec(name))(TEXTS)
    lines = [_compare("fastclip", expected, _encode(ours, expected.images, ids), ids)]
    del ours
    open_clip = optional.find("open_clip")
    if isinstance(open_clip, str):
        return [*lines, f"open_clip was not asked: {open_clip}"]
    with _opening("open_clip"):
        theirs, _, _ = open_clip.create_model_and_transforms(name)
        ids = open_clip.get_tokenizer(name)(TEXTS)
    theirs.eval()
    return [*lines, _compare("open_clip", expected, _encode(theirs, expected.images, ids), ids)]


@torch.no_grad()
def check_transformers(source: Source, expected: Expected, folder: Path) -> list[str]:
    """The same with transformers' CLIPModel and CLIPTokenizer; ids count up to the end mark."""
    import transformers

    with _opening("transformers"):
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        length = source.tokenizer.context_length
        ids = tokenizer(
            TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"]
        found = model(input_ids=ids, pixel_values=expected.images)
    end = source.tokenizer.eot_token_id
    after_end = (ids == end).cumsum(dim=1) - (ids == end).long() > 0  # padding there, zeros here
    features = Features(found.image_embeds, found.text_embeds)
    return [_compare("transformers", expected, features, ids.masked_fill(after_end, 0))]


@torch.no_grad()
def _encode(model: Any, images: Tensor, ids: Tensor) -> Features:
    return Features(
        F.normalize(model.encode_image(images), dim=-1), F.normalize(model.encode_text(ids), dim=-1)
    )


@contextmanager
def _opening(library: str) -> Iterator[None]:
    try:
        yield
    except FastclipError as error:
        raise DataError(f"{library} does not open what was written: {error}") from error
    except Exception as error:  # whatever the library raises
        raise DataError(f"{library} does not open what was written: {first_line(error)}") from error


def _compare(library: str, expected: Expected, found: Features, ids: Tensor) -> str:
    if not torch.equal(ids, expected.ids):
        raise DataError(f"{library} makes other ids of the same texts: nothing was exported")
    worst = max((a - b).abs().max().item() for a, b in zip(found, expected.features, strict=True))
    if not worst <= TOLERANCE:
        raise DataError(
            f"{library} gives features that differ by {worst:.1e} (at most {TOLERANCE:.0e}): "
            "nothing was exported"
        )
    return f"{library} opens it: features differ by at most {worst:.1e}, token ids are the same"

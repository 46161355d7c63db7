"""The tokenizer on real captions at four mean lengths; its ids are the reference's or it is not timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastclip
from bench.captions import DEMO, captions_of, repeated, stretched
from bench.contest import Contest
from bench.correctness import require_right
from bench.rows import OURS, REFERENCE, Work
from bench.sizes import MEAN_CAPTIONS


def said_again(
    captions: list[str],
    lengths: np.ndarray,  # their tokens, with start and end
    mean: int,
) -> list[str]:
    """Captions of about so many tokens: each one's words again and again until there are as many, or cut."""
    found = []
    for caption, length, wanted in zip(
        captions, lengths, stretched(lengths, mean, 77), strict=True
    ):
        words = caption.split() or ["a"]
        of_a_word = max(length - 2, 1) / len(words)
        found.append(" ".join((words * 77)[: max(1, round((wanted - 2) / of_a_word))]))
    return found


@pytest.mark.parametrize("mean", MEAN_CAPTIONS)
def test_tokenizer(mean: int, contest: Contest) -> None:
    import open_clip

    sizes = contest.sizes
    ours, theirs = fastclip.get_tokenizer(sizes.model), open_clip.get_tokenizer(sizes.model)
    captions = repeated(captions_of(DEMO), sizes.captions)
    captions = said_again(captions, theirs(captions).argmax(dim=1).numpy() + 1, mean)
    got, wanted = ours(captions), theirs(captions)
    differ = int((got != wanted).any(dim=1).sum()) if got.shape == wanted.shape else len(captions)
    require_right("tokenizer", [f"{differ} captions have other ids"] if differ else [])
    tokens = float((wanted.argmax(dim=1) + 1).double().mean())
    contest.run(
        "tokenizer",
        f"{sizes.captions:,} captions of {tokens:.0f} tokens",
        {OURS: lambda: ours(captions), REFERENCE: lambda: theirs(captions)},
        Work(sizes.captions),
        missing={},
        rounds=sizes.parts,
        mean_tokens=tokens,
        threads=torch.get_num_threads(),
    )

"""What replaces cutting off the end of a caption that is too long (the reference's
`reduction_mask`).

Random numbers come from the generators the reference takes them from, in its order: Python's
`random` for "simple", torch's for "random" and "shuffle". So the same seeds choose the same
tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fastclip.errors import EnvironmentProblem, UserError
from fastclip.optional import require

# (ids of a caption, how many to keep) -> the ids kept
ChooseIds = Callable[[list[int], int], list[int]]
_NLTK = ("nltk", "reduction_mask 'syntax'", "pip install nltk")


def choose_ids(name: str) -> ChooseIds:
    """The choice called `name` ("simple", "random", "shuffle"); UserError for another."""
    choices: dict[str, ChooseIds] = {
        "simple": _window,
        "random": partial(_subset, shuffle=False),
        "shuffle": partial(_subset, shuffle=True),
    }
    if name not in choices:
        raise UserError(f"reduction_mask {name!r}: choose simple, random, shuffle or syntax")
    return choices[name]


def _window(ids: list[int], keep: int) -> list[int]:
    start = random.randint(0, len(ids) - keep)
    return ids[start : start + keep]


def _subset(ids: list[int], keep: int, *, shuffle: bool) -> list[int]:
    chosen = torch.randperm(len(ids))[:keep]
    if not shuffle:
        chosen = chosen.msort()
    return [ids[i] for i in chosen.tolist()]


def require_syntax() -> None:
    """EnvironmentProblem unless NLTK, which `most_telling_words` needs, is installed."""
    require(*_NLTK)


def most_telling_words(text: str, keep: int) -> str:
    """At most `keep` words of the raw `text` in their order: nouns first, then adjectives, verbs,
    the rest.

    Raises EnvironmentProblem where NLTK's data is missing: it is not downloaded from inside a
    training run.
    """
    nltk = require(*_NLTK)
    try:
        words = nltk.tokenize.word_tokenize(text)
        tags = [tag for _, tag in nltk.pos_tag(words)]
    except LookupError as error:
        raise EnvironmentProblem(
            "reduction_mask 'syntax' needs NLTK's data: python -m nltk.downloader punkt punkt_tab "
            "averaged_perceptron_tagger averaged_perceptron_tagger_eng"
        ) from error
    order = {"NN": 1, "JJ": 2, "VB": 3}
    # NumPy's default sort, as the reference's: it is not stable, and ties decide which words stay.
    ranked = np.argsort(np.array([order.get(tag[:2], 4) for tag in tags]))
    return " ".join(words[i] for i in sorted(ranked[:keep]))

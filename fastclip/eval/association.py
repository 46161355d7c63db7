"""WinoGAViL: which of the candidate pictures go with a cue word (Bitton et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

_VOWELS = "aeiou"


class Association(NamedTuple):
    cue: str
    is_associated: Tensor  # bool (candidates,)


def cue_sentence(cue: str) -> str:
    """What the text tower is asked: "A cat", "An owl"."""
    word = cue.lower()
    return f"An {word}" if word[:1] in _VOWELS else f"A {word}"


def jaccard(scores: Tensor, is_associated: Tensor) -> float:
    """|chosen ∩ right| / |chosen ∪ right|, where the best-scoring candidates are chosen, as many as
    are right. Of equal scores the later candidate is taken, as a stable rising sort has it."""
    wanted = int(is_associated.sum())
    chosen = scores.argsort(stable=True)[len(scores) - wanted :]
    common = int(is_associated[chosen].sum())
    return common / (2 * wanted - common)


def association_metrics(scores: Sequence[float], sizes: Sequence[int]) -> dict[str, float | None]:
    """Means of Jaccard indices, over all and by number of candidates; None for a size that does not
    occur."""

    def mean(sizes_wanted: Sequence[int]) -> float | None:
        chosen = [s for s, n in zip(scores, sizes, strict=True) if n in sizes_wanted]
        return sum(chosen) / len(chosen) if chosen else None

    occurring = sorted(set(sizes))
    return {
        "avg_jaccard_score": mean(occurring),
        **{f"jaccard_score_{n}": mean([n]) for n in (5, 6, 10, 12)},
        "jaccard_score_5-6": mean([n for n in occurring if n <= 6]),
        "jaccard_score_10-12": mean([n for n in occurring if n >= 10]),
    }

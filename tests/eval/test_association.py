"""WinoGAViL's figures, on numbers small enough to check in one's head."""

from __future__ import annotations

import pytest
import torch

from fastclip.eval.association import association_metrics, cue_sentence, jaccard


@pytest.mark.parametrize(
    ("scores", "right", "expected"),
    [
        ([0.9, 0.1, 0.8, 0.2, 0.3], [1, 0, 1, 0, 0], 1.0),
        ([0.9, 0.1, 0.8, 0.2, 0.3], [1, 1, 0, 0, 0], 1 / 3),  # {0, 2} and {0, 1}: one of three
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 0, 0, 0], 0.0),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1, 1], 1.0),  # of equal scores the later ones
    ],
)
def test_jaccard(scores: list[float], right: list[int], expected: float):
    got = jaccard(torch.tensor(scores), torch.tensor(right) == 1)
    assert got == pytest.approx(expected)


def test_means_by_number_of_candidates():
    got = association_metrics([1.0, 0.5, 0.25, 0.0, 0.75], [5, 6, 10, 12, 12])
    assert got == {
        "avg_jaccard_score": 0.5,
        "jaccard_score_5": 1.0,
        "jaccard_score_6": 0.5,
        "jaccard_score_10": 0.25,
        "jaccard_score_12": 0.375,
        "jaccard_score_5-6": 0.75,
        "jaccard_score_10-12": pytest.approx(1 / 3),
    }
    assert association_metrics([1.0], [5])["jaccard_score_10-12"] is None


def test_cues_become_sentences():
    assert [cue_sentence(cue) for cue in ("Owl", "cat")] == ["An owl", "A cat"]

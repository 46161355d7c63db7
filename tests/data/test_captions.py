"""Cleaning promises: the reference's text exactly, whether or not ftfy ran."""

from __future__ import annotations

import itertools
import random

import ftfy
import pytest
from open_clip.tokenizer import get_clean_fn

from fastclip.data import captions
from fastclip.data.captions import check_clean, clean_caption, cleaned_words, opening_words
from fastclip.errors import UserError
from tests.data.unicode_text import HTML, MOJIBAKE, WHITESPACE, random_text

KINDS = ["lower", "whitespace", "canonicalize"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_ascii_string_of_one_and_two_characters(kind):
    reference = get_clean_fn(kind)
    ascii_ = [chr(c) for c in range(128)]
    for text in ["", *ascii_, *map("".join, itertools.product(ascii_, repeat=2))]:
        assert clean_caption(text, kind) == reference(text), repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_known_hard_cases(kind):
    reference = get_clean_fn(kind)
    for text in [*MOJIBAKE, *HTML, *map(" ".join, itertools.permutations(HTML[:8], 2))]:
        assert clean_caption(text, kind) == reference(text), repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_random_text(kind, record_property):
    seed = random.randrange(2**32)
    record_property("seed", seed)
    rng = random.Random(seed)
    reference = get_clean_fn(kind)
    for _ in range(1000):
        text = random_text(rng, rng.randrange(1, 12))
        assert clean_caption(text, kind) == reference(text), (seed, text)


@pytest.mark.parametrize("space", WHITESPACE)
def test_final_sigma_beside_every_whitespace(space):
    reference = get_clean_fn("lower")
    for text in [f"ΑΣ{space}Α", f"Α{space}ΣΑ", f"ΑΣ.{space}.Α", f"ΑΣ{space}", f"Σ{space}Σ\u0301"]:
        assert clean_caption(text, "lower") == reference(text), repr(text)


def test_ftfy_is_skipped_only_where_it_changes_nothing(monkeypatch):
    """Code points between letters: whatever skips ftfy is what ftfy leaves alone."""
    called = False
    real = ftfy.fix_text

    def watched(text: str) -> str:
        nonlocal called
        called = True
        return real(text)

    monkeypatch.setattr(captions.ftfy, "fix_text", watched)
    skipped = 0
    for c in itertools.chain(range(0x3400), range(0xA000, 0x11000), range(0x1D000, 0x1F000)):
        called = False
        captions.unmangle(f"a{chr(c)}b{chr(c)}")
        if not called:
            skipped += 1
            assert real(f"a{chr(c)}b{chr(c)}") == f"a{chr(c)}b{chr(c)}", hex(c)
    assert skipped > 30_000  # else this test says nothing


def test_plain_captions_never_reach_ftfy(monkeypatch):
    monkeypatch.setattr(captions.ftfy, "fix_text", None)
    for text in ["A red bicycle, two wheels!", "black & white", "café au lait", "日本の庭"]:
        assert clean_caption(text, "whitespace") == text


@pytest.mark.parametrize("kind", KINDS)
def test_opening_words_are_the_first_words(kind, record_property, monkeypatch):
    """Also with ftfy's million set to seven, where it breaks words, entities and mojibake apart."""
    seed = random.randrange(2**32)
    record_property("seed", seed)
    rng = random.Random(seed)
    short = ftfy.TextFixerConfig(max_decode_length=7, explain=False)
    real = ftfy.fix_text
    monkeypatch.setattr(captions, "_SEGMENT", 7)
    monkeypatch.setattr(captions.ftfy, "fix_text", lambda text: real(text, short))
    proper = 0
    for _ in range(1000):
        text = random_text(rng, rng.randrange(4, 40))
        words = cleaned_words(text, kind)
        first = opening_words(text, kind, length=rng.randrange(1, 60))
        assert words[: len(first)] == first, (seed, text)
        proper += 0 < len(first) < len(words)
    assert proper > 100


def test_unknown_kind_and_bytes():
    with pytest.raises(UserError, match="choose lower, whitespace, canonicalize"):
        check_clean("upper")
    with pytest.raises(TypeError, match="must be a str, got bytes"):
        clean_caption(b"bytes", "lower")

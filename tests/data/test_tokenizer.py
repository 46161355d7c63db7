"""CLIP's tokenizer: the reference's ids for any text, in a worker, pickled, cut, and faster."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import statistics
import sys
import tarfile
import time
import types
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

import fastclip
from fastclip.config.tokenizers import TokenizerSpec
from fastclip.data import clip_bpe
from fastclip.data import tokenizer as tokenizer_module
from fastclip.data.clip_bpe import ClipBpe, clip_merges
from fastclip.data.tokenizer import ClipTokenizer, build_tokenizer
from fastclip.errors import EnvironmentProblem, UserError
from tests.data.unicode_text import CONTRACTIONS, HTML, MOJIBAKE, SPECIAL, WORDS, random_text


@pytest.fixture(scope="module")
def ours() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    return SimpleTokenizer()


def demo_captions() -> list[str]:
    captions = []
    for shard in sorted((Path(fastclip.__file__).parent / "demo").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".txt") and file is not None:
                    captions.append(file.read().decode("utf-8"))
    return captions


def same_on_random_text(ours, reference, count: int, longest: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(count):
        text = random_text(rng, rng.randrange(longest))
        assert ours.encode(text) == reference.encode(text), (seed, text)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_on_random_text(clean):
    same_on_random_text(ClipTokenizer(clean=clean), SimpleTokenizer(clean=clean), 3_400, 8)


@pytest.mark.slow
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_on_a_hundred_thousand_random_texts(clean):
    same_on_random_text(ClipTokenizer(clean=clean), SimpleTokenizer(clean=clean), 34_000, 30)


def same_on_code_points(code_points: range, clean: str) -> None:
    """Each code point alone, in a word, after an apostrophe, beside a digit."""
    ours, reference = ClipTokenizer(clean=clean), SimpleTokenizer(clean=clean)
    for start in code_points:
        block = [chr(start + i * code_points.step // 8) for i in range(8)]
        text = " ".join(f"{c} a{c}'{c} 7{c}" for c in block)
        assert ours.encode(text) == reference.encode(text), hex(start)


@pytest.mark.parametrize("clean", ["lower", "whitespace"])
def test_ids_on_the_first_code_points(clean):
    same_on_code_points(range(0, 0x3000, 8), clean)


@pytest.mark.slow
@pytest.mark.parametrize("clean", ["lower", "whitespace"])
def test_ids_on_every_code_point(clean):
    same_on_code_points(range(0, 0x110000, 8), clean)


def test_ids_on_known_hard_cases(ours, reference):
    whitespace = ClipTokenizer(clean="whitespace"), SimpleTokenizer(clean="whitespace")
    for text in ["", " ", *MOJIBAKE, *HTML, *SPECIAL, *CONTRACTIONS, *WORDS, *map(str, range(99))]:
        assert ours.encode(text) == reference.encode(text), repr(text)
        assert whitespace[0].encode(text) == whitespace[1].encode(text), repr(text)


def test_rows_on_the_demo_captions(ours, reference):
    captions = demo_captions()
    assert torch.equal(ours(captions), reference(captions))
    assert ours.encode_many(captions) == [reference.encode(c) for c in captions]
    assert len(captions) > 500


@pytest.mark.parametrize("length", [None, 2, 3, 8, 32, 200])
def test_rows_are_padded_and_cut_as_the_reference_does(ours, reference, length):
    texts = [
        "",
        "a cat",
        "one two three four five six",
        "word " * 300,
        "<end_of_text> a",
        "a" * 500,
    ]
    rows = ours(texts, context_length=length)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, reference(texts, context_length=length))
    assert torch.equal(ours("a cat", length), reference("a cat", length))
    assert ours([], length).shape == (0, length or 77)


LONG = {
    "words": "a small red barn " * 3_000,
    "one word": "ab" * 30_000,
    "one word of many bytes": "日本" * 15_000,
    "lines": "naïve “quoted” line &amp; more\n" * 1_500,
    "mojibake": "cafÃ© " * 8_000,
    "entities": "&amp;" * 9_000,
    "blank": " " * 40_000 + "word",
    "sigma": "ΑΣ" * 20_000 + " ΑΣ",
}


@pytest.mark.parametrize("name", LONG)
def test_long_captions(ours, reference, name):
    """Past `LONG_CAPTION` only the beginning is cleaned and merged; the row must not tell."""
    assert len(LONG[name]) > tokenizer_module.LONG_CAPTION
    assert torch.equal(ours(LONG[name]), reference(LONG[name]))


@pytest.mark.parametrize("kind", ["same", "few", "many"])
def test_first_ids_of_a_word_cut_short(kind):
    """With a limit, words are cut beyond what can reach the first ids."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    bpe = ClipBpe()
    alphabet = {"same": "a", "few": "aeinst", "many": "abcdefghijklmnopqrstuvwxyz"}[kind]
    word = "".join(rng.choices(alphabet, k=200_000))
    full = bpe.encode(word)
    for limit in (1, 7, 75):
        some = bpe.encode(word, limit)
        assert some[:limit] == full[:limit]
        assert len(some) < len(full) or kind == "same"


def test_a_word_is_not_cut_where_its_end_decides_its_beginning(monkeypatch):
    """Merges made so that the first piece depends on how far away the last character is."""
    chain = [chr(c) for c in range(ord("!"), ord("~"))]
    merges = list(itertools.pairwise(chain))[::-1]
    monkeypatch.setattr(clip_bpe, "clip_merges", lambda: merges)
    bpe = ClipBpe()
    firsts = set()
    for length in range(2, len(chain)):
        word = "".join(chain[:length])
        expected = bpe._word_ids(word, None)
        firsts.add(expected[0])
        for limit in (1, 2, 3):
            assert bpe._word_ids(word, limit)[:limit] == expected[:limit], length
    assert len(firsts) == 2  # alone, or joined to the second


def test_merging_one_by_one_or_all_at_once_is_the_same():
    """What clip_bpe rests on: one merge per piece, after the merges that make its parts."""
    made: dict[str, int] = {}
    for rank, (left, right) in enumerate(clip_merges()):
        for part in (left, right):
            assert len(part.removesuffix("</w>")) == 1 or made[part] < rank
        assert left + right not in made
        made[left + right] = rank
    assert len(made) == 48_894


def test_special_tokens_and_sizes(ours, reference):
    assert (ours.vocab_size, ours.sot_token_id, ours.eot_token_id) == (49_408, 49_406, 49_407)
    assert ours.all_special_ids == reference.all_special_ids
    assert ours.context_length == reference.context_length == 77
    assert ours.encode("<END_of_text>") == [49_407]


@pytest.mark.parametrize("extra", [["<mask>"], ["<a b>", "[MASK]"], ["dog</w>"], ["<a.*z>"]])
@pytest.mark.parametrize("clean", ["lower", "whitespace"])
def test_additional_special_tokens(extra, clean):
    ours = ClipTokenizer(additional_special_tokens=extra, clean=clean)
    reference = SimpleTokenizer(additional_special_tokens=extra, clean=clean)
    assert ours.vocab_size == reference.vocab_size
    assert ours.all_special_ids == reference.all_special_ids
    for text in [
        "a <mask> b",
        "<MASK>x<mask>",
        "mask [MASK] <a b> <A  b>",
        "my dog</w> dog",
        "<a" + " b" * 9_000 + "\n z> c",
        "cat " * 99,
    ]:
        assert ours.encode(text) == reference.encode(text), text
        assert torch.equal(ours(text), reference(text))


def test_decode(ours, reference):
    for text in ["A photo of a cat, 42!", "naïve 日本 <end_of_text>", ""]:
        ids = ours(text)[0].tolist()
        assert ours.decode(ids) == reference.decode(ids)
        assert ours.decode(torch.tensor(ids)) == reference.decode(ids)
    with pytest.raises(ValueError, match="49408 is not in the vocabulary"):
        ours.decode([49_408])


@pytest.mark.parametrize("name", ["simple", "random", "shuffle"])
def test_reductions_draw_as_the_reference(name):
    seed = random.randrange(2**32)
    ours, reference = ClipTokenizer(reduction_mask=name), SimpleTokenizer(reduction_mask=name)
    texts = ["short", "a b c d e f g h i j k l m n o p q r s t " * 9, "two words", "x y z " * 40]
    rows = []
    for tokenizer in (ours, reference):
        random.seed(seed)
        torch.manual_seed(seed)
        rows.append(torch.stack([tokenizer(texts, context_length=12) for _ in range(5)]))
    assert torch.equal(rows[0], rows[1]), seed
    assert not torch.equal(rows[0][0], rows[0][1])


def test_reduction_by_syntax(monkeypatch):
    """With a stand-in for NLTK, whose data needs the network: same words kept, ties included."""
    tags = ["NN", "NNS", "JJ", "VBZ", "DT", "IN"]
    nltk = types.ModuleType("nltk")
    nltk.tokenize = types.SimpleNamespace(word_tokenize=str.split)
    nltk.pos_tag = lambda words: [(word, tags[len(word) % 6]) for word in words]
    nltk.download = lambda _: None
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    ours, reference = (
        ClipTokenizer(reduction_mask="syntax"),
        SimpleTokenizer(reduction_mask="syntax"),
    )
    for _ in range(50):
        text = " ".join("x" * rng.randrange(1, 9) for _ in range(rng.randrange(1, 60)))
        assert torch.equal(ours(text, 12), reference(text, 12)), (seed, text)

    def no_data(_: str) -> None:
        raise LookupError("punkt")

    nltk.tokenize.word_tokenize = no_data
    with pytest.raises(EnvironmentProblem, match=r"nltk\.downloader punkt"):
        ours("a b")
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(EnvironmentProblem, match="pip install nltk"):
        ClipTokenizer(reduction_mask="syntax")


def test_forgetting_words_changes_nothing(monkeypatch, reference):
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED_WORDS", 3)
    ours = ClipTokenizer()
    for text in ["a b c d e f", "f e d c b a", "a a g a"] * 2:
        assert ours.encode(text) == reference.encode(text)
        assert len(ours._ids_of_word) <= 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_worker(ours, method):
    loader = torch.utils.data.DataLoader(
        ["a cat", "naïve 日本 &amp; more"], batch_size=None, num_workers=1, collate_fn=ours,
        multiprocessing_context=multiprocessing.get_context(method),
    )  # fmt: skip
    assert torch.equal(torch.cat(list(loader)), ours(["a cat", "naïve 日本 &amp; more"]))


def test_pickle_keeps_the_arguments():
    ours = ClipTokenizer(12, "whitespace", ["<mask>"], "simple")
    again = pickle.loads(pickle.dumps(ours))
    assert len(pickle.dumps(ours)) < 1_000  # the vocabulary stays in its file
    assert (again.context_length, again.vocab_size) == (12, 49_409)
    assert again.encode("A <mask> B") == ours.encode("A <mask> B")


def test_environment_is_left_alone():
    before = dict(os.environ)
    build_tokenizer(TokenizerSpec())(["a", "b"])
    assert dict(os.environ) == before


def test_build_tokenizer_takes_the_spec():
    spec = TokenizerSpec(context_length=32, kwargs={"clean": "canonicalize"})
    expected = SimpleTokenizer(context_length=32, clean="canonicalize")
    assert torch.equal(build_tokenizer(spec)("A cat, a_dog!"), expected("A cat, a_dog!"))


def test_bad_arguments():
    with pytest.raises(UserError, match="takes no 'lowercase'"):
        build_tokenizer(TokenizerSpec(kwargs={"lowercase": True}))
    with pytest.raises(UserError, match="clean 'upper' is unknown"):
        build_tokenizer(TokenizerSpec(kwargs={"clean": "upper"}))
    with pytest.raises(UserError, match="choose simple, random, shuffle or syntax"):
        build_tokenizer(TokenizerSpec(kwargs={"reduction_mask": "half"}))
    with pytest.raises(UserError, match="regular expressions"):
        ClipTokenizer(additional_special_tokens=["("])
    with pytest.raises(UserError, match="too short"):
        ClipTokenizer()("a cat", context_length=1)
    with pytest.raises(TypeError, match="must be a str, got float"):
        ClipTokenizer()([float("nan")])


def test_speed_beside_the_reference(ours, reference):
    """Promise: 5 times the reference's speed on one core, cleaning included."""
    captions = demo_captions()[:700]

    def seconds(tokenizer) -> float:
        start = time.perf_counter()
        for caption in captions:
            tokenizer(caption)
        return time.perf_counter() - start

    seconds(ours), seconds(reference)
    ratios = [seconds(reference) / seconds(ours) for _ in range(5)]
    print(f"ratios {[round(r, 1) for r in ratios]}")
    assert statistics.median(ratios) >= 5

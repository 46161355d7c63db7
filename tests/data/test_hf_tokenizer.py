"""Tokenizers from a local tokenizer.json: the rows the reference's HFTokenizer makes from it."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
from open_clip.tokenizer import get_clean_fn
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fastclip.config.tokenizers import TokenizerSpec
from fastclip.data.hf_tokenizer import OpenClipTokenizer
from fastclip.data.tokenizer import build_tokenizer
from fastclip.errors import DataError, EnvironmentProblem, InputMissing, UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "a", "cat", "dog", "##s", "!", "A", "_"]
TEXTS = ["a cat!", "A  dogs &amp; cats", "", "cat " * 50, "a [SEP] cat", "a_cat", "unknown"]
BERT = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": {"content": "[CLS]"}}


@pytest.fixture
def rust() -> Tokenizer:
    """Word pieces, BERT's marks."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture
def folder(rust, tmp_path):
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(BERT))
    return tmp_path


def expected(rust: Tokenizer, clean: str, length: int, pad_id: int = 0, side: str = "right"):
    """What transformers does for `padding="max_length", truncation=True`, by the library itself."""
    rust.enable_truncation(length)
    rust.enable_padding(length=length, pad_id=pad_id, direction=side)
    cleaned = [get_clean_fn(clean)(text) for text in TEXTS]
    return torch.tensor([rust.encode(text).ids for text in cleaned])


@pytest.mark.parametrize("length", [4, 16])
@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_rows(folder, rust, clean, length):
    spec = TokenizerSpec(
        kind="hf", context_length=length, kwargs={"clean": clean}, file=str(folder)
    )
    tokenizer = build_tokenizer(spec)
    rows = tokenizer(TEXTS)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, expected(rust, clean, length))
    assert torch.equal(tokenizer(TEXTS[0]), rows[:1])
    assert torch.equal(tokenizer(TEXTS, 7), expected(rust, clean, 7))


def test_defaults_and_the_file_itself_for_a_path(folder, rust):
    spec = TokenizerSpec(kind="hf", context_length=9, file=str(folder / "tokenizer.json"))
    assert torch.equal(build_tokenizer(spec)(TEXTS), expected(rust, "whitespace", 9))


def test_separators_are_stripped_to_zero(folder, rust):
    spec = TokenizerSpec(
        kind="hf", context_length=9, kwargs={"strip_sep_token": True}, file=str(folder)
    )
    rows = expected(rust, "whitespace", 9)
    assert (rows == 3).any()
    assert torch.equal(build_tokenizer(spec)(TEXTS), rows.masked_fill(rows == 3, 0))


def test_clips_mode(folder):
    """Begin, at most length - 3 ids, end, padding, and the class token in the last place."""
    settings = {**BERT, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    spec = TokenizerSpec(kind="hf", context_length=7, mode="clips", file=str(folder))
    rows = build_tokenizer(spec)(["a cat", "a cat a dog a cat a dog"])
    assert rows.tolist() == [[4, 6, 7, 5, 10, 10, 2], [4, 6, 7, 6, 8, 5, 2]]


@pytest.mark.parametrize(("variant", "pad_id"), [("c4-en", 1), ("mc4", 1), ("gemma", 0)])
def test_siglip_pads_as_its_variant_does(folder, rust, variant, pad_id):
    spec = TokenizerSpec(
        kind="siglip", hf_name=variant, context_length=16, file=str(folder), kwargs={}
    )
    assert torch.equal(build_tokenizer(spec)(TEXTS), expected(rust, "canonicalize", 16, pad_id))


def test_padding_on_the_left_where_the_settings_say_so(folder, rust):
    (folder / "tokenizer_config.json").write_text(json.dumps({**BERT, "padding_side": "left"}))
    spec = TokenizerSpec(kind="hf", context_length=16, file=str(folder))
    assert torch.equal(build_tokenizer(spec)(TEXTS), expected(rust, "whitespace", 16, side="left"))


def test_what_a_saved_file_pads_and_cuts_is_not_taken_over(folder, rust):
    """transformers saves the last call's padding and cut into the file; neither counts here."""
    rows = expected(rust, "whitespace", 16)
    rust.enable_truncation(3)
    rust.enable_padding(length=3)
    rust.save(str(folder / "tokenizer.json"))
    spec = TokenizerSpec(kind="hf", context_length=16, file=str(folder))
    assert torch.equal(build_tokenizer(spec)(TEXTS), rows)


def test_encode_decode_sizes_and_pickle(folder):
    tokenizer = build_tokenizer(TokenizerSpec(kind="hf", context_length=5, file=str(folder)))
    assert tokenizer.encode("a cat " * 9) == [6, 7] * 9
    assert tokenizer.encode_many(["a", "cats"]) == [[6], [7, 9]]
    assert tokenizer.decode([2, 6, 7, 3]) == "[CLS] a cat"  # only [SEP] is special in this file
    assert tokenizer.vocab_size == len(WORDS)
    assert (tokenizer.sot_token_id, tokenizer.eot_token_id) == (2, 3)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(again(TEXTS), tokenizer(TEXTS))


def test_usual_names_where_no_settings_lie_beside(folder, rust):
    (folder / "tokenizer_config.json").unlink()
    spec = TokenizerSpec(
        kind="hf", context_length=9, kwargs={"strip_sep_token": True}, file=str(folder)
    )
    rows = expected(rust, "whitespace", 9)
    assert torch.equal(build_tokenizer(spec)(TEXTS), rows.masked_fill(rows == 3, 0))


def test_bad_files_and_arguments(folder, tmp_path):
    def build(file, **spec):
        return build_tokenizer(TokenizerSpec(kind="hf", file=str(file), **spec))

    with pytest.raises(InputMissing, match=r"nowhere: no such file"):
        build(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputMissing, match=r"without tokenizer\.json"):
        build(empty)
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        build(empty)
    with pytest.raises(UserError, match="not 'language'"):
        build(folder, kwargs={"language": "eng_Latn"})
    with pytest.raises(UserError, match="clips is the only one"):
        build(folder, mode="claps")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read"):
        build(folder)
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    with pytest.raises(DataError, match="has no sep_token"):
        build(folder, kwargs={"strip_sep_token": True})


@pytest.mark.parametrize("missing", ["transformers", "open_clip"])
@pytest.mark.parametrize("kind", ["hf", "siglip"])
def test_without_file_and_without_the_extra(monkeypatch, missing, kind):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "open_clip":
        monkeypatch.setitem(sys.modules, "transformers", sys)
    spec = TokenizerSpec(kind=kind, hf_name="bert-base-uncased")
    with pytest.raises(EnvironmentProblem) as caught:
        build_tokenizer(spec)
    line = str(caught.value)
    assert "bert-base-uncased" in line
    assert "--tokenizer PATH" in line
    assert "fastclip[openclip]" in line
    assert "\n" not in line


def test_the_extra_gets_the_reference_arguments(monkeypatch):
    """With a stand-in for transformers: what reaches it is what the reference passes on."""
    import open_clip.tokenizer

    made = {}

    class Inner:
        bos_token_id, cls_token_id, eos_token_id, sep_token_id = None, 2, None, 3

        def __len__(self):
            return 13

    class FromReference:
        def __init__(self, name, **kwargs):
            made.update(name=name, **kwargs)
            self.tokenizer = Inner()

        def __call__(self, texts, context_length):
            return torch.tensor([[1, 2, 3]])

    monkeypatch.setitem(sys.modules, "transformers", sys)
    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", FromReference)
    tokenizer = OpenClipTokenizer(
        TokenizerSpec(
            kind="hf", hf_name="some/name", context_length=5, mode="clips", cache_dir="here",
            kwargs={"clean": "canonicalize", "strip_sep_token": True},
        )
    )  # fmt: skip
    assert made == {
        "name": "some/name", "context_length": 5, "tokenizer_mode": "clips", "cache_dir": "here",
        "clean": "canonicalize", "strip_sep_token": True,
    }  # fmt: skip
    assert (tokenizer.vocab_size, tokenizer.sot_token_id, tokenizer.eot_token_id) == (13, 2, 3)
    assert tokenizer("a").tolist() == [[1, 2, 3]]

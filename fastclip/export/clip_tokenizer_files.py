"""CLIP's tokenizer as the files that transformers' CLIPTokenizer reads.

Same ids as ours for a text that our cleaning leaves as it is: the files can say lower case, NFC and
single blanks, but not that HTML entities and broken encodings are mended, which is for the caller. Rows
are padded with the end mark, as transformers' own CLIP models are, where ours have zeros: naming the
token of id 0, "!", for padding would turn every "!" of a text into it. Causal attention and a pooled
first end mark read neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import RobertaProcessing

from fastclip.data.clip_bpe import clip_merges, clip_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"  # what transformers calls CLIP's marks
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MARKS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def write_clip_tokenizer(folder: Path, context_length: int) -> None:
    """tokenizer.json, vocab.json, merges.txt and their settings; raises OSError."""
    vocabulary = clip_vocabulary((START, END))
    _rust_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    _write_json(folder / "vocab.json", vocabulary)
    merges = "".join(f"{left} {right}\n" for left, right in clip_merges())
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", _MARKS)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "do_lower_case": True,
        **_MARKS,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _rust_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            clip_merges(),
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(mark, normalized=True, special=True) for mark in (START, END)]
    )
    tokenizer.post_processor = RobertaProcessing(
        (END, vocabulary[END]),
        (START, vocabulary[START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return tokenizer


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

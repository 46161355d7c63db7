"""Captions to token ids: what every tokenizer offers, CLIP's own, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastclip.config.tokenizers import TokenizerSpec
from fastclip.data.captions import LONG_CAPTION, check_clean, cleaned_words, opening_words
from fastclip.data.clip_bpe import ClipBpe
from fastclip.data.reduction import choose_ids, most_telling_words, require_syntax
from fastclip.errors import UserError

# Words of a caption remembered with their ids, per process: about 15 MB when full.
_REMEMBERED_WORDS = 65_536
_LONGEST_REMEMBERED = 48


class Tokenizer(Protocol):
    """What the data path and users may rely on. Every tokenizer pickles and survives a fork."""

    context_length: int
    vocab_size: int

    @property
    def sot_token_id(self) -> int | None:
        """The id a row starts with; None where the tokenizer has no such token."""
        ...

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends the text in a row; None where the tokenizer has no such token."""
        ...

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 (n, context_length), padded, cut where too long; cleaning included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned text: no start or end mark, no padding, not cut."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        ...


class ClipTokenizer:
    """CLIP's tokenizer: the reference's `SimpleTokenizer`, same ids for any text.

    A token never reaches across whitespace, so ids are remembered for each whitespace-separated
    word of the cleaned caption; only a word not seen before is split and merged.
    """

    def __init__(
        self,
        context_length: int = 77,
        clean: str = "lower",
        additional_special_tokens: Sequence[str] | None = None,
        reduction_mask: str = "",
    ) -> None:
        self._arguments = (context_length, clean, additional_special_tokens, reduction_mask)
        self._clean = check_clean(clean)
        self._by_syntax = reduction_mask == "syntax"
        if self._by_syntax:
            require_syntax()
        choose = reduction_mask and not self._by_syntax
        self._choose = choose_ids(reduction_mask) if choose else None
        self._bpe = ClipBpe(additional_special_tokens or ())
        # A special token of the caller's may hold whitespace, or match it: then the caption is one
        # word.
        self._whole = bool(additional_special_tokens)
        self._ids_of_word: dict[str, list[int]] = {}
        self.context_length = context_length
        self.vocab_size = self._bpe.vocab_size
        self.sot_token_id = self._bpe.sot_token_id
        self.eot_token_id = self._bpe.eot_token_id
        self.all_special_ids = list(self._bpe.special_ids.values())

    def __reduce__(self) -> tuple[type[ClipTokenizer], tuple[Any, ...]]:
        return ClipTokenizer, self._arguments

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned `text`: no start or end mark, no padding, not cut."""
        return self._encode_words(cleaned_words(text, self._clean), None)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, a blank after every word; ValueError for an unknown id."""
        return self._bpe.decode(ids)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 (n, context_length): start mark, ids (cut where too long), end mark, zeros."""
        if isinstance(texts, str):
            texts = [texts]
        length = check_context_length(context_length or self.context_length)
        if self._by_syntax:
            texts = [most_telling_words(text, length - 2) for text in texts]
        room = length - 2
        # Rows are filled through NumPy: making them as torch tensors takes longer than all else
        # here.
        result = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in zip(result, texts, strict=True):
            if self._choose is None:
                ids = self._encode_opening(text, length - 1)[:room]
            else:
                ids = self.encode(text)
                if len(ids) > room:
                    ids = self._choose(ids, room)
            row[: len(ids) + 2] = [self.sot_token_id, *ids, self.eot_token_id]
        return torch.from_numpy(result)

    def _encode_opening(self, text: str, limit: int) -> list[int]:
        """The first `limit` ids of `text`, or all if there are fewer; a few more may follow."""
        if isinstance(text, str) and len(text) > LONG_CAPTION and not self._whole:
            ids = self._encode_words(opening_words(text, self._clean), limit)
            if len(ids) >= limit:
                return ids
        return self._encode_words(cleaned_words(text, self._clean), limit)

    def _encode_words(self, words: list[str], limit: int | None) -> list[int]:
        if self._whole:
            return self._bpe.encode(" ".join(words), limit)
        remembered = self._ids_of_word
        ids: list[int] = []
        for word in words:
            known = remembered.get(word)
            if known is not None:
                ids += known
            elif len(word) <= _LONGEST_REMEMBERED:
                if len(remembered) >= _REMEMBERED_WORDS:
                    remembered.clear()
                remembered[word] = new = self._bpe.encode(word)
                ids += new
            else:
                ids += self._bpe.encode(word, limit)
            if limit is not None and len(ids) >= limit:
                break
        return ids


def check_context_length(length: int) -> int:
    """`length` if it holds the start and the end mark, else UserError."""
    if length < 2:
        raise UserError(
            f"a context length of {length} is too short: a caption has two marks, give at least 2"
        )
    return length


def build_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer a model wants.

    Raises UserError for arguments no such tokenizer takes, InputMissing or DataError for
    `spec.file`, and EnvironmentProblem where the vocabulary is neither at hand nor to be had
    through the openclip extra.
    """
    if spec.kind == "clip" and spec.file is None:
        unknown = spec.kwargs.keys() - {"clean", "additional_special_tokens", "reduction_mask"}
        if unknown:
            raise UserError(f"tokenizer_kwargs: CLIP's tokenizer takes no {sorted(unknown)[0]!r}")
        return ClipTokenizer(spec.context_length, **spec.kwargs)
    from fastclip.data import hf_tokenizer

    return hf_tokenizer.build(spec)

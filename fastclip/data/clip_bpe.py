"""CLIP's byte-pair encoding: splitting with `regex` as the reference does, merging in Rust.

The pattern is the reference's and the engine is its engine, so every character of every Unicode
version that `regex` knows is split alike (the one inside `tokenizers` disagrees on 1,519 code
points). Merging is `tokenizers`' BPE; it takes the lowest-ranked pair first, leftmost first, one
at a time, while the reference merges all occurrences of that pair at once. Both give the same
pieces because a merge never makes a pair of lower rank: every piece has one merge that makes it,
listed before all merges that use it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import regex
from tokenizers.models import BPE

from fastclip.errors import UserError

MERGES_FILE = Path(__file__).with_name("assets") / "clip_bpe_merges.txt.gz"
START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"
_WORD_END = "</w>"
# Bytes that stand for themselves in the vocabulary; the others take the characters from 256 on, in
# order.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = _PRINTABLE + sorted(set(range(256)) - set(_PRINTABLE))
_CHAR_OF_BYTE = {b: chr(b if b in _PRINTABLE else 256 + i - 188) for i, b in enumerate(_BYTES)}
_BYTE_OF_CHAR = {char: byte for byte, char in _CHAR_OF_BYTE.items()}


@lru_cache(maxsize=1)
def clip_merges() -> list[tuple[str, str]]:
    """The 48,894 merges of CLIP's vocabulary, lowest rank first."""
    merges = []
    for line in gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").splitlines():
        left, right = line.split(" ")
        merges.append((left, right))
    return merges


def clip_vocabulary(specials: Iterable[str] = (START_OF_TEXT, END_OF_TEXT)) -> dict[str, int]:
    """Pieces and their ids: 256 bytes, the same at a word's end, the merges, then `specials`."""
    bytes_ = list(_CHAR_OF_BYTE.values())
    ends = [char + _WORD_END for char in bytes_]
    words = [*bytes_, *ends, *map("".join, clip_merges()), *specials]
    return {word: i for i, word in enumerate(words)}


class ClipBpe:
    """Text to ids and back; no cleaning, no start or end mark, no padding.

    `additional_special_tokens` take ids from 49,408 on. As in the reference they enter the pattern
    unescaped, as regular expressions, and match in either case; only the exact spelling becomes
    the special id.
    """

    def __init__(self, additional_special_tokens: Iterable[str] = ()) -> None:
        merges = clip_merges()
        specials = [START_OF_TEXT, END_OF_TEXT, *additional_special_tokens]
        vocabulary = clip_vocabulary(specials)
        self.vocab_size = len(vocabulary)
        self.sot_token_id = vocabulary[START_OF_TEXT]
        self.eot_token_id = vocabulary[END_OF_TEXT]
        self.special_ids = {special: vocabulary[special] for special in specials}
        self._words = {i: word for word, i in vocabulary.items()}
        self._bpe = BPE(vocabulary, merges, end_of_word_suffix=_WORD_END)
        self._longest = max(len(word) for word in vocabulary)
        self._reach = sum(len(right.removesuffix(_WORD_END)) for _, right in merges)
        try:
            self._pattern = regex.compile(
                "|".join(specials) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
                regex.IGNORECASE,
            )
        except regex.error as error:
            raise UserError(
                "additional_special_tokens are read as regular expressions, as the reference "
                f"does, and {specials[2:]} are none: {error}"
            ) from error

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of an already cleaned text; with `limit`, at least its first `limit` ids, or all."""
        ids: list[int] = []
        for match in self._pattern.finditer(text):
            ids.extend(self._word_ids(match.group(), limit))
            if limit is not None and len(ids) >= limit:
                break
        return ids

    def _word_ids(self, word: str, limit: int | None) -> list[int]:
        word = word.encode("utf-8").decode("latin-1").translate(_CHAR_OF_BYTE)
        special = self.special_ids.get(word)
        if special is not None:
            return [special]
        if limit is not None:
            # Going through the merges by rank, whether merge (left, right) happens at a place
            # depends on what stands up to len(right) bytes further right after the earlier merges.
            # So the first `limit` pieces, of at most `_longest` bytes each, depend on no byte
            # beyond the sum of all len(right).
            word = word[: limit * self._longest + self._reach]
        return [token.id for token in self._bpe.tokenize(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, a blank after every word; ValueError for an unknown id."""
        try:
            pieces = "".join(self._words[int(i)] for i in ids)
        except KeyError as error:
            raise ValueError(
                f"id {error} is not in the vocabulary of {self.vocab_size} tokens"
            ) from None
        raw = bytes(_BYTE_OF_CHAR[char] for char in pieces)
        return raw.decode("utf-8", errors="replace").replace(_WORD_END, " ")

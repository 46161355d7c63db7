"""Tokenizers that are not CLIP's: from a local tokenizer.json, or through the `openclip` extra.

A tokenizer.json is data: it is read by `tokenizers` (Rust), and no pickle or code beside it is
ever opened. Texts are encoded one by one, which starts no threads, so a loader worker may be
forked at any time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor

from fastclip import optional
from fastclip.config.tokenizers import TokenizerSpec
from fastclip.data.captions import Clean, check_clean, clean_caption
from fastclip.errors import DataError, EnvironmentProblem, InputMissing, UserError

if TYPE_CHECKING:
    from fastclip.data.tokenizer import Tokenizer

_SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")
# What well-known tokenizers call their marks, for a tokenizer.json that lies alone.
_USUAL_NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "sep_token": ("[SEP]", "</s>"),
    "cls_token": ("[CLS]", "<s>"),
    "bos_token": ("<s>", "<bos>", "[CLS]"),
    "eos_token": ("</s>", "<eos>", "[SEP]"),
}


def build(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer of `spec`, of kind "hf" or "siglip", or of any kind with a file."""
    if spec.file is not None:
        return JsonTokenizer(spec)
    return OpenClipTokenizer(spec)


def _find_json(path: Path) -> Path:
    path = path.expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputMissing(f"tokenizer {path}: no such file, or a folder without tokenizer.json")
    return file


def _read_settings(folder: Path) -> dict[str, Any]:
    """What the settings files that may lie beside a tokenizer.json say."""
    settings: dict[str, Any] = {}
    for name in _SETTINGS_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer {file}: cannot be read: {error}") from error
        if isinstance(read, dict):
            settings.update(read)
    return settings


class JsonTokenizer:
    """The reference's `HFTokenizer` (or `SigLipTokenizer`) over a local tokenizer.json."""

    def __init__(self, spec: TokenizerSpec) -> None:
        file = _find_json(Path(str(spec.file)))
        try:
            self._tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(f"tokenizer {file}: not a tokenizer.json: {error}") from error
        self._file = file
        self._settings = _read_settings(file.parent)
        kwargs = dict(spec.kwargs)
        default: Clean = "canonicalize" if spec.kind == "siglip" else "whitespace"
        self._clean = check_clean(kwargs.pop("clean", default))
        self._strip_sep = bool(kwargs.pop("strip_sep_token", False))
        if kwargs:
            raise UserError(
                f"tokenizer_kwargs: a tokenizer from a file takes clean and strip_sep_token, not "
                f"{sorted(kwargs)[0]!r}; the openclip extra takes it, without --tokenizer"
            )
        if spec.mode not in (None, "", "clips"):
            raise UserError(f"tokenizer_mode {spec.mode!r}: clips is the only one")
        self._clips = spec.mode == "clips"
        self._saved_padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.context_length = spec.context_length
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if spec.kind == "siglip":  # the reference sets both ids by hand
            self._pad_id = 0 if "gemma" in (spec.hf_name or "") else 1
            self.sot_token_id: int | None = None
            self.eot_token_id: int | None = 1
        else:
            self._pad_id = self._find_pad_id()
            self.sot_token_id = self._find_id("bos_token", "cls_token")
            self.eot_token_id = self._find_id("eos_token", "sep_token")
        if self._strip_sep:
            self._sep_id = self._need_id("sep_token")
        if self._clips:
            self._marks = tuple(self._need_id(n) for n in ("bos_token", "eos_token", "cls_token"))

    def _find_id(self, *names: str) -> int | None:
        """The id of the first of `names` that the settings name, else that has a usual name."""
        for name in names:
            token = self._settings.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if token and self._tokenizer.token_to_id(token) is not None:
                return self._tokenizer.token_to_id(token)
        if any(name in self._settings for name in _USUAL_NAMES):
            return None  # the settings are there and name none: the tokenizer has none
        for name in names:
            for token in _USUAL_NAMES[name]:
                if self._tokenizer.token_to_id(token) is not None:
                    return self._tokenizer.token_to_id(token)
        return None

    def _need_id(self, name: str) -> int:
        found = self._find_id(name)
        if found is None:
            raise DataError(
                f"tokenizer {self._file}: has no {name}; put its tokenizer_config.json beside it"
            )
        return found

    def _find_pad_id(self) -> int:
        found = self._find_id("pad_token")
        if found is None and self._saved_padding is not None:
            found = self._saved_padding["pad_id"]
        return self._need_id("pad_token") if found is None else found

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned `text`: no special tokens, no padding, not cut."""
        text = clean_caption(text, self._clean)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 (n, context_length), padded with the padding id, cut where too long."""
        if isinstance(texts, str):
            texts = [texts]
        length = context_length or self.context_length
        result = np.full((len(texts), length), 0 if self._clips else self._pad_id, dtype=np.int64)
        for row, text in zip(result, texts, strict=True):
            if self._clips:
                row[:] = self._clips_row(text, length)
            else:
                self._fill(row, text)
        if self._strip_sep and not self._clips:
            result[result == self._sep_id] = 0
        return torch.from_numpy(result)

    def save(self, folder: Path) -> None:
        """Copy tokenizer.json, and the settings that lie beside it, to `folder`."""
        shutil.copyfile(self._file, folder / "tokenizer.json")
        for name in _SETTINGS_FILES:
            if (self._file.parent / name).is_file():
                shutil.copyfile(self._file.parent / name, folder / name)

    def _fill(self, row: np.ndarray, text: str) -> None:
        encoding = self._tokenizer.encode(
            clean_caption(text, self._clean), add_special_tokens=False
        )
        room = max(0, len(row) - self._tokenizer.num_special_tokens_to_add(False))
        encoding.truncate(room, direction=self._settings.get("truncation_side", "right"))
        ids = self._tokenizer.post_process(encoding).ids[: len(row)]
        if self._settings.get("padding_side", "right") == "left":
            row[len(row) - len(ids) :] = ids
        else:
            row[: len(ids)] = ids

    def _clips_row(self, text: str, length: int) -> list[int]:
        """Begin mark, ids, end mark, padding, and the class token in the last place."""
        begin, end, cls = self._marks
        ids = [begin, *self.encode(text)[: length - 3], end]
        return [*ids, *[self._pad_id] * (length - 1 - len(ids)), cls]


class OpenClipTokenizer:
    """The reference's own tokenizer, which fetches its vocabulary: the `openclip` extra."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._clean: Clean = "canonicalize"
        try:
            if spec.kind == "siglip":
                self._inner = _open_clip_tokenizer().SigLipTokenizer(
                    spec.hf_name, context_length=spec.context_length
                )
            else:
                self._clean = check_clean(spec.kwargs.get("clean", "whitespace"))
                self._inner = _open_clip_tokenizer().HFTokenizer(
                    spec.hf_name,
                    context_length=spec.context_length,
                    cache_dir=spec.cache_dir,
                    tokenizer_mode=spec.mode,
                    **spec.kwargs,
                )
        except (ImportError, OSError, ValueError) as error:
            raise EnvironmentProblem(_how_to_get(spec, str(error))) from error
        except _NotThere as reason:
            raise EnvironmentProblem(_how_to_get(spec, str(reason))) from None
        self.context_length = spec.context_length
        self.vocab_size = len(self._inner.tokenizer)
        inner = self._inner.tokenizer
        self.sot_token_id: int | None = _first(inner.bos_token_id, inner.cls_token_id)
        self.eot_token_id: int | None = _first(inner.eos_token_id, inner.sep_token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned `text`: no special tokens, no padding, not cut."""
        text = clean_caption(text, self._clean)
        return list(self._inner.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._inner.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and its settings to `folder`."""
        self._inner.tokenizer.save_pretrained(folder)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 (n, context_length), as the reference's."""
        rows: Tensor = self._inner(texts, context_length)
        return rows


class _NotThere(Exception):
    """open_clip cannot be imported, for the reason in the message."""


def _open_clip_tokenizer() -> Any:
    for name in ("transformers", "open_clip", "open_clip.tokenizer"):
        module = optional.find(name)
        if isinstance(module, str):
            raise _NotThere(module)
    return module


def _how_to_get(spec: TokenizerSpec, reason: str) -> str:
    wanted = f"SigLIP's ({spec.hf_name})" if spec.kind == "siglip" else repr(spec.hf_name)
    reason = " ".join(reason.split())[:200]
    return (
        f"this model's tokenizer, {wanted}, is not bundled: give its tokenizer.json with "
        "--tokenizer PATH (tokenizer_path=), or install the extra that fetches it: "
        f"pip install 'fastclip[openclip]' ({reason})"
    )


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)

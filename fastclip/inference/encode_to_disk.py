"""Features of many pictures or texts, shard by shard to a folder; started again it goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, count, islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastclip.errors import CannotWrite, DataError, FastclipError, InputMissing, UserError
from fastclip.eval.zeroshot import Tokenizer
from fastclip.inference.pictures import Picture, preprocess_of, read_pixels
from fastclip.inference.zero_shot import encoder_of

logger = logging.getLogger(__name__)

Encode = Callable[[Iterator[Any]], Iterator[Tensor]]


class Encoded(NamedTuple):
    """What lies in the folder now."""

    rows: int
    unreadable: list[int]  # rows of NaN: pictures that are not there or do not decode
    shards_made: int  # by this call; the others were there


def encode_to_disk(
    items: Iterable[Picture] | Iterable[str],
    out: str | PathLike[str],
    *,
    model: nn.Module,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 64,
    shard_size: int = 65_536,
    workers: int = 4,
) -> Encoded:
    """Unit-norm float32 features of `items`, in their order, as `out/features-00000.safetensors`, ...

    With a `tokenizer` the items are texts, without one pictures: paths or Pillow pictures, read by
    `workers` threads while the model computes. Items may be any iterable; one batch is held at a time.
    A shard is written whole or not at all, and one that is there is not made again: its items are
    only compared (paths and texts by their spelling, other pictures by their number). A picture that
    cannot be read becomes a row of NaN and is counted.
    Raises DataError where a shard is of other items or another model, CannotWrite.
    """
    if min(batch_size, shard_size, workers) < 1:
        raise UserError("batch_size, shard_size and workers must be at least 1")
    folder = Path(out)
    encoder = encoder_of(model)
    rows, made, unreadable = 0, 0, list[int]()
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool, encoder.evaluating():
        if tokenizer is None:
            encode = _pictures_encoder(encoder.images, model, pool, batch_size)
            probe = encoder.images(torch.full((1, *preprocess_of(model).size, 3), 99).byte())
        else:
            encode = _texts_encoder(encoder.texts, tokenizer, batch_size)
            probe = encoder.texts(tokenizer(["a"]))
        for number in count():
            first = list(islice(remaining, 1))
            if not first:
                break
            shard_items = _Noted(chain(first, islice(remaining, shard_size - 1)))
            path = folder / f"features-{number:05}.safetensors"
            if path.exists():
                for _ in shard_items:
                    pass
                notes = _check_shard(path, shard_items, probe)
            else:
                features = torch.cat(list(encode(iter(shard_items))))
                notes = _notes(features, shard_items)
                _write_shard(path, features, probe, notes)
                made += 1
            unreadable += [rows + row for row in notes["unreadable"]]
            rows += notes["rows"]
    if unreadable:
        logger.warning("%d of %d pictures could not be read", len(unreadable), rows)
    return Encoded(rows, unreadable, made)


def read_features(folder: str | PathLike[str]) -> Tensor:  # float32 (N, D)
    """All rows that `encode_to_disk` wrote, in their order. InputMissing where there are none."""
    paths = sorted(Path(folder).glob("features-*.safetensors"))
    if not paths:
        raise InputMissing(f"{folder}: no features-*.safetensors there")
    return torch.cat([_open(path).get_tensor("features") for path in paths])


class _Noted:
    """An iterable that counts and digests what passes."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self._digest = hashlib.blake2b(digest_size=16)
        self.rows = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.rows += 1
            name = str(item) if isinstance(item, (str, PathLike)) else "a picture"
            self._digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
            yield item

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _texts_encoder(
    encode: Callable[[Tensor], Tensor], tokenizer: Tokenizer, batch_size: int
) -> Encode:
    def run(items: Iterator[Any]) -> Iterator[Tensor]:
        for batch in _batches(items, batch_size):
            yield encode(tokenizer(batch)).cpu()

    return run


def _pictures_encoder(
    encode: Callable[[Tensor], Tensor], model: nn.Module, pool: ThreadPoolExecutor, batch_size: int
) -> Encode:
    preprocess = preprocess_of(model)
    blank = np.zeros((*preprocess.size, 3), np.uint8)

    def read(picture: Picture) -> np.ndarray | None:
        try:
            return read_pixels(picture, preprocess)
        except FastclipError as error:
            logger.warning("%s", error)
            return None

    def run(items: Iterator[Any]) -> Iterator[Tensor]:
        for pixels in _one_ahead(
            [pool.submit(read, item) for item in batch] for batch in _batches(items, batch_size)
        ):
            found = [future.result() for future in pixels]
            stacked = np.stack([blank if array is None else array for array in found])
            features = encode(torch.from_numpy(stacked)).cpu()
            features[torch.tensor([array is None for array in found])] = torch.nan
            yield features

    return run


def _one_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """Each batch, once the next has been started."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting


def _notes(features: Tensor, items: _Noted) -> dict[str, Any]:
    unreadable = features.isnan().any(dim=1).nonzero()[:, 0].tolist()
    return {"rows": items.rows, "items": items.digest, "unreadable": unreadable}


def _write_shard(path: Path, features: Tensor, probe: Tensor, notes: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {"features": features, "probe": probe.cpu()},
            partial,
            metadata={"notes": json.dumps(notes)},
        )
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise CannotWrite(f"{path}: cannot be written: {error}") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a shard of features: {error}; delete it") from error


def _check_shard(path: Path, items: _Noted, probe: Tensor) -> dict[str, Any]:
    """What the shard says of itself; DataError where `items` or the model are not what it was made of."""
    shard = _open(path)
    notes: dict[str, Any] = json.loads((shard.metadata() or {}).get("notes", "{}"))
    if (notes.get("rows"), notes.get("items")) != (items.rows, items.digest):
        raise DataError(f"{path}: made from other items; delete it, or choose another folder")
    made_by = shard.get_tensor("probe")
    if made_by.shape != probe.shape or not torch.allclose(made_by, probe.cpu(), atol=1e-3):
        raise DataError(f"{path}: made by another model; delete it, or choose another folder")
    return notes

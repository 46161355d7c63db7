"""Full batches from a decoder that takes whole batches: bad members out, the next samples in.

Loader processes already leave out what a header shows to be bad. What is left fails in the decoder; then the good
members wait for the next batch to fill their number up, so a batch is always full and no sample is lost but the bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastclip.data.bad_samples import BAD_PICTURE, BadReport, BadSampleNotes
from fastclip.data.batch import Batch, Draws, EncodedBatch
from fastclip.data.decode_dali import BadImages


class Refill:
    """Decodes encoded batches of `batch_size`. `decode` raises BadImages to name members it cannot decode."""

    def __init__(
        self,
        decode: Callable[[EncodedBatch], Tensor],
        batch_size: int,
        report: Callable[[BadReport], None],
        data: str,
        make_batch: Callable[[Tensor, Tensor], Batch] = Batch,
    ) -> None:
        self._decode, self._batch_size, self._make_batch = decode, batch_size, make_batch
        self._report, self._data = report, data
        self.rest = 0  # samples that are left of the last encoded batch after the one just given

    def batches(self, encoded: Iterator[EncodedBatch]) -> Iterator[Batch]:
        """Raises DataError where the data turns out to hold nothing that decodes."""
        size = self._batch_size
        notes = BadSampleNotes(self._data)
        pool: EncodedBatch | None = None
        for new in encoded:
            pool = new if pool is None else join(pool, new)
            while pool is not None and len(pool.keys) >= size:
                batch = pool if len(pool.keys) == size else rows(pool, list(range(size)))
                try:
                    images = self._decode(batch)
                except BadImages as error:
                    for index, cause in error.bad.items():
                        notes.note(BAD_PICTURE, batch.keys[index], cause)
                    self._report(notes.take())
                    good = [index for index in range(len(pool.keys)) if index not in error.bad]
                    pool = rows(pool, good) if good else None
                    continue
                notes.good += size
                rest = list(range(size, len(pool.keys)))
                pool = rows(pool, rest) if rest else None
                self.rest = len(rest)
                yield self._make_batch(images, batch.texts)


def rows(batch: EncodedBatch, index: list[int]) -> EncodedBatch:
    """Only those samples of `batch`, in that order."""
    starts, ends = batch.offsets[:-1].tolist(), batch.offsets[1:].tolist()
    chosen = torch.tensor(index, dtype=torch.int64)
    parts = [batch.encoded[starts[i] : ends[i]] for i in index]
    return EncodedBatch(
        encoded=torch.cat(parts),
        offsets=_offsets([len(part) for part in parts]),
        draws=Draws(*(field[chosen] for field in batch.draws)),
        texts=batch.texts[chosen],
        keys=[batch.keys[i] for i in index],
    )


def join(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    """The samples of both, end to end."""
    return EncodedBatch(
        encoded=torch.cat((first.encoded, second.encoded)),
        offsets=torch.cat((first.offsets, second.offsets[1:] + first.offsets[-1])),
        draws=Draws(*(torch.cat(pair) for pair in zip(first.draws, second.draws, strict=True))),
        texts=torch.cat((first.texts, second.texts)),
        keys=[*first.keys, *second.keys],
    )


def _offsets(lengths: list[int]) -> Tensor:
    return torch.cumsum(torch.tensor([0, *lengths], dtype=torch.int64), 0)

"""Pictures by their places, decoded for evaluation in loader processes and told apart by number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastclip.config.images import PreprocessConfig
from fastclip.data.bad_samples import MISSING_FILE, BadSampleNotes
from fastclip.data.decode_pillow import EvalDecoder
from fastclip.data.imagenet import LabelledPreparer, LabelledSample
from fastclip.data.loader import LabelledLoader
from fastclip.data.row_source import Division, RowSource
from fastclip.data.tar_index import Place


class PlacedPictures(RowSource):
    """The pictures `numbers` of `places`, in that order; a sample's label is its number."""

    def __init__(
        self, name: str, places: Sequence[Place], numbers: Sequence[int], division: Division
    ) -> None:
        super().__init__(name, len(numbers), division)
        self._places, self._numbers = places, numbers

    def sample(self, index: int, turn: str, notes: BadSampleNotes) -> LabelledSample | None:
        number = self._numbers[index]
        path, offset, size = self._places[number]
        where = path if size < 0 else f"{path} at byte {offset:,}"
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return LabelledSample(file.read(size), number, where)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            notes.note(MISSING_FILE, where, getattr(error, "strerror", None) or str(error))
            return None


def picture_loader(
    name: str,
    places: Sequence[Place],
    numbers: Sequence[int],
    preprocess: PreprocessConfig,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> LabelledLoader:
    """Batches of pictures (uint8 (B, H, W, 3)) with their numbers as labels.

    Pictures that do not decode are left out and counted in the loader's `bad`.
    """
    return LabelledLoader(
        PlacedPictures(name, places, numbers, Division(batch_size)),
        LabelledPreparer(EvalDecoder(preprocess)),
        num_samples=len(numbers),
        batch_size=batch_size,
        workers=workers,
        device=device,
    )

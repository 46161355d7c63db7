"""Data that needs no files: one black picture and one caption, to try out a model's speed and memory."""

from __future__ import annotations

import io

from PIL import Image

from fastclip.config.images import PreprocessConfig
from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.row_source import Division, RowSource
from fastclip.data.shards import RawSample
from fastclip.errors import UserError

CAPTION = "Dummy caption"  # reference


class SyntheticSource(RowSource):
    """The same sample `num_samples` times, encoded, so that it takes the way of real data."""

    def __init__(
        self, num_samples: int | None, preprocess: PreprocessConfig, division: Division
    ) -> None:
        if num_samples is None:
            raise UserError(
                "--dataset-type synthetic needs --train-num-samples: the number of samples in an epoch"
            )
        super().__init__("--dataset-type synthetic", num_samples, division)
        height, width = preprocess.size
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "JPEG")
        self._image = buffer.getvalue()

    def sample(self, index: int, turn: str, notes: BadSampleNotes) -> RawSample:
        return RawSample(self._image, CAPTION, f"synthetic/{index}", turn)

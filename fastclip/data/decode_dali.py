"""Encoded training pictures to augmented pixels with NVIDIA DALI.

On the GPU where there is one and on the CPU otherwise, by one pipeline definition. DALI decodes,
crops and resizes (antialiased, the box of the draw); colours follow in `data/color.py`. DALI draws
no random number: every decision comes with the batch. nvJPEG is asked for libjpeg's chroma
upsampling, and the rotation that EXIF asks for is ignored, as in the reference.

What DALI would not read as Pillow does comes as PPM (`data/dali_form.py`). A picture that it refuses all
the same fails the whole batch: Pillow then decodes the picture that DALI names, and the batch is tried again. Where it
names none, Pillow decodes the batch.
"""

from __future__ import annotations

import itertools
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from fastclip import optional
from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.batch import Draws, EncodedBatch
from fastclip.data.color import change_colors_
from fastclip.data.dali_form import as_ppm
from fastclip.data.decode_pillow import TrainDecoder
from fastclip.data.draws import unstack
from fastclip.data.erase import random_erasing
from fastclip.data.image_header import BadImage
from fastclip.errors import DataError, EnvironmentProblem

logger = logging.getLogger(__name__)

_NAMED_PER_BATCH = 8  # pictures of one batch that DALI may refuse before Pillow decodes all of it
INSTALL = "pip install 'fastclip[dali]' (or 'fastclip[dali-cuda12]' with a CUDA 12 driver)"


class BadImages(DataError):
    """Pictures of a batch that cannot be decoded; `bad` maps their places in the batch to why."""

    def __init__(self, bad: dict[int, str]) -> None:
        super().__init__(f"{len(bad)} pictures cannot be decoded: {bad}")
        self.bad = bad


def available() -> str | None:
    """None if DALI can be used; else why not, in words."""
    dali = optional.find("nvidia.dali")
    if isinstance(dali, str):
        return dali
    pipeline = optional.find("nvidia.dali.fn")
    if isinstance(pipeline, str) or not hasattr(dali, "pipeline_def"):
        # The package `nvidia-dali` on PyPI holds nothing but a hint at where DALI is.
        return f"nvidia.dali is installed but is not DALI; install it with: {INSTALL}"
    return None


class DaliTrainDecoder:
    """`EncodedBatch` to uint8 (B, H, W, 3) on `device`.

    With `re_prob` to normalised float32 (B, 3, H, W) instead. A batch may be smaller than
    `batch_size`. Raises BadImages if pictures of it cannot be decoded; the decoder can be called
    again with the others. Not for use by two threads at once.
    """

    def __init__(
        self,
        preprocess: PreprocessConfig,
        augment: AugmentConfig,
        batch_size: int,
        device: torch.device,
        threads: int,
        *,
        fast_resize: bool,
    ) -> None:
        """`fast_resize` is for what Pillow decodes."""
        reason = available()
        if reason is not None:
            raise EnvironmentProblem(f"--decoder dali: {reason}. Install it with: {INSTALL}")
        self._preprocess, self._device = preprocess, device
        self._batch_size, self._threads = batch_size, threads
        self._pillow = TrainDecoder(preprocess.size, fast_resize=fast_resize)
        self._erasing = random_erasing(preprocess, augment)
        self._pipeline: Any = None
        self._failure = ""  # what DALI said when it last failed
        self._helped = 0  # times that Pillow decoded what DALI would not

    def __call__(self, batch: EncodedBatch) -> Tensor:
        if len(batch.keys) > self._batch_size:
            raise ValueError(f"a batch of {len(batch.keys)} for a decoder of {self._batch_size}")
        pictures = _pictures(batch)
        images = self._cropped_with_help(pictures, batch.draws)
        if images is None:
            images = self._with_pillow(pictures, batch.draws).to(self._device)
            self._tell_helped()
        else:
            images = change_colors_(images, batch.draws)
        return images if self._erasing is None else self._erasing(images, batch.draws.erase)

    def _cropped_with_help(self, pictures: list[np.ndarray], draws: Draws) -> Tensor | None:
        """As `_cropped`, with the pictures that DALI names as its reason to fail decoded by Pillow.

        Raises BadImages where Pillow cannot decode such a picture either.
        """
        pictures = list(pictures)
        for attempt in range(_NAMED_PER_BATCH + 1):
            images = self._cropped(pictures, draws)
            named = _named_sample(self._failure)
            if images is not None or named is None or attempt == _NAMED_PER_BATCH:
                return images
            try:
                pictures[named] = np.frombuffer(as_ppm(pictures[named].tobytes()), np.uint8)
            except BadImage as error:
                raise BadImages({named: error.cause}) from error
            self._tell_helped()
        raise AssertionError("unreachable")

    def _cropped(self, pictures: list[np.ndarray], draws: Draws) -> Tensor | None:
        """Decoded, cropped and resized uint8 (B, H, W, 3), the caller's; None if DALI failed."""
        if self._pipeline is None:
            self._pipeline = _build(
                self._preprocess.size, self._batch_size, self._device, self._threads
            )
        pipeline = self._pipeline
        crop = draws.crop.numpy()
        types = optional.require("nvidia.dali.types", "--decoder dali", INSTALL)
        interpolation = np.where(draws.bilinear, types.INTERP_LINEAR, types.INTERP_CUBIC)
        try:
            pipeline.feed_input("encoded", pictures)
            pipeline.feed_input("start", np.ascontiguousarray(crop[:, :2]))
            pipeline.feed_input("shape", np.ascontiguousarray(crop[:, 2:]))
            pipeline.feed_input("interpolation", interpolation.astype(np.int32))
            (output,) = pipeline.run(self._stream())
        except RuntimeError as error:
            self._failure = _first_line(error)
            if _is_of_the_device(error):
                raise EnvironmentProblem(
                    f"DALI failed on {self._device}: {self._failure}; use a smaller --batch-size if memory is short, "
                    "or run with --decoder pillow"
                ) from error
            # An input left in its queue would give the next batch this one's crops: start anew.
            self._pipeline = None
            return None
        # A copy in torch's own memory: only its allocator knows which streams still read a tensor.
        return torch.utils.dlpack.from_dlpack(output.as_tensor()).clone()

    def _stream(self) -> Any:
        """torch's stream, on which DALI hands over its output without waiting; None on the CPU."""
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

    def _with_pillow(self, pictures: list[np.ndarray], draws: Draws) -> Tensor:
        """The finished pixels, on the CPU. Raises BadImages."""

        def decode(row: int) -> np.ndarray | BadImage:
            try:
                return self._pillow(pictures[row].tobytes(), draw_list[row])
            except BadImage as error:
                return error

        draw_list = unstack(draws)
        with ThreadPoolExecutor(max_workers=self._threads) as pool:
            results = list(pool.map(decode, range(len(pictures))))
        bad = {row: r.cause for row, r in enumerate(results) if isinstance(r, BadImage)}
        if bad:
            raise BadImages(bad)
        return torch.from_numpy(np.stack([r for r in results if isinstance(r, np.ndarray)]))

    def _tell_helped(self) -> None:
        """Say the 1st, 10th, 100th ... time that Pillow had to do DALI's work."""
        self._helped += 1
        if self._helped == 10 ** (len(str(self._helped)) - 1):
            logger.warning(
                "DALI refused %d times what Pillow finds nothing wrong with (last: %s); "
                "decoded by Pillow, slowly. If this line comes back, run with --decoder pillow",
                self._helped,
                self._failure,
            )


def _is_of_the_device(error: RuntimeError) -> bool:
    """Not about a picture: the next batch would fail too, and Pillow would decode for days without a word."""
    text = str(error).lower()
    return any(
        sign in text
        for sign in ("out of memory", "cuda runtime api error", "cuda driver api error")
    )


def _build(size: tuple[int, int], batch_size: int, device: torch.device, threads: int) -> Any:
    """The pipeline: four inputs, fed before each run, and one output (B, H, W, 3)."""
    fn = optional.require("nvidia.dali.fn", "--decoder dali", INSTALL)
    types = optional.require("nvidia.dali.types", "--decoder dali", INSTALL)
    dali: ModuleType = optional.require("nvidia.dali", "--decoder dali", INSTALL)
    on_gpu = device.type == "cuda"
    pipeline = dali.Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=1,  # one batch in, one batch out; the loader works ahead
        exec_dynamic=True,
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
        shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
        interpolation = fn.external_source(name="interpolation", dtype=types.INT32, ndim=0)
        images = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,
            adjust_orientation=False,
        )
        # Cut first: a resize given the box as its region of interest would blend in pixels from
        # outside.
        images = fn.slice(images, start=start, shape=shape, axes=(0, 1))
        images = fn.resize(
            images,
            size=size,
            interp_type=fn.cast(interpolation, dtype=types.INTERP_TYPE),
            antialias=True,
        )
        pipeline.set_outputs(images)
    try:
        pipeline.build()
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"DALI cannot start on {device}: {_first_line(error)}. Its build must fit the driver: "
            f"{INSTALL}; or run with --decoder pillow"
        ) from error
    return pipeline


def _first_line(error: RuntimeError) -> str:
    """What went wrong, from one of DALI's many-line messages."""
    return str(error).rpartition("encountered:")[2].strip().partition("\n")[0].rstrip(".")


def _named_sample(failure: str) -> int | None:
    """The place in the batch of the picture that DALI says it failed on; None if it names none."""
    found = re.search(r"decode sample #(\d+)", failure)
    return None if found is None else int(found[1])


def _pictures(batch: EncodedBatch) -> list[np.ndarray]:
    """The files of a batch, uint8 (bytes,) each, as views of its one buffer."""
    encoded, offsets = batch.encoded.numpy(), batch.offsets.tolist()
    return [encoded[a:b] for a, b in itertools.pairwise(offsets)]

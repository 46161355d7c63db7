"""What our loader processes do with Pillow, without a loader: decoding by itself, and the time of each part."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

import fastclip
from bench.shard_pairs import pairs
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.crop_resize import by_pillow, by_torch
from fastclip.data.decode_pillow import TrainDecoder, augment_image
from fastclip.data.draws import AugmentSampler
from fastclip.data.image_header import BadImage, header_of, open_image, to_rgb
from fastclip.data.packing import PackRule, TextPacker, rows_for
from fastclip.data.shard_spec import expand_shards
from fastclip.data.shards import Position, RawSample, TrainShards
from fastclip.data.tokenizer import build_tokenizer
from fastclip.data.worker import PillowTrain, draw_for, stack_images
from fastclip.model.model_config import tokenizer_spec

_FLAG = "--train-data"


class DecoderAlone:
    """Calling it is an epoch under a run's flags, its pictures in memory: decoded and augmented in as many processes
    as there would be loader processes, and let go."""

    def __init__(self, flags: list[str]) -> None:
        config = resolve(parse_args([*flags, "--logs", "none", "--device", "cpu"]))
        spec = tokenizer_spec(
            config.model.name, context_length=None, tokenizer_file=None, cache_dir=None
        )
        assert config.data.train_data is not None
        assert config.data.train_num_samples is not None
        self._shards, self._count = config.data.train_data, config.data.train_num_samples
        self._batch_size, self._workers = config.data.batch_size, config.data.workers
        held = itertools.islice(pairs(self._shards, _FLAG), self._count)
        self._samples = [
            RawSample(pair.picture, pair.caption, str(number), "")
            for number, pair in enumerate(held)
        ]
        preprocess: Any = fastclip.create_model(config.model.name).preprocess_cfg
        self._size, self._tokenizer = preprocess.size, build_tokenizer(spec)
        self._sampler = AugmentSampler(config.data.augment, preprocess, seed=0)
        self._fast_resize = config.data.fast_resize
        decoder = TrainDecoder(preprocess.size, fast_resize=self._fast_resize)
        self._preparer = PillowTrain(self._sampler, decoder, None, self._tokenizer)
        self._epoch = 0

    def __call__(self) -> None:
        self._epoch += 1
        fork = multiprocessing.get_context("fork")
        shares = [fork.Process(target=self._share, args=(each,)) for each in range(self._workers)]
        for process in shares:
            process.start()
        for process in shares:
            process.join()
            assert process.exitcode == 0

    def _share(self, worker: int) -> None:
        torch.set_num_threads(
            1
        )  # as in a loader process; OpenMP would wait for threads that a fork lacks
        for number in range(worker, self._count, self._workers):
            with contextlib.suppress(BadImage):
                self._preparer.prepare(self._samples[number % len(self._samples)], self._epoch)

    def parts(self) -> dict[str, float]:
        """Microseconds a picture, of one epoch in this process, in the order in which a picture meets them. Raises
        BadImage."""
        torch.set_num_threads(1)
        crop_resize = by_torch if self._fast_resize else by_pillow
        spent: dict[str, float] = defaultdict(float)
        rule = PackRule(eos_id=None)
        some = self._tokenizer([sample.caption for sample in self._samples[: self._batch_size]])
        rows = rows_for(rule.lengths(some.numpy()), self._batch_size, some.shape[1])
        packer = TextPacker(rule, rows)
        urls = expand_shards(self._shards, _FLAG).urls
        source = TrainShards(_FLAG, urls, seed=0, rank=0, world_size=1)
        notes, done = BadSampleNotes(_FLAG), 0
        images: list[np.ndarray] = []
        captions: list[str] = []
        clock = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            spent[part] += now - clock
            clock = now

        while done < self._count:
            for sample in source.read(Position(0, 0, 1, done), notes):
                lap("tar, shuffle")
                image = open_image(sample.image)
                draw = draw_for(self._sampler, sample, header_of(image, sample.image), self._epoch)
                lap("header, draws")
                rgb = to_rgb(image)
                lap("decode")
                images.append(np.asarray(augment_image(rgb, draw, self._size, crop_resize)))
                captions.append(sample.caption)
                lap("crop, resize, colours")
                done += 1
                if len(images) == self._batch_size:
                    texts = self._tokenizer(captions)
                    packer(texts)
                    lap("captions: clean, tokenise, pack")
                    stack_images(images)
                    lap("put batch together")
                    images, captions = [], []
                if done == self._count:
                    break
        return {part: seconds / self._count * 1e6 for part, seconds in spent.items()}

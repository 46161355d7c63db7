"""From flags to loaders: every choice about data is made here, once."""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import DataConfig
from fastclip.data import decode_dali
from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.batch import Batch
from fastclip.data.csv_source import CsvSource, read_rows
from fastclip.data.decode_pillow import EvalDecoder, TrainDecoder
from fastclip.data.draws import AugmentSampler, augment_warnings
from fastclip.data.epoch_plan import EpochPlan, check_enough_shards, plan_rows, plan_shards
from fastclip.data.erase import random_erasing
from fastclip.data.imagenet import (
    LabelledFile,
    LabelledPreparer,
    LabelledSource,
    imagenet_files,
    imagenet_v2_files,
)
from fastclip.data.loader import EvalLoader, LabelledLoader, TrainLoader
from fastclip.data.packing import PackRule, TextPacker, rows_for
from fastclip.data.position import DataPosition, fingerprint
from fastclip.data.resume import Readers, resume
from fastclip.data.row_source import Division, RowSource
from fastclip.data.shard_cache import ShardCache
from fastclip.data.shard_opener import open_shard
from fastclip.data.shard_spec import (
    ShardList,
    count_samples,
    data_kind,
    display,
    expand_shards,
    shard_name,
)
from fastclip.data.shards import EvalShards, Opener, Position, ResampledShards, TrainShards
from fastclip.data.synthetic import SyntheticSource
from fastclip.data.worker import (
    EncodedTrain,
    EvalPreparer,
    PillowTrain,
    Preparer,
    SampleSource,
    Tokenizer,
)
from fastclip.errors import EnvironmentProblem, FastclipError, UserError

_SAMPLED_CAPTIONS = 2048  # to choose the size of packed batches by
_TRAIN, _VAL = "--train-data", "--val-data"


@dataclass(frozen=True, slots=True)
class DataLoaders:
    """What the flags ask for; None for what they do not."""

    train: TrainLoader | None = None
    val: EvalLoader[Batch] | None = None
    imagenet_val: LabelledLoader | None = None
    imagenet_v2: LabelledLoader | None = None


def build_data(
    cfg: DataConfig,
    preprocess: PreprocessConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    rank: int,
    world_size: int,
    device: torch.device,
    start_epoch: int = 0,
    epochs: int | None = None,
    pack: PackRule | None = None,
    left: DataPosition | None = None,
    batches_per_step: int = 1,
) -> DataLoaders:
    """All loaders of a run, checked against the machine but with no process started and no picture decoded.

    `epochs` is only for the sentences about the run. With `pack`, training batches have packed captions, in rows
    chosen from the first captions of the data.
    `left` is where another run left epoch `start_epoch`. Raises UserError, InputMissing, DataError, EnvironmentProblem.
    """
    opener, said = _shard_opener(cfg)
    train = None
    if cfg.train_data is not None or cfg.dataset_type == "synthetic":
        train = _train_loader(
            cfg,
            preprocess,
            tokenizer,
            seed,
            Readers(
                rank=rank,
                world_size=world_size,
                workers=max(1, cfg.workers),
                batch_size=cfg.batch_size,
                batches_per_step=batches_per_step,
            ),
            device,
            start_epoch,
            epochs,
            pack,
            left,
            opener,
            said,
        )
    val = None
    if cfg.val_data is not None:
        val = _val_loader(cfg, preprocess, tokenizer, device, opener)
    imagenet_val = imagenet_v2 = None
    if (root := cfg.imagenet_val) is not None:
        flag = "--imagenet-val"
        files = imagenet_files(root, flag)
        imagenet_val = _labelled_loader(cfg, preprocess, f"{flag} {root}", files, device)
    if (root := cfg.imagenet_v2) is not None:
        flag = "--imagenet-v2"
        files = imagenet_v2_files(root, flag)
        imagenet_v2 = _labelled_loader(cfg, preprocess, f"{flag} {root}", files, device)
    return DataLoaders(train, val, imagenet_val, imagenet_v2)


def _shard_opener(cfg: DataConfig) -> tuple[Opener, list[str]]:
    """How shards are opened, and what there is to say about it."""
    if cfg.shard_cache is None:
        return open_shard, []
    allow = cfg.allow_pipe_from_files
    urls = [
        url
        for spec, flag in ((cfg.train_data, _TRAIN), (cfg.val_data, _VAL))
        if spec is not None and data_kind(spec, cfg.dataset_type, flag) == "webdataset"
        for url in expand_shards(spec, flag, allow_pipe_from_files=allow).urls
    ]
    cache = ShardCache(Path(cfg.shard_cache), int(cfg.shard_cache_gb * 1e9), urls)
    return cache.open, [cache.prepare()]


def _train_loader(
    cfg: DataConfig,
    preprocess: PreprocessConfig,
    tokenizer: Tokenizer,
    seed: int,
    readers: Readers,
    device: torch.device,
    start_epoch: int,
    epochs: int | None,
    pack: PackRule | None,
    left: DataPosition | None,
    opener: Opener,
    said: list[str],
) -> TrainLoader:
    rank, world_size = readers.rank, readers.world_size
    kind = data_kind(cfg.train_data, cfg.dataset_type, _TRAIN)
    source: SampleSource
    if kind == "webdataset":
        source, plan, sentences, data = _train_shards(cfg, seed, rank, world_size, epochs, opener)
        sentences += said
    else:
        division = Division(cfg.batch_size, True, seed, rank, world_size)
        rows = _row_source(cfg, kind, cfg.train_data, preprocess, division, _TRAIN)
        source, plan = rows, plan_rows(rows.num_rows, cfg.batch_size, world_size, rows.name)
        data = fingerprint(rows.num_rows, seed)
        left_out = max(0, rows.num_rows - plan.num_batches * cfg.batch_size * world_size)
        sentences = [
            f"train data: {rows.num_rows:,} rows, each at most once an epoch; "
            f"{plan.num_batches:,} batches of {cfg.batch_size} on each of {world_size} "
            f"process{'es' if world_size > 1 else ''}, {left_out:,} rows left out of an epoch"
        ]
    packer = None if pack is None else _packer(cfg, source, tokenizer, pack, sentences)
    again = not (kind == "webdataset" and cfg.dataset_resampled)
    resumption = None
    if left is not None:
        resumption = resume(source, plan, readers, left, data=data, again=again)
        source = resumption.source
        sentences.append(resumption.sentence)
    start = None if resumption is None else resumption.start
    sampler = AugmentSampler(cfg.augment, preprocess, seed)
    preparer: Preparer
    refusal = why_not_dali(cfg, device)
    if refusal is None:
        preparer = EncodedTrain(sampler, tokenizer)
        where = "GPU" if device.type == "cuda" else "CPU"
        sentences.append(f"decoder: DALI on the {where}, in the main process")
        decode = functools.partial(
            decode_dali.DaliTrainDecoder,
            preprocess,
            cfg.augment,
            cfg.batch_size,
            device,
            max(1, cfg.workers),
            fast_resize=cfg.fast_resize,
        )
    else:
        erasing = random_erasing(preprocess, cfg.augment)
        decoder = TrainDecoder(preprocess.size, fast_resize=cfg.fast_resize)
        make_batch = Batch if packer is None else packer.batch
        preparer = PillowTrain(sampler, decoder, erasing, tokenizer, make_batch)
        decode = None
        if start is not None and start.used:
            sentences.append(
                f"decoder: it was DALI, which had used {start.used} samples of the first batch; these are met again"
            )
            start = replace(start, used=0)
        resizer = "torch" if cfg.fast_resize else "Pillow"
        sentences.append(
            f"decoder: Pillow, in the loader processes ({refusal}); resized by {resizer}"
        )
    return TrainLoader(
        source,
        preparer,
        plan,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        device=device,
        start_epoch=start_epoch,
        decode=decode,
        sentences=[*sentences, *augment_warnings(cfg.augment)],
        packer=packer,
        start=start,
        data=data,
        inherited=None if resumption is None else resumption.inherited,
        max_bad_fraction=cfg.max_bad_fraction,
    )


def check_number_of_shards(cfg: DataConfig, world_size: int) -> None:
    """The refusal that `build_data` would end with, for those who have something slow to do before."""
    if cfg.train_data is None or cfg.dataset_resampled:
        return
    if data_kind(cfg.train_data, cfg.dataset_type, _TRAIN) == "webdataset":
        shards = expand_shards(
            cfg.train_data, _TRAIN, allow_pipe_from_files=cfg.allow_pipe_from_files
        )
        check_enough_shards(len(shards.urls), cfg.workers, world_size)


def why_not_dali(cfg: DataConfig, device: torch.device) -> str | None:
    """Why Pillow decodes training pictures; None where DALI does.

    On a CPU DALI takes longer a picture than Pillow, and it takes it from the process that trains.
    EnvironmentProblem for `--decoder dali` without it.
    """
    if cfg.decoder == "pillow":
        return "--decoder pillow"
    if cfg.decoder == "auto" and device.type == "cpu":
        return "faster than DALI where there is no GPU"
    refusal = decode_dali.available()
    if refusal is not None and cfg.decoder == "dali":
        raise EnvironmentProblem(
            f"--decoder dali: {refusal}. Install it with: {decode_dali.INSTALL}"
        )
    return refusal


def _packer(
    cfg: DataConfig,
    source: SampleSource,
    tokenizer: Tokenizer,
    rule: PackRule,
    sentences: list[str],
) -> TextPacker:
    """Of a size for the captions that the run's first loader process reads first."""
    captions: list[str] = []
    # What is wrong with the data is for the loader to say, once it is met there.
    with contextlib.suppress(FastclipError):
        start = Position(0, 0, max(1, cfg.workers), 0)  # whatever epoch a run is resumed at
        samples = source.read(start, BadSampleNotes(source.name))
        for sample in itertools.islice(samples, _SAMPLED_CAPTIONS):
            captions.append(sample.caption)
        del samples  # closes its shard
    if not captions:
        return TextPacker(rule, cfg.batch_size)
    texts = tokenizer(captions).numpy()
    lengths, row_length = rule.lengths(texts), texts.shape[1]
    rows = rows_for(lengths, cfg.batch_size, row_length)
    sentences.append(
        f"captions: packed, {cfg.batch_size} into {rows} rows of {row_length} tokens "
        f"(mean {lengths.mean():.1f} tokens, from {len(captions):,} captions), or into {cfg.batch_size} rows where "
        "they do not fit"
    )
    return TextPacker(rule, rows)


def _train_shards(
    cfg: DataConfig, seed: int, rank: int, world_size: int, epochs: int | None, opener: Opener
) -> tuple[SampleSource, EpochPlan, list[str], str]:
    assert cfg.train_data is not None
    spec = cfg.train_data
    shards = expand_shards(spec, _TRAIN, allow_pipe_from_files=cfg.allow_pipe_from_files)
    known = None
    if cfg.train_num_samples is None:
        known = count_samples(shards.urls, f"{_TRAIN} {display(spec)}")
        if not known:
            raise UserError(
                f"{_TRAIN} {display(spec)}: no sizes.json or __len__ beside the shards says how many samples they "
                "hold; give --train-num-samples"
            )
    num_samples = cfg.train_num_samples or known
    assert num_samples is not None
    plan = plan_shards(num_samples, cfg.batch_size, world_size, cfg.workers)
    name = f"{_TRAIN} {display(spec)}"
    source: SampleSource
    weights = None
    if cfg.dataset_resampled:
        weights = shards.weights(cfg.train_data_upsampling_factors)
        source = ResampledShards(name, shards.urls, weights, seed=seed, rank=rank, opener=opener)
    else:
        check_enough_shards(len(shards.urls), cfg.workers, world_size)
        source = TrainShards(
            name, shards.urls, seed=seed, rank=rank, world_size=world_size, opener=opener
        )
    sentences = _sentences(cfg, shards, num_samples, plan, world_size, epochs)
    names = [shard_name(url) for url in shards.urls]
    data = fingerprint(names, cfg.dataset_resampled, weights, seed)
    return source, plan, sentences, data


def _sentences(
    cfg: DataConfig,
    shards: ShardList,
    num_samples: int,
    plan: EpochPlan,
    world_size: int,
    epochs: int | None,
) -> list[str]:
    workers = max(1, cfg.workers)
    asked = "--train-num-samples" if cfg.train_num_samples else "from the files beside the shards"
    size = (
        f"train data: {len(shards.urls):,} shards, {num_samples:,} samples an epoch ({asked}), rounded up to "
        f"{plan.num_samples:,}: {plan.num_batches:,} batches of {cfg.batch_size} on each of {world_size} "
        f"process{'es' if world_size > 1 else ''} with {workers} loader{'s' if workers > 1 else ''}"
    )
    if epochs is not None:
        size += f"; {epochs} epochs are {plan.num_samples * epochs:,} samples"
    if cfg.dataset_resampled:
        weighed = " by weight" if cfg.train_data_upsampling_factors else ""
        how = f"shards are drawn with replacement{weighed}: an epoch may repeat and miss samples"
    else:
        how = (
            "shards are not repeated within an epoch, except by a loader whose own shards run out: it starts them "
            "again; what a loader has left when its batches are made is dropped, and the next epoch starts afresh"
        )
    return [size, how]


def _val_loader(
    cfg: DataConfig,
    preprocess: PreprocessConfig,
    tokenizer: Tokenizer,
    device: torch.device,
    opener: Opener,
) -> EvalLoader[Batch]:
    assert cfg.val_data is not None
    kind = data_kind(cfg.val_data, cfg.dataset_type, _VAL)
    source: SampleSource
    if kind == "webdataset":
        allow = cfg.allow_pipe_from_files
        shards = expand_shards(cfg.val_data, _VAL, allow_pipe_from_files=allow)
        source = EvalShards(f"{_VAL} {display(cfg.val_data)}", shards.urls, opener)
        # reference: sizes.json is not consulted, and the number is for display only
        num_samples = cfg.val_num_samples or 0
    else:
        division = Division(cfg.batch_size)
        source = rows = _row_source(cfg, kind, cfg.val_data, preprocess, division, _VAL)
        num_samples = rows.num_rows
    return EvalLoader(
        source,
        EvalPreparer(EvalDecoder(preprocess), tokenizer),
        num_samples=num_samples,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        device=device,
    )


def _labelled_loader(
    cfg: DataConfig,
    preprocess: PreprocessConfig,
    name: str,
    files: list[LabelledFile],
    device: torch.device,
) -> LabelledLoader:
    return LabelledLoader(
        LabelledSource(name, files, Division(cfg.batch_size)),
        LabelledPreparer(EvalDecoder(preprocess)),
        num_samples=len(files),
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        device=device,
    )


def _row_source(
    cfg: DataConfig,
    kind: str,
    path: str | None,
    preprocess: PreprocessConfig,
    division: Division,
    flag: str,
) -> RowSource:
    if kind == "synthetic":
        return SyntheticSource(cfg.train_num_samples, preprocess, division)
    if path is None:
        raise UserError(f"{flag} is missing: --dataset-type csv needs a file")
    rows = read_rows(
        path,
        separator=cfg.csv_separator,
        image_key=cfg.csv_img_key,
        caption_key=cfg.csv_caption_key,
        flag=flag,
    )
    return CsvSource(f"{flag} {path}", rows, division)

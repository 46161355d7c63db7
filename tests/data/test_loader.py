"""Loaders promise full batches, a function of seed and epoch; and refuse what cannot give them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from fastclip.config.images import AugmentConfig
from fastclip.config.train_config import DataConfig
from fastclip.data import decode_dali, shards
from fastclip.data.bad_samples import (
    BAD_PICTURE,
)
from fastclip.data.build import why_not_dali
from fastclip.data.decode_pillow import EvalDecoder
from fastclip.errors import DataError, EnvironmentProblem, InputMissing, UserError
from tests.data.loaders import (
    DECODERS,
    PREPROCESS,
    build,
    epoch_of,
    numbers,
)
from tests.data.shard_files import fresh_seed, jpeg, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


# --- reproducible --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "decoder", "resampled"),
    [(w, d, False) for w in (0, 1, 2) for d in ("pillow", "dali")] + [(2, "pillow", True)],
)
def test_an_epoch_depends_on_seed_and_number_alone(
    tmp_path, workers, decoder, resampled, monkeypatch
):
    if decoder == "dali" and (reason := decode_dali.available()):
        pytest.skip(reason)
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE_INITIAL", 10)
    seed = fresh_seed()
    write_shards(tmp_path, [7, 5, 6, 8])
    options = {
        "train_data": str(tmp_path),
        "train_num_samples": 26,
        "workers": workers,
        "decoder": decoder,
        "dataset_resampled": resampled,
        "augment": AugmentConfig(scale=(0.4, 1.0)),
    }

    def run(epochs, seed=seed, **more):
        loader = build(seed=seed, start_epoch=epochs[0], **options, **more).train
        try:
            return [epoch_of(loader, epoch) for epoch in epochs]
        finally:
            loader.close()

    straight = run([0, 1, 2])
    assert run([0, 1, 2]) == straight
    assert run([2]) == straight[2:]  # resumed
    assert len({str(epoch) for epoch in straight}) == 3
    assert run([0], seed=seed + 1) != straight[:1]
    assert run([0], rank=1, world_size=2)[0] != run([0], rank=0, world_size=2)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_does_not_change_the_next(tmp_path, workers):
    write_shards(tmp_path, [9, 9])
    loader = build(train_data=str(tmp_path), train_num_samples=18, workers=workers).train
    whole = epoch_of(loader, 1)
    for _ in loader.epoch(0):
        break
    assert epoch_of(loader, 1) == whole
    iterator = loader.epoch(0)
    next(iterator)  # still held while the next epoch starts
    assert epoch_of(loader, 1) == whole
    loader.close()


def test_the_models_random_numbers_are_left_alone(tmp_path):
    write_shards(tmp_path, [6])
    loader = build(train_data=str(tmp_path), train_num_samples=6, workers=1).train
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    list(loader.epoch(0))
    got = torch.rand(3), random.random()
    loader.close()
    assert torch.equal(got[0], expected[0])
    assert got[1] == expected[1]


def test_pictures_and_captions_stay_together_and_are_the_files(tmp_path):
    """With nothing random but a full-size crop allowed, pixels are those of evaluation."""
    write_shards(tmp_path, [5, 5])
    data = build(train_data=str(tmp_path), train_num_samples=10, val_data=str(tmp_path), workers=1)
    for images, texts in data.val:
        decode = EvalDecoder(PREPROCESS)
        for image, number in zip(images, numbers(texts), strict=True):
            assert image.numpy().tobytes() == decode(jpeg(number)).tobytes()
    for images, texts in data.train.epoch(0):
        for image, number in zip(images.float(), numbers(texts), strict=True):
            wanted = torch.from_numpy(EvalDecoder(PREPROCESS)(jpeg(number)).copy()).float()
            other = torch.from_numpy(EvalDecoder(PREPROCESS)(jpeg(number + 1)).copy()).float()
            assert (image - wanted).abs().mean() < (image - other).abs().mean()
    data.train.close()


def test_a_sample_served_twice_in_an_epoch_is_augmented_anew(tmp_path):
    write_shards(tmp_path, [4])
    augment = AugmentConfig(scale=(0.2, 0.9))
    loader = build(train_data=str(tmp_path), train_num_samples=16, augment=augment).train
    seen = [row.numpy().tobytes() for images, _ in loader.epoch(0) for row in images]
    assert len(set(seen)) == 16


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_gives_its_number_of_full_batches(tmp_path, workers, world_size):
    write_shards(tmp_path, [11, 3, 2, 9])
    for rank in range(world_size):
        options = {"train_data": str(tmp_path), "train_num_samples": 50, "workers": workers}
        loader = build(rank=rank, world_size=world_size, **options).train
        batches = list(loader.epoch(0))
        loader.close()
        assert len(batches) == loader.num_batches
        assert loader.num_samples == loader.num_batches * 4 * world_size >= 50
        assert all(
            batch.images.shape == (4, 16, 20, 3) and len(batch.texts) == 4 for batch in batches
        )


def test_the_ranks_of_an_epoch_read_different_samples(tmp_path):
    write_shards(tmp_path, [8, 8, 8, 8])
    seen = []
    for rank in range(2):
        loader = build(
            rank=rank, world_size=2, train_data=str(tmp_path), train_num_samples=32, workers=2
        ).train
        seen.append({number for batch, _ in epoch_of(loader, 0) for number in batch})
        loader.close()
    assert len(seen[0]) == len(seen[1]) == 16
    assert not seen[0] & seen[1]


def test_shards_with_less_than_a_batch_do_not_hang(tmp_path):
    """The reference turns for ever there."""
    write_shards(tmp_path, [3])
    loader = build(train_data=str(tmp_path), train_num_samples=8).train
    batches = epoch_of(loader, 0)
    assert [len(batch) for batch, _ in batches] == [4, 4]
    assert {number for batch, _ in batches for number in batch} == {0, 1, 2}


def test_what_fills_no_batch_is_dropped_at_the_end_of_a_turn(tmp_path):
    """Reference: a batch never holds samples of two turns where a turn fills a batch."""
    write_shards(tmp_path, [7])
    loader = build(train_data=str(tmp_path), train_num_samples=40).train
    for batch, _ in epoch_of(loader, 0):
        assert len(set(batch)) == 4


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_sees_every_sample_once(tmp_path, workers):
    write_shards(tmp_path, [5, 6, 3])
    val = build(val_data=str(tmp_path), workers=workers).val
    for _ in range(2):
        batches = list(val)
        assert sorted(n for b in batches for n in numbers(b.texts)) == list(range(14))
        assert all(0 < len(b.images) <= 4 for b in batches)
    assert val.num_samples == 0  # reference: for shards, what --val-num-samples says
    assert build(val_data=str(tmp_path), val_num_samples=14).val.num_samples == 14


def csv_file(folder: Path, count: int, bad: set[int] = frozenset()) -> Path:
    lines = ["filepath\ttitle"]
    for number in range(count):
        picture = folder / f"{number}.jpg"
        picture.write_bytes(b"broken" if number in bad else jpeg(number))
        lines.append(f"{picture}\tcaption {number}")
    path = folder / "data.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_csv_order_does_not_depend_on_the_workers(tmp_path, workers):
    path = str(csv_file(tmp_path, 18))
    loader = build(train_data=path, val_data=path, workers=workers, seed=3)
    got = [batch for batch, _ in epoch_of(loader.train, 2)]
    loader.train.close()
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 2)
    order = torch.randperm(18, generator=generator).tolist()
    assert got == [order[i : i + 4] for i in range(0, 16, 4)]
    assert loader.train.num_samples == loader.val.num_samples == 18
    assert [n for b in loader.val for n in numbers(b.texts)] == list(range(18))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("workers", [0, 2, 5])
def test_csv_batches_stay_full_beside_bad_rows(tmp_path, workers, decoder):
    bad = {1, 2, 3, 8, 13}
    path = str(csv_file(tmp_path, 18, bad))
    loader = build(train_data=path, workers=workers, decoder=decoder).train
    for epoch in range(2):
        batches = [batch for batch, _ in epoch_of(loader, epoch)]
        assert [len(batch) for batch in batches] == [4] * 4
        assert not {n for b in batches for n in b} & bad
    loader.close()
    assert loader.bad.counts[BAD_PICTURE] >= len(bad)


def test_labelled_pictures_come_with_their_class(tmp_path):
    for label in range(3):
        folder = tmp_path / f"c{label}"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(jpeg(10 * label + number))
    (tmp_path / "c1" / "1.jpg").write_bytes(b"broken")
    loader = build(imagenet_val=str(tmp_path), workers=2).imagenet_val
    assert loader.num_samples == 9
    batches = list(loader)
    assert sorted(torch.cat([b.labels for b in batches]).tolist()) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert batches[0].images.shape == (4, 16, 20, 3)
    assert loader.bad.counts == {BAD_PICTURE: 1}


# --- refusals ------------------------------------------------------------------------------------


def test_refusals_at_the_start_are_one_line_that_names_the_flag(tmp_path):
    write_shards(tmp_path / "d", [2, 2, 2])
    data = str(tmp_path / "d")
    (tmp_path / "x.csv").write_text("filepath\ttitle\na\tb\n")
    cases = [
        ({"train_data": data}, UserError, "--train-num-samples"),
        ({"train_data": data, "train_num_samples": 9, "workers": 4}, UserError, "--workers 3"),
        (
            {"train_data": f"{tmp_path}/no.tar", "train_num_samples": 9},
            InputMissing,
            "no such file",
        ),
        ({"train_data": f"{tmp_path}/d.parquet"}, UserError, "--dataset-type"),
        ({"train_data": f"{tmp_path}/x.csv"}, DataError, "--batch-size 4"),
        ({"val_data": f"{tmp_path}/no.csv"}, InputMissing, "--val-data .*no such file"),
        ({"imagenet_val": f"{tmp_path}/no"}, InputMissing, "--imagenet-val"),
        ({"imagenet_v2": f"{tmp_path}/no"}, InputMissing, "--imagenet-v2"),
        (
            {
                "train_data": data,
                "train_num_samples": 9,
                "dataset_resampled": True,
                "train_data_upsampling_factors": (1.0, 2.0),
            },
            UserError,
            "--train-data-upsampling-factors has 2 numbers",
        ),
    ]
    for options, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            build(**options)
        assert "\n" not in str(caught.value)


def test_a_decoder_asked_for_by_name_is_never_replaced(tmp_path, monkeypatch):
    write_shards(tmp_path, [4])
    options = {"train_data": str(tmp_path), "train_num_samples": 4}
    monkeypatch.setattr(decode_dali, "available", lambda: "nvidia.dali is not installed")
    with pytest.raises(EnvironmentProblem, match=r"--decoder dali: nvidia\.dali is not installed"):
        build(decoder="dali", **options)
    lines = build(decoder="auto", **options).train.describe()
    assert any("Pillow" in line and "faster than DALI" in line for line in lines)
    auto = DataConfig(decoder="auto", **options)
    assert why_not_dali(auto, torch.device("cuda")) == "nvidia.dali is not installed"
    monkeypatch.setattr(decode_dali, "available", lambda: None)
    assert why_not_dali(auto, torch.device("cuda")) is None


def test_the_start_says_how_an_epoch_is_made_up(tmp_path):
    write_shards(tmp_path, [5, 5, 5, 5])
    (tmp_path / "sizes.json").write_text(
        '{"0000.tar": 5, "0001.tar": 5, "0002.tar": 5, "0003.tar": 5}'
    )
    plain = build(train_data=str(tmp_path), workers=2).train.describe()
    assert plain[0] == (
        "train data: 4 shards, 20 samples an epoch (from the files beside the shards), rounded up to 24: "
        "6 batches of 4 on each of 1 process with 2 loaders"
    )
    resampled = build(
        train_data=str(tmp_path), train_num_samples=7, dataset_resampled=True
    ).train.describe()
    assert "(--train-num-samples), rounded up to 8: 2 batches of 4" in resampled[0]
    assert "drawn with replacement" in resampled[1]
    rows = build(train_data=str(csv_file(tmp_path, 10))).train.describe()
    assert "10 rows" in rows[0]
    assert "2 rows left out" in rows[0]
    augment = AugmentConfig(use_timm=True, color_jitter=(0.3, 0.3, 0.3), gray_scale_prob=0.2)
    warned = build(train_data=str(tmp_path), augment=augment).train.describe()
    assert any("gray_scale_prob" in line for line in warned)

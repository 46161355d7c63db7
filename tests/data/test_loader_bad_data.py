"""Whatever is broken in the data, a loader goes on with full batches, or ends the run and says why."""

from __future__ import annotations

import random
import time

import pytest

from fastclip.data import decode_dali, shards
from fastclip.data.bad_samples import (
    BAD_PICTURE,
    BAD_SHARD,
    CUT_SHARD,
    EMPTY_CAPTION,
    NO_CAPTION,
    BadSampleNotes,
)
from fastclip.errors import DataError
from tests.data.loaders import (
    DECODERS,
    build,
    epoch_of,
    needs_dali,
)
from tests.data.pictures import encode, smooth, without_tables
from tests.data.shard_files import fresh_seed, jpeg, sample_members, tar_bytes, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def bad_picture(rng: random.Random) -> bytes:
    return rng.choice(
        [
            jpeg(rng.randrange(99))[:-40],
            b"",
            b"no picture at all",
            jpeg(1)[:20],
            rng.randbytes(200),
            encode(smooth(24, 24), "PNG")[:300],
        ]
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_batches_stay_full_and_counts_exact_among_bad_pictures(tmp_path, decoder, share):
    rng = random.Random(fresh_seed())
    bad = {number for number in range(120) if rng.random() < share}
    members = []
    for number in range(120):
        members += sample_members(number)
        if number in bad:
            members[-3] = (members[-3][0], bad_picture(rng))
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    good = (120 - len(bad)) // 2
    options = {"train_data": str(tmp_path), "train_num_samples": good // 4 * 4, "decoder": decoder}
    loader = build(**options).train
    batches = [batch for batch, _ in epoch_of(loader, 0)]
    loader.close()
    assert len(batches) == loader.num_batches == good // 4
    assert all(len(batch) == 4 for batch in batches)
    seen = [number for batch in batches for number in batch]
    assert len(set(seen)) == len(seen)
    assert not set(seen) & bad
    # the bad ones that come before the last good one of the epoch
    source = shards.TrainShards("x", (str(tmp_path / "0.tar"),), seed=0, rank=0, world_size=1)
    order = source.read(shards.Position(0, 0, 1, 0), BadSampleNotes("x"))
    expected = 0
    for sample in order:
        number = int(sample.caption.split()[1])
        expected += number in bad
        if number == seen[-1]:
            break
    counted = loader.bad.counts.get(BAD_PICTURE, 0)
    if decoder == "pillow":
        assert counted == expected
    else:  # DALI's batches are read whole before they are decoded
        assert expected <= counted <= len(bad)
    assert loader.bad.kept == len(seen)


@needs_dali
def test_members_that_only_the_decoder_finds_bad_are_replaced(tmp_path):
    """Their header is good and their end mark is there: nothing shows before decoding."""
    members = []
    damaged = set(range(5, 60, 9))
    for number in range(60):
        members += sample_members(number)
        if number in damaged:
            members[-3] = (members[-3][0], without_tables(jpeg(number)))
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    options = {"train_data": str(tmp_path), "train_num_samples": 48, "workers": 1}
    seen = {}
    for decoder in ("dali", "pillow"):
        loader = build(decoder=decoder, **options).train
        for epoch in range(2):
            batches = [batch for batch, _ in epoch_of(loader, epoch)]
            assert [len(batch) for batch in batches] == [4] * 12
            seen[decoder, epoch] = batches
            assert not {n for batch in batches for n in batch} & damaged
        assert loader.bad.counts[BAD_PICTURE] >= len(damaged)
        loader.close()
    # the order is the source's whoever decodes; DALI's good ones wait for the next batch
    for epoch in range(2):
        assert seen["dali", epoch] == seen["pillow", epoch]


def test_faults_of_shards_cost_their_samples_only(tmp_path, caplog):
    paths = write_shards(tmp_path, [8, 8, 8])
    paths[1].write_bytes(paths[1].read_bytes()[:6000])  # cut short
    paths[2].unlink()  # missing
    (tmp_path / "0003.tar").write_bytes(
        tar_bytes([("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("b.txt", b""), *sample_members(40)])
    )
    options = {"train_data": f"{tmp_path}/{{0000..0003}}.tar", "train_num_samples": 12}
    loader = build(workers=1, **options).train
    batches = list(loader.epoch(0))
    loader.close()
    assert len(batches) == 3
    assert loader.bad.counts == {BAD_SHARD: 1, CUT_SHARD: 1, NO_CAPTION: 1, EMPTY_CAPTION: 1}
    assert loader.bad.dropped == 1
    log = "\n".join(record.getMessage() for record in caplog.records)
    for word in (
        "Handling webdataset error (",
        "Ignoring.",
        "0001.tar",
        "byte",
        "0002.tar",
        "0003.tar/a",
    ):
        assert word in log


@pytest.mark.parametrize(
    ("workers", "resampled", "decoder"),
    [(0, False, "pillow"), (1, True, "pillow"), (2, False, "pillow"), (1, False, "dali")],
)
def test_captions_under_another_name_end_the_run_in_seconds_with_the_names(
    tmp_path, workers, resampled, decoder
):
    if decoder == "dali" and (reason := decode_dali.available()):
        pytest.skip(reason)
    for shard in range(2):
        members = [m for i in range(1100) for m in ((f"{i}.jpg", b"x"), (f"{i}.caption", b"y"))]
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(members))
    options = {"train_data": str(tmp_path), "train_num_samples": 10**6, "decoder": decoder}
    loader = build(workers=workers, dataset_resampled=resampled, **options).train
    started = time.monotonic()
    with pytest.raises(DataError, match=r"--train-data .*no caption in .*caption, jpg") as caught:
        list(loader.epoch(0))
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    loader.close()


def test_pictures_none_of_which_decodes_end_the_run(tmp_path):
    members = [m for i in range(30) for m in ((f"{i}.jpg", b"junk"), (f"{i}.txt", b"y"))]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    data = build(train_data=str(tmp_path), val_data=str(tmp_path), train_num_samples=100, workers=1)
    with pytest.raises(DataError, match=r"among 30 samples; .*unreadable picture in 0\.tar/"):
        list(data.train.epoch(0))
    with pytest.raises(
        DataError, match=r"--val-data .*nothing to evaluate on .*unreadable picture: 30"
    ):
        list(data.val)


def test_too_large_a_part_of_bad_samples_ends_the_run_at_the_end_of_an_epoch(tmp_path):
    members = [m for i in range(40) for m in sample_members(i)]
    members += [m for i in range(10) for m in ((f"b{i}.jpg", b"junk"), (f"b{i}.txt", b"y"))]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    options = {"train_data": str(tmp_path), "train_num_samples": 40, "workers": 1}
    for share in (0.2, 0.19):
        loader = build(max_bad_fraction=share, **options).train
        given = []
        if share == 0.2:
            given += loader.epoch(0)
        else:
            with pytest.raises(DataError, match=r"10 of the first 50 samples are bad.* 0\.19 \("):
                given.extend(loader.epoch(0))
        assert len(given) == 10
        loader.close()

"""A run that goes on from a position sees what the uninterrupted one would have seen, byte for byte."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data import decode_dali, shards
from fastclip.data.bad_samples import BAD_PICTURE, CHANGED_DATA
from fastclip.data.batch import EncodedBatch
from fastclip.data.decode_pillow import TrainDecoder
from fastclip.data.draws import unstack
from fastclip.data.image_header import BadImage
from fastclip.data.position import DataPosition
from fastclip.data.worker import stack_images
from tests.data.loaders import build, needs_dali, numbers
from tests.data.pictures import encode, smooth
from tests.data.shard_files import fresh_seed, jpeg, sample_members, tar_bytes, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

Given = list[tuple[list[int], bytes]]


class Reader:
    """One rank's loader, and what it has given."""

    def __init__(
        self,
        options: dict[str, Any],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        left: DataPosition | None = None,
    ) -> None:
        self.loader = build(seed, rank, world_size, left=left, **options).train
        assert self.loader is not None

    def read(self, epoch: int, count: int | None = None) -> Given:
        batches = itertools.islice(self.loader.epoch(epoch), count)
        return [(numbers(texts), images.numpy().tobytes()) for images, texts in batches]


class PillowAsDali:
    """Decodes whole batches in the main process as DALI does, but without its threads, which a later test's loader
    processes would be forked beside."""

    def __init__(self, preprocess: PreprocessConfig, *_: object, fast_resize: bool) -> None:
        self._decode = TrainDecoder(preprocess.size, fast_resize=fast_resize)

    def __call__(self, batch: EncodedBatch) -> torch.Tensor:
        images, bad = [], {}
        for index, draw in enumerate(unstack(batch.draws)):
            start, end = batch.offsets[index : index + 2].tolist()
            try:
                images.append(self._decode(batch.encoded[start:end].numpy().tobytes(), draw))
            except BadImage as error:
                bad[index] = error.cause
        if bad:
            raise decode_dali.BadImages(bad)
        return stack_images(images)


def saved(readers: list[Reader]) -> DataPosition:
    """Where these ranks are, as it comes back from a file."""
    position = readers[0].loader.position_of_run([r.loader.position for r in readers])
    return DataPosition.from_plain(json.loads(json.dumps(position.as_plain())))


def damaged_png(number: int) -> bytes:
    """A picture whose header is good and whose data is not: nothing shows before decoding."""
    data = bytearray(encode(smooth(64, 64, number), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    return bytes(data)


def dirty_shards(folder: Path, counts: list[int], rng: random.Random) -> None:
    """Some samples without a caption, some with a cut picture, some that only a decoder finds bad."""
    first = 0
    for shard, count in enumerate(counts):
        members = []
        for number in range(first, first + count):
            jpg, txt, other = sample_members(number)
            fault = rng.random()
            if fault < 0.08:
                members += [jpg, other]
            elif fault < 0.16:
                members += [(jpg[0], jpeg(number)[:-40]), txt]
            elif fault < 0.3:
                members += [(jpg[0].replace(".jpg", ".png"), damaged_png(number)), txt]
            else:
                members += [jpg, txt, other]
        first += count
        (folder / f"{shard:04d}.tar").write_bytes(tar_bytes(members))


def dirty_csv(folder: Path, count: int, rng: random.Random) -> str:
    lines = ["filepath\ttitle"]
    for number in range(count):
        picture = folder / f"{number}.jpg"
        if rng.random() < 0.9:
            picture.write_bytes(jpeg(number) if rng.random() < 0.9 else damaged_png(number))
        lines.append(f"{picture}\tcaption {number}")
    (folder / "data.csv").write_text("\n".join(lines))
    return str(folder / "data.csv")


@pytest.mark.parametrize(
    ("kind", "decoder", "workers", "ranks"),
    [
        ("shards", "pillow", 0, 1),
        ("shards", "pillow", 3, 1),
        ("shards", "in main process", 1, 1),
        ("shards", "in main process", 3, 2),
        pytest.param("shards", "dali", 0, 1, marks=needs_dali),
        ("resampled", "pillow", 2, 2),
        ("resampled", "in main process", 3, 1),
        ("csv", "pillow", 2, 2),
        ("csv", "in main process", 3, 1),
    ],
)
def test_the_rest_of_an_epoch_is_that_of_the_run_that_was_left(
    tmp_path, kind, decoder, workers, ranks, monkeypatch
):
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE", 9)
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE_INITIAL", 5)
    seed = fresh_seed()
    rng = random.Random(seed)
    if kind == "csv":
        options = {"train_data": dirty_csv(tmp_path, 70 * ranks, rng)}
    else:
        dirty_shards(tmp_path, [18, 5, 16, 21, 17, 16], rng)
        options = {"train_data": str(tmp_path), "train_num_samples": 70 * ranks}
    if decoder == "in main process":
        monkeypatch.setattr(decode_dali, "available", lambda: None)
        monkeypatch.setattr(decode_dali, "DaliTrainDecoder", PillowAsDali)
        decoder = "dali"
    options |= {
        "decoder": decoder,
        "workers": workers,
        "dataset_resampled": kind == "resampled",
        "augment": AugmentConfig(scale=(0.4, 1.0)),
    }
    rank = rng.randrange(ranks)

    def reader(left: DataPosition | None = None) -> Reader:
        return Reader(options, seed=seed, rank=rank, world_size=ranks, left=left)

    straight = reader()
    whole = straight.read(1), straight.read(2)
    counts = straight.loader.counts()
    straight.loader.close()

    for count in rng.sample(range(1, len(whole[0])), 2):
        left = reader()
        assert left.read(1, count) == whole[0][:count]
        position = saved([left] * ranks)
        half_way = left.loader.counts()
        left.loader.close()
        resumed = reader(position)
        resumed.loader.load_counts(half_way)
        assert resumed.loader.position == position.ranks[rank]
        assert resumed.read(1) == whole[0][count:], count
        assert resumed.read(2) == whole[1]
        assert resumed.loader.counts()["bad"]["counts"] == counts["bad"]["counts"]
        assert resumed.loader.bad.kept == counts["bad"]["kept"]
        resumed.loader.close()
    assert counts["bad"]["counts"][BAD_PICTURE] > 0


def test_an_epoch_left_at_its_end_gives_nothing_more(tmp_path):
    write_shards(tmp_path, [16])
    options = {"train_data": str(tmp_path), "train_num_samples": 16, "workers": 1}
    left = Reader(options)
    assert len(left.read(0)) == 4
    left.loader.close()
    resumed = Reader(options, left=saved([left]))
    assert resumed.read(0) == []
    assert len(resumed.read(1)) == 4
    resumed.loader.close()


@pytest.mark.parametrize("kind", ["shards", "csv"])
@pytest.mark.parametrize(("old", "new"), [((1, 2), (2, 1)), ((2, 2), (1, 3)), ((1, 3), (2, 2))])
def test_another_division_meets_each_sample_of_the_epoch_once(
    tmp_path, kind, old, new, monkeypatch
):
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE", 9)
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE_INITIAL", 5)
    seed = fresh_seed()
    rng = random.Random(seed)
    if kind == "csv":
        # full batches for every loader of both divisions, so that none is dropped at the end
        lines = ["filepath\ttitle"]
        for number in range(96):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
            lines.append(f"{tmp_path / f'{number}.jpg'}\tcaption {number}")
        (tmp_path / "data.csv").write_text("\n".join(lines))
        options = {"train_data": str(tmp_path / "data.csv")}
    else:
        write_shards(tmp_path, [8] * 12)
        options = {"train_data": str(tmp_path), "train_num_samples": 96}
    # Such that every loader of the new division has as many full batches left: else some repeat, and some drop, a few.
    count = 48 if new == (2, 2) else rng.choice([24, 48, 72])
    before = [
        Reader(options | {"workers": old[1]}, seed=seed, rank=r, world_size=old[0])
        for r in range(old[0])
    ]
    seen = [n for r in before for batch, _ in r.read(0, count // 4 // old[0]) for n in batch]
    position = saved(before)
    for r in before:
        r.loader.close()
    after = [
        Reader(options | {"workers": new[1]}, seed=seed, rank=r, world_size=new[0], left=position)
        for r in range(new[0])
    ]
    assert any("divided anew" in line for line in after[0].loader.describe())
    rest = [r.read(0) for r in after]
    assert len({len(batches) for batches in rest}) == 1
    seen += [n for batches in rest for batch, _ in batches for n in batch]
    assert sorted(seen) == list(range(96))
    fresh = Reader(options | {"workers": new[1]}, seed=seed, world_size=new[0])
    assert after[0].read(1) == fresh.read(1)
    for r in [*after, fresh]:
        r.loader.close()


def test_an_inherited_epoch_can_itself_be_left_and_inherited(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SAMPLE_SHUFFLE_INITIAL", 5)
    write_shards(tmp_path, [8] * 12)
    options = {"train_data": str(tmp_path), "train_num_samples": 96}
    seen: list[int] = []
    position = None
    for workers, count in ((2, 6), (3, 6), (3, 3), (1, None)):
        reader = Reader(options | {"workers": workers}, left=position)
        seen += [n for batch, _ in reader.read(0, count) for n in batch]
        position = saved([reader])
        reader.loader.close()
    assert sorted(seen) == list(range(96))


def test_changed_data_and_new_draws_are_said(tmp_path):
    write_shards(tmp_path, [8, 8])
    options = {"train_data": str(tmp_path), "train_num_samples": 16, "workers": 1}
    left = Reader(options)
    left.read(0, 2)
    left.loader.close()
    # the same names, other samples
    for path, number in zip(sorted(tmp_path.glob("*.tar")), (100, 200), strict=True):
        members = [m for i in range(number, number + 8) for m in sample_members(i)]
        path.write_bytes(tar_bytes(members))
    same_names = Reader(options, left=saved([left]))
    assert len(same_names.read(0)) == 2
    same_names.loader.close()
    assert same_names.loader.bad.counts == {CHANGED_DATA: 1}
    # other names
    write_shards(tmp_path, [8, 8, 8])
    other = Reader(options, left=saved([left]))
    assert "may be met again" in other.loader.describe()[-2]
    assert len(other.read(0)) == 2
    other.loader.close()
    drawn = Reader(options | {"dataset_resampled": True})
    first = drawn.read(0, 2)
    drawn.loader.close()
    more = Reader(options | {"dataset_resampled": True, "workers": 2}, left=saved([drawn]))
    assert "drawn anew" in more.loader.describe()[-2]
    assert first[0] not in more.read(0)
    more.loader.close()


def test_ranks_of_uneven_shards_give_as_many_batches_and_count_what_they_repeat(tmp_path):
    write_shards(tmp_path, [50, 19])
    options = {"train_data": str(tmp_path), "train_num_samples": 69, "workers": 1}
    readers = [Reader(options, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(3):
        batches = [[n for batch, _ in r.read(epoch) for n in batch] for r in readers]
        assert len(batches[0]) == len(batches[1]) == 36
        repeated = [r.loader.position.repeated * 4 for r in readers]
        # the shards change ranks with the epoch's order; 19 samples fill 4 batches, and again, and once more
        assert sorted(repeated) == [0, 36 - 16]
        short = repeated.index(20)
        assert len(set(batches[short])) == 19
        assert len(set(batches[1 - short])) == 36
    for r in readers:
        r.loader.close()

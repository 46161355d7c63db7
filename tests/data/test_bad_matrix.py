"""Whatever is mixed into good samples: each good one is seen exactly once, batches are full, counts are exact."""

from __future__ import annotations

import itertools
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastclip.data import shard_opener, shards
from fastclip.data.bad_samples import BAD_SHARD, CUT_SHARD, LINES_PER_CAUSE, BadSampleNotes
from fastclip.data.shards import Position, TrainShards
from tests.data import bad_pictures
from tests.data.bad_data_page import PAGE, page
from tests.data.bad_kinds import MAX_MEMBER, Kind, all_kinds
from tests.data.loaders import DECODERS, TOKENIZER, build, numbers
from tests.data.shard_files import fresh_seed, sample_members, tar_bytes, write_shards
from tests.data.test_shards import all_gone

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
BATCH = 8


def mixed(
    rng: random.Random, good: int, bad: list[str]
) -> tuple[bytes, Counter[str], Counter[str]]:
    """A shard of `good` good samples and one of each of `bad`, shuffled; the captions and causes that must come."""
    kinds = all_kinds()
    samples: list[tuple[int, Kind | None]] = [(number, None) for number in range(good)]
    samples += [(good + place, kinds[name]) for place, name in enumerate(bad)]
    rng.shuffle(samples)
    members, causes, captions = [], Counter(), Counter()
    for number, kind in samples:
        members += sample_members(number) if kind is None else kind.members(number)
        causes.update(() if kind is None else kind.causes)
        if kind is None:
            captions[f"caption {number}"] += 1
    return tar_bytes(members), captions, causes


def last_caption(shard: Path, good: Counter[str]) -> str:
    """Of the sample that a loader's first epoch reads last; "" where it is none of `good`."""
    source = TrainShards("", (str(shard),), seed=0, rank=0, world_size=1)
    *_, sample = source.read(Position(epoch=0, worker=0, workers=1, turn=0), BadSampleNotes(""))
    return sample.caption if sample.caption in good else ""


def run(folder, decoder, rng, good, bad, batch=BATCH):
    """One epoch over such a shard: its log lines, and a check of all that must hold."""
    used = good + sum(all_kinds()[name].used for name in bad)
    assert used % batch == 0
    # The epoch is over with its last good sample: a bad one that comes after it is not met, and not counted.
    last = ""
    while not last:
        shard, captions, causes = mixed(rng, good, bad)
        (folder / "0.tar").write_bytes(shard)
        last = last_caption(folder / "0.tar", captions)
    options = {"train_data": str(folder), "train_num_samples": used, "decoder": decoder}
    loader = build(batch_size=batch, workers=1, **options).train
    try:
        batches = list(loader.epoch(0))
    finally:
        loader.close()
    assert [len(texts) for _, texts in batches] == [batch] * (used // batch)
    assert all(images.shape == (batch, 16, 20, 3) for images, _ in batches)
    seen = Counter(
        TOKENIZER.decode(row[row > 0][1:-1].tolist()).strip()
        for _, texts in batches
        for row in texts
    )
    spelled = {"".join(text.split()): count for text, count in seen.items()}
    assert {k: spelled.get("".join(k.split())) for k in captions} == captions
    assert loader.bad.counts == causes
    assert loader.bad.kept == used
    return loader


def padded(kinds: list[str], share: float, batch: int = BATCH) -> int:
    """How many good samples make `kinds` at most that share, and all batches full."""
    used = sum(all_kinds()[name].used for name in kinds)
    good = round(len(kinds) * (1 / share - 1))
    return good + -(good + used) % batch


def test_there_are_enough_kinds():
    kinds = all_kinds()
    assert len(kinds) >= 60
    assert sum(kind.used == 0 for kind in kinds.values()) >= 25


def test_the_page_about_bad_data_is_up_to_date():
    text = PAGE.read_text()
    assert text == page(text), "run `python -m tests.data.bad_data_page`"


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_kind_at_five_percent(tmp_path, decoder, monkeypatch, caplog):
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", MAX_MEMBER)
    kinds = [*all_kinds()]
    # What the decoder alone finds is made up for by later samples: a batch of it leaves whole batches at the end.
    if decoder == "dali":
        kinds += [*bad_pictures.found_by_the_decoder_alone()] * (BATCH - 1)
    rng = random.Random(fresh_seed())
    with caplog.at_level(logging.WARNING):
        run(tmp_path, decoder, rng, padded(kinds, 0.05), kinds)
    lines = Counter(
        r.getMessage().split("(")[1].split(" in ")[0]
        for r in caplog.records
        if "Handling" in r.getMessage()
    )
    assert 1 <= max(lines.values(), default=0) <= LINES_PER_CAUSE
    assert all(len(r.getMessage()) < 500 and r.getMessage().isprintable() for r in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_every_rate(tmp_path, decoder, share, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", MAX_MEMBER)
    rng = random.Random(fresh_seed())
    count = 16 if share == 0.001 else 160
    hard = [*bad_pictures.found_by_the_decoder_alone()]
    others = [name for name in all_kinds() if name not in hard]
    kinds = hard * BATCH + list(
        itertools.islice(itertools.cycle(rng.sample(others, 60)), count - BATCH)
    )
    run(tmp_path, decoder, rng, padded(kinds, share), kinds)


def test_every_kind_of_bad_shard_costs_itself(tmp_path, monkeypatch):
    """Each good sample of the others is seen once; nothing is waited for without end, no program stays."""
    monkeypatch.setattr(shard_opener, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(shard_opener, "BACKOFF_SECONDS", 0.01)
    good = write_shards(tmp_path / "good", [16, 16])
    bad = tmp_path / "bad"
    bad.mkdir()
    damaged = bytearray(tar_bytes(m for n in range(100, 110) for m in sample_members(n)))
    damaged[100:600] = b"\xff" * 500
    (bad / "damaged.tar").write_bytes(damaged)
    (bad / "empty.tar").write_bytes(b"")
    (bad / "junk.tar").write_bytes(b"<html>404</html>" * 100)
    (bad / "gz.tar").write_bytes(tar_bytes(sample_members(32), "gz")[:60])
    (bad / "folder.tar").mkdir()
    (bad / "loop.tar").symlink_to(bad / "loop.tar")
    os.mkfifo(bad / "fifo.tar")
    started = tmp_path / "started"
    urls = [
        *map(str, [*good, *sorted(bad.iterdir()), bad / "missing.tar"]),
        "http://127.0.0.1:9/none.tar",
        f"http://127.0.0.1:9/a';touch {tmp_path}/X;'.tar",
        f"pipe:echo $$ >> {started}; exit 3",
        f"pipe:echo $$ >> {started}; sleep 600",
        f"pipe:echo $$ >> {started}; head -c 100 {good[0]}; exit 1",
    ]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    options = {"train_data": str(tmp_path / "list.txt"), "allow_pipe_from_files": True}
    loader = build(batch_size=BATCH, workers=1, train_num_samples=32, **options).train
    try:
        batches = list(loader.epoch(0))
    finally:
        loader.close()
    assert sorted(n for _, texts in batches for n in numbers(texts)) == [*range(32)]
    counts = loader.bad.counts
    assert counts.keys() <= {BAD_SHARD, CUT_SHARD}
    assert sum(counts.values()) == len(urls) - 2
    assert not (tmp_path / "X").exists()
    groups = [int(line) for line in started.read_text().split()]
    assert len(groups) == 3 + 1 + 1  # the one that fails at once is tried three times
    assert all(all_gone(group) for group in groups)


def test_a_decompression_bomb_is_never_decoded():
    """Refused from its header: 50 MB more than a small picture needs, for 7.5 GB of pixels."""
    code = """
import resource
from fastclip.data.image_header import BadImage, decode_rgb, read_header
from tests.data.bad_pictures import unusable_pictures
from tests.data.shard_files import jpeg
bombs = [make(1) for name, make in unusable_pictures().items() if "bomb" in name]
decode_rgb(jpeg(0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    for look in (read_header, decode_rgb):
        try:
            look(bomb)
        except BadImage as error:
            assert "pixels" in error.cause
        else:
            raise AssertionError("a bomb was taken")
print(len(bombs), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bombs, kib = map(int, done.stdout.split())
    assert bombs == 3
    assert kib < 50 * 1024

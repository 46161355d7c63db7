"""Reading shards promises: the reference's order and grouping, undecoded, and nothing lost but what is bad."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import webdataset as wds
from open_clip_train import data as reference
from webdataset.tariterators import tar_file_iterator

from fastclip.data import shard_opener, shards
from fastclip.data.bad_samples import (
    BAD_CAPTION,
    BAD_SHARD,
    CUT_SHARD,
    EMPTY_CAPTION,
    LARGE_MEMBER,
    NO_CAPTION,
    NO_PICTURE,
    BadSampleNotes,
)
from fastclip.data.shard_opener import open_shard
from fastclip.data.shards import (
    EvalShards,
    Position,
    RawSample,
    ResampledShards,
    TrainShards,
    read_shards,
    shuffle_samples,
)
from fastclip.errors import DataError
from tests.data.shard_files import fresh_seed, jpeg, sample_members, tar_bytes, write_shards
from tests.live_processes import live_processes


def read(*paths: Path | str) -> tuple[list[RawSample], BadSampleNotes]:
    notes = BadSampleNotes("--train-data")
    notes.good = 1  # as if a sample had been good before: these tests are not about hopeless data
    return list(read_shards(((str(path), "") for path in paths), notes)), notes


def reference_samples(data: bytes) -> list[tuple[str, bytes, bytes]]:
    """(key, picture, caption) as the reference's grouping, filter and renaming leave them."""
    grouped = reference.group_by_keys_nothrow(
        dict(file, __url__="u") for file in tar_file_iterator(io.BytesIO(data))
    )
    kept = (sample for sample in grouped if reference.filter_no_caption_or_no_image(sample))
    return [
        (s["__key__"], next(s[k] for k in ("jpg", "png", "jpeg", "webp") if k in s), s["txt"])
        for s in kept
    ]


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 499, 1201, 2500])
def test_each_workers_shards_are_the_references(count, monkeypatch):
    rng = random.Random(fresh_seed())
    urls = tuple(f"{i:05d}.tar" for i in range(count))
    for _ in range(4):
        seed, epoch = rng.randrange(1000), rng.randrange(50)
        world, workers = rng.randint(1, 4), rng.randint(1, 4)
        for rank, worker in itertools.product(range(world), range(workers)):
            for name, value in zip(
                ("RANK", "WORLD_SIZE", "WORKER", "NUM_WORKERS"),
                (rank, world, worker, workers),
                strict=True,
            ):
                monkeypatch.setenv(name, str(value))
            shuffled = reference.detshuffle2(2000, 500, seed, reference.SharedEpoch(epoch))
            stages = [
                wds.SimpleShardList(list(urls)),
                shuffled,
                wds.split_by_node,
                wds.split_by_worker,
            ]
            expected = [item["url"] for item in wds.DataPipeline(*stages)]
            source = TrainShards("x", urls, seed=seed, rank=rank, world_size=world)
            assert source.order(Position(epoch, worker, workers, 0)) == expected
            # reference: a worker that runs out starts again with the same shards
            assert source.order(Position(epoch, worker, workers, 3)) == expected


def test_workers_of_all_ranks_share_the_shards_without_overlap():
    urls = tuple(map(str, range(23)))
    orders = [
        TrainShards("x", urls, seed=1, rank=r, world_size=3).order(Position(4, w, 2, 0))
        for r in range(3)
        for w in range(2)
    ]
    assert sorted(itertools.chain(*orders)) == sorted(urls)


def test_resampled_shards_follow_their_weights_and_nothing_else():
    seed = fresh_seed()
    urls, weights = ("a", "b", "c"), (1.0, 3.0, 0.5)

    def draws(rank=0, epoch=0, worker=0, weights=weights, n=30_000):
        source = ResampledShards("x", urls, weights, seed=seed, rank=rank)
        return list(itertools.islice(source.order(Position(epoch, worker, 4, 0)), n))

    counts = Counter(draws())
    for url, weight in zip(urls, weights, strict=True):
        assert abs(counts[url] / 30_000 - weight / 4.5) < 0.02
    assert all(abs(n / 30_000 - 1 / 3) < 0.02 for n in Counter(draws(weights=None)).values())
    assert draws(n=50) == draws(n=50)
    others = [draws(rank=1, n=50), draws(epoch=1, n=50), draws(worker=1, n=50), draws(n=50)]
    assert len({tuple(other) for other in others}) == 4


def test_a_sample_drawn_again_is_marked_so_that_its_augmentation_differs(tmp_path):
    (path,) = write_shards(tmp_path, [3])
    source = ResampledShards("x", (str(path),), None, seed=0, rank=2)
    notes = BadSampleNotes("x")
    samples = list(itertools.islice(source.read(Position(0, 1, 4, 0), notes), 9))
    assert len({(s.key, s.turn) for s in samples}) == 9
    plain = TrainShards("x", (str(path),), seed=0, rank=0, world_size=1)
    turns = [{s.turn for s in plain.read(Position(0, 0, 1, t), notes)} for t in range(3)]
    assert turns == [{""}, {"1"}, {"2"}]


def test_evaluation_reads_every_sample_once_in_order(tmp_path):
    paths = tuple(map(str, write_shards(tmp_path, [3, 2, 4, 1])))
    notes = BadSampleNotes("x")
    (one,) = (list(EvalShards("x", paths).read(Position(0, 0, 1, 0), notes)),)
    assert [s.caption for s in one] == [f"caption {i}" for i in range(10)]
    two = [list(EvalShards("x", paths).read(Position(0, w, 2, 0), notes)) for w in range(2)]
    assert [s.caption for s in two[0]] == [f"caption {i}" for i in (0, 1, 2, 5, 6, 7, 8)]
    assert sorted(s.key for w in two for s in w) == sorted(s.key for s in one)


# --- shuffle -------------------------------------------------------------------------------------


def sample(number: int, size: int = 10) -> RawSample:
    return RawSample(bytes(size), str(number), str(number), "")


@pytest.mark.parametrize("count", [0, 1, 5, 100, 3000])
def test_the_shuffle_loses_nothing_and_depends_on_its_generator_alone(count):
    seed = fresh_seed()

    def run(seed):
        samples = (sample(i) for i in range(count))
        return [int(s.key) for s in shuffle_samples(samples, random.Random(seed), 500, 100)]

    assert sorted(run(seed)) == list(range(count))
    assert run(seed) == run(seed)
    if count >= 100:
        assert run(seed) != run(seed + 1) != list(range(count))


def test_the_order_of_samples_differs_by_seed_epoch_rank_worker_and_turn(tmp_path):
    paths = tuple(str(path) for path in write_shards(tmp_path, [40]))

    def order(seed=0, rank=0, epoch=0, worker=0, turn=0):
        source = ResampledShards("x", paths, None, seed=seed, rank=rank)  # one shard for all
        samples = source.read(Position(epoch, worker, 4, turn), BadSampleNotes("x"))
        return [s.key for s in itertools.islice(samples, 40)]

    assert order() == order()
    changed = [order(), order(1), order(0, 1), order(0, 0, 1), order(0, 0, 0, 1)]
    changed.append(order(0, 0, 0, 0, 1))
    assert len({tuple(keys) for keys in changed}) == 6


def test_the_shuffle_mixes_as_far_as_webdatasets():
    count, size, initial = 4000, 500, 100

    def reach(order):  # how far samples move from where they came
        return sum(abs(place - number) for place, number in enumerate(order)) / count

    ours = [
        int(s.key)
        for s in shuffle_samples((sample(i) for i in range(count)), random.Random(1), size, initial)
    ]
    theirs = list(wds.shuffle(size, initial=initial, rng=random.Random(1))(iter(range(count))))
    assert abs(reach(ours) / reach(theirs) - 1) < 0.1


def test_the_shuffle_holds_no_more_bytes_than_it_may():
    drawn = 0

    def counted():
        nonlocal drawn
        for i in range(1000):
            drawn += 1
            yield sample(i, size=1000)

    given = shuffle_samples(counted(), random.Random(0), 5000, 1000, max_bytes=50_000)
    most = max(drawn - number for number, _ in enumerate(given))
    assert most <= 51
    assert drawn == 1000


# --- grouping ------------------------------------------------------------------------------------


def random_archive(rng: random.Random) -> bytes:
    members, key = [], "k0"
    for number in range(rng.randint(0, 40)):
        if rng.random() < 0.3:  # mostly the members of a sample stand together
            folder = rng.choice(["", "", "d/", "./", "a.b/", "__f__/"])
            key = folder + rng.choice(
                ["k1", "k1", "k2", "__meta__", "nodot", ".hidden", "x y", "é"]
            )
        suffix = rng.choice(
            [
                ".jpg",
                ".JPG",
                ".png",
                ".jpeg",
                ".webp",
                ".txt",
                ".txt",
                ".TXT",
                ".json",
                ".seg.jpg",
                "",
                ".cls",
            ]
        )
        content = rng.randbytes(5) if rng.random() < 0.1 else f"{number}".encode()
        members.append((key + suffix, content))
    return tar_bytes(members)


def test_grouping_is_the_references_on_random_archives(tmp_path):
    rng = random.Random(fresh_seed())
    path = tmp_path / "0.tar"
    seen = 0
    for _ in range(200):
        data = random_archive(rng)
        path.write_bytes(data)
        expected = []
        for key, image, caption in reference_samples(data):
            try:
                expected.append((f"0.tar/{key}", image, caption.decode()))
            except UnicodeDecodeError:
                continue  # the reference's decode stage drops it
        got, _ = read(path)
        assert [(s.key, s.image, s.caption) for s in got] == expected
        seen += len(got)
    assert seen > 100


def test_packed_archives_and_pipes_read_as_plain_ones(tmp_path):
    members = [m for i in range(5) for m in sample_members(i)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    plain, _ = read(tmp_path / "a.tar")
    assert len(plain) == 5
    for ending in ("gz", "bz2", "xz"):
        path = tmp_path / f"a.tar.{ending}"
        path.write_bytes(tar_bytes(members, ending))
        for url in (path, f"pipe:cat {path}", f"file://{path}"):
            packed, notes = read(url)
            assert [s[:2] for s in packed] == [s[:2] for s in plain]
            assert not notes.take().counts


def test_nothing_but_named_members_is_touched(tmp_path):
    """Pickles are not run, links and devices not followed, no file is written."""

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = tarfile.TarInfo("000001.txt")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard = tarfile.TarInfo("000002.txt")
    hard.type, hard.linkname = tarfile.LNKTYPE, "000000.txt"
    device = tarfile.TarInfo("000003.jpg")
    device.type = tarfile.CHRTYPE
    members = [
        ("000000.jpg", jpeg(0)),
        ("000000.txt", b"ok"),
        *[
            (f"000000.{s}", pickle.dumps(Bomb()))
            for s in ("pyd", "pickle", "pth", "npy", "cls", "json")
        ],
        ("000001.jpg", jpeg(1)),
        link,
        ("000002.jpg", jpeg(2)),
        hard,
        device,
        ("000003.txt", b"x"),
        ("../../up.jpg", jpeg(4)),
        ("../../up.txt", b"outside"),
        ("/abs.jpg", jpeg(5)),
        ("/abs.txt", b"absolute"),
    ]
    shard = tmp_path / "s" / "0.tar"
    shard.parent.mkdir()
    shard.write_bytes(tar_bytes(members))
    before = sorted(tmp_path.rglob("*"))
    samples, notes = read(shard)
    assert [s.caption for s in samples] == ["ok", "outside", "absolute"]
    assert notes.take().counts == {NO_CAPTION: 2, NO_PICTURE: 1}
    assert sorted(tmp_path.rglob("*")) == before


# --- what is bad ---------------------------------------------------------------------------------


def test_each_kind_of_bad_sample_is_dropped_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 5000)
    members = [
        *sample_members(0),
        ("a.jpg", jpeg(1)),  # no caption
        ("b.txt", b"no picture"),
        ("c.jpg", jpeg(2)),
        ("c.txt", b"\xff\xfe broken"),
        ("d.jpg", jpeg(3)),
        ("d.txt", b""),  # kept
        ("e.jpg", bytes(5001)),
        ("e.txt", b"large"),
        ("f.jpg", jpeg(4)),
        ("f.caption", b"under another name"),
        *sample_members(9),
    ]
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(members))
    samples, notes = read(path)
    assert [s.caption for s in samples] == ["caption 0", "", "caption 9"]
    report = notes.take()
    assert report.counts == {
        NO_CAPTION: 2,
        NO_PICTURE: 1,
        BAD_CAPTION: 1,
        EMPTY_CAPTION: 1,
        LARGE_MEMBER: 1,
    }
    assert notes.dropped == 5
    where = {event.where for event in report.events}
    assert where == {f"s.tar/{key}" for key in "abcdef"}
    (other,) = (event for event in report.events if event.where == "s.tar/f")
    assert "caption, jpg" in other.detail


def test_a_shard_cut_anywhere_gives_what_came_before_the_cut(tmp_path):
    """Also in a header, at a member's end, and through a pipe; the place is named."""
    rng = random.Random(fresh_seed())
    members = [m for i in range(6) for m in sample_members(i)]
    data = tar_bytes(members)
    last_header = max(i for i in range(0, len(data), 512) if data[i : i + 6] == b"000005")
    offsets = [rng.randrange(1, last_header) for _ in range(20)]
    offsets += [512 * rng.randrange(1, last_header // 512) for _ in range(5)]
    path, after = tmp_path / "cut.tar", write_shards(tmp_path / "next", [2])[0]
    for offset in offsets:
        path.write_bytes(data[:offset])
        # complete before the cut: picture and caption whole
        whole = 0
        for number in range(6):
            end = data.index(f"{number:06d}.txt".encode()) + 512 + len(f"caption {number}")
            whole += end <= offset
        for url in (path, f"pipe:cat {path}"):
            samples, notes = read(url, after)
            assert len(samples) == whole + 2, offset
            report = notes.take()
            assert sum(report.counts.values()) == 1, (offset, report)
            (event,) = report.events
            assert event.cause in (CUT_SHARD, BAD_SHARD)
            assert "cut.tar" in event.where
            if whole:
                assert event.cause == CUT_SHARD
                assert "byte" in event.detail


@pytest.mark.parametrize("content", [b"", b"not a tar" * 1000, b"\x1f\x8b\x08junk", bytes(100)])
def test_what_is_no_archive_is_skipped_and_named(tmp_path, content):
    bad, good = tmp_path / "bad.tar", write_shards(tmp_path / "good", [2])[0]
    bad.write_bytes(content)
    samples, notes = read(bad, tmp_path, tmp_path / "missing.tar", good)
    assert len(samples) == 2
    report = notes.take()
    assert report.counts == {BAD_SHARD: 3}
    assert [Path(e.where).name for e in report.events] == ["bad.tar", tmp_path.name, "missing.tar"]
    assert all("\n" not in e.detail for e in report.events)


def test_damage_in_the_middle_is_named_not_mistaken_for_the_end(tmp_path):
    data = bytearray(tar_bytes([m for i in range(3) for m in sample_members(i)]))
    header = data.index(b"000001.jpg")
    data[header : header + 512] = random.Random(0).randbytes(512)
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    samples, notes = read(path)
    assert [s.caption for s in samples] == ["caption 0"]
    assert notes.take().counts == {CUT_SHARD: 1}


def test_data_without_any_good_sample_ends_with_the_members_seen(tmp_path):
    members = [m for i in range(1200) for m in ((f"{i}.jpg", b"x"), (f"{i}.caption", b"y"))]
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(tar_bytes(members))
    notes = BadSampleNotes("--train-data x")
    urls = itertools.cycle([(f"{tmp_path}/a.tar", ""), (f"{tmp_path}/b.tar", "")])
    with pytest.raises(
        DataError, match=r"--train-data x: not one usable sample among 2,000 .*caption, jpg"
    ):
        list(read_shards(urls, notes))
    notes = BadSampleNotes("--train-data x")
    gone = ((f"{tmp_path}/gone.tar", "") for _ in itertools.count())
    with pytest.raises(DataError, match=r"among 32 shards.*gone\.tar"):
        list(read_shards(gone, notes))


def test_one_bad_shard_among_good_ones_does_not_end_the_run(tmp_path):
    members = [m for i in range(2500) for m in ((f"{i}.jpg", b"x"), (f"{i}.caption", b"y"))]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    good = write_shards(tmp_path / "good", [3])[0]
    notes = BadSampleNotes("x")
    samples = list(read_shards([(f"{tmp_path}/0.tar", ""), (str(good), "")], notes))
    assert len(samples) == 3
    assert notes.dropped == 2500


# --- programs ------------------------------------------------------------------------------------


def all_gone(group: int) -> bool:
    """Whether nobody is left of a process group that was killed; the system may take a moment to see to it."""
    deadline = time.monotonic() + 20
    while live_processes("group", group) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not live_processes("group", group)


def test_a_failing_command_is_tried_three_times_and_then_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_opener, "BACKOFF_SECONDS", 0.01)
    good = write_shards(tmp_path / "good", [2])[0]
    tries = tmp_path / "tries"
    samples, notes = read(f"pipe:echo >> {tries}; exit 7", good)
    assert len(samples) == 2
    assert tries.read_text().count("\n") == shard_opener.TRIES
    (event,) = notes.take().events
    assert event.cause == BAD_SHARD
    assert "status 7" in event.detail


def test_a_command_that_fails_half_way_costs_the_rest_of_its_shard(tmp_path):
    path = write_shards(tmp_path, [10])[0]
    half = path.stat().st_size // 2
    samples, notes = read(f"pipe:head -c {half} {path}; exit 1")
    assert 3 <= len(samples) <= 6
    (event,) = notes.take().events
    assert event.cause == CUT_SHARD
    assert "status 1" in event.detail


def test_a_silent_command_is_given_up_and_its_children_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_opener, "STALL_SECONDS", 0.3)
    good = write_shards(tmp_path / "good", [2])[0]
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    samples, notes = read(f"pipe:echo $$ > {pid_file}; sleep 1000 | cat", good)
    assert time.monotonic() - started < 5
    assert len(samples) == 2
    assert "nothing came for" in notes.take().events[0].detail
    assert all_gone(int(pid_file.read_text()))


def test_closing_early_kills_the_command(tmp_path):
    pid_file = tmp_path / "pid"
    stream = open_shard(f"pipe:echo $$ > {pid_file}; echo abc; sleep 1000 | cat")
    assert stream.read(4) == b"abc\n"
    group = int(pid_file.read_text())
    assert live_processes("group", group)
    stream.close()
    assert all_gone(group)


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "ftp"])
def test_addresses_never_reach_a_shell(scheme, tmp_path, monkeypatch):
    """A quote in an address ran code in the reference's webdataset."""
    ran = tmp_path / "ran"
    url = f"{scheme}://x/a';touch {ran};'.tar"
    command = shard_opener.command_for(url)
    assert isinstance(command, list)
    assert url in command
    # what is started is this very program, given the address as one argument
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("curl", "aws", "gsutil"):
        (fake / name).write_text(
            f'#!/bin/sh\nfor a in "$@"; do echo "$a" >> {tmp_path}/args; done\nexit 3\n'
        )
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    monkeypatch.setattr(shard_opener, "BACKOFF_SECONDS", 0)
    with pytest.raises(OSError, match="status 3"):
        open_shard(url)
    assert url in (tmp_path / "args").read_text().splitlines()
    assert not ran.exists()


def test_a_missing_program_is_a_bad_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    samples, notes = read("gs://bucket/a.tar")
    assert samples == []
    assert notes.take().counts == {BAD_SHARD: 1}


def test_http_shards_are_read(tmp_path):
    path = write_shards(tmp_path, [4])[0]
    code = (
        "import http.server,sys;s=http.server.HTTPServer(('127.0.0.1',0),"
        "http.server.SimpleHTTPRequestHandler);print(s.server_port,flush=True);s.serve_forever()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        samples, notes = read(
            f"http://127.0.0.1:{port}/{path.name}", f"http://127.0.0.1:{port}/no.tar"
        )
        assert [s.caption for s in samples] == [f"caption {i}" for i in range(4)]
        assert samples[0].key == "0000.tar/000000"
        assert notes.take().counts == {BAD_SHARD: 1}
    finally:
        server.kill()
        server.wait()

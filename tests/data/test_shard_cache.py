"""`--shard-cache`: what is read from afar once is read here from then on, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastclip.config.train_config import DataConfig
from fastclip.data import shard_cache
from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.shard_cache import ShardCache
from fastclip.data.shard_opener import open_shard
from fastclip.data.shards import read_shards
from fastclip.errors import UserError
from tests.data.loaders import build, epoch_of
from tests.data.shard_files import tar_bytes, write_shards

STEP = 4096  # bytes; a shard of four samples has about 20,000


class Server(ThreadingHTTPServer):
    """Serves a folder and counts what it is asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.asked: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def keys(urls: list[str], cache: ShardCache) -> list[str]:
    notes = BadSampleNotes("shards")
    found = [s.key for s in read_shards([(url, "") for url in urls], notes, cache.open)]
    assert not notes.dropped
    assert not notes.take().counts
    return found


def copies(folder: Path) -> list[str]:
    """Without what stands before them for every address."""
    return sorted(
        re.sub("[0-9a-f]{32}-", "", path.name)
        for path in folder.iterdir()
        if path.name != shard_cache._LOCK
    )


def cache_of(folder: Path, urls: list[str], max_bytes: int = 10**9) -> ShardCache:
    cache = ShardCache(folder / "cache", max_bytes, urls)
    cache.prepare()
    return cache


@pytest.mark.parametrize("resampled", [False, True])
def test_a_run_fetches_each_shard_once_and_sees_the_same(tmp_path, server, resampled):
    write_shards(tmp_path / "d", [8, 8, 8])
    url, folder = server.url("d/{0000..0002}.tar"), tmp_path / "cache"
    options = {
        "train_data": url,
        "train_num_samples": 24,
        "dataset_type": "webdataset",
        "dataset_resampled": resampled,
    }
    plain = [epoch_of(build(**options).train, epoch) for epoch in range(2)]
    kept = build(**options, shard_cache=str(folder))
    server.asked.clear()
    assert [epoch_of(kept.train, epoch) for epoch in range(2)] == plain
    if not resampled:
        assert sorted(server.asked) == [f"/d/{i:04d}.tar" for i in range(3)]
        assert copies(folder) == ["0000.tar", "0001.tar", "0002.tar"]
        assert sorted(p.read_bytes() for p in folder.glob("*.tar")) == sorted(
            p.read_bytes() for p in (tmp_path / "d").iterdir()
        )
    asked = len(server.asked)
    again = build(**options, shard_cache=str(folder))
    assert [epoch_of(again.train, epoch) for epoch in range(2)] == plain
    assert len(server.asked) == asked or resampled
    here = [s for s in again.train.describe() if s.startswith("shard cache")]
    assert resampled or "3 of 3 remote shards are there" in here[0]


def test_validation_shards_are_kept_beside_those_of_training(tmp_path, server):
    write_shards(tmp_path / "d", [8])
    write_shards(tmp_path / "v", [4])
    room = (tmp_path / "d/0000.tar").stat().st_size + (tmp_path / "v/0000.tar").stat().st_size
    loaders = build(
        train_data=server.url("d/0000.tar"),
        train_num_samples=8,
        val_data=server.url("v/0000.tar"),
        shard_cache=str(tmp_path / "cache"),
        shard_cache_gb=(room + shard_cache._STEP_BYTES) / 1e9,
    )
    for _ in range(2):
        assert len(epoch_of(loaders.train, 0)) == 2
        assert len(list(loaders.val)) == 1
    assert sorted(server.asked) == ["/d/0000.tar", "/v/0000.tar"]


def test_addresses_that_end_alike_are_two_and_what_is_local_is_not_copied(tmp_path, server):
    write_shards(tmp_path / "a", [1])
    (second,) = write_shards(tmp_path / "b", [2])
    second.write_bytes(tar_bytes([("b.jpg", b"x"), ("b.txt", b"y")]))
    pipe = f"pipe:cat {tmp_path}/b/0000.tar"
    urls = [server.url("a/0000.tar"), server.url("b/0000.tar"), pipe]
    local = [str(second), f"file://{second}"]
    cache = cache_of(tmp_path, urls + local)
    first = keys(urls + local, cache)
    assert first == ["0000.tar/000000", *["0000.tar/b"] * 4]
    assert copies(tmp_path / "cache") == ["0000.tar"] * 3
    second.unlink()  # what the pipe would read
    assert keys(urls, cache) == first[:3]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_packed_archives_are_whole(tmp_path, server, ending):
    packed = tar_bytes([(f"{i}.{e}", b"x" * 999) for i in range(9) for e in ("jpg", "txt")], ending)
    (tmp_path / "0.tar").write_bytes(packed)
    cache = cache_of(tmp_path, [url := server.url("0.tar")])
    assert len(keys([url], cache)) == 9
    (copy,) = (tmp_path / "cache").glob("*.tar")
    assert copy.read_bytes() == packed


def test_the_end_of_reading_in_the_middle_leaves_no_copy(tmp_path, server):
    write_shards(tmp_path, [8])
    cache = cache_of(tmp_path, [url := server.url("0000.tar")])
    samples = read_shards([(url, "")], BadSampleNotes("x"), cache.open)
    next(samples)
    assert copies(tmp_path / "cache") == ["making-0000.tar"]
    samples.close()
    assert copies(tmp_path / "cache") == []


def test_a_cut_shard_is_not_kept(tmp_path, server):
    (path,) = write_shards(tmp_path, [8])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    cache = cache_of(tmp_path, [url := server.url("0000.tar")])
    notes = BadSampleNotes("x")
    assert 0 < len(list(read_shards([(url, "")], notes, cache.open))) < 8
    assert sum(notes.take().counts.values()) == 1
    assert copies(tmp_path / "cache") == []
    path.write_bytes(whole)  # mended
    assert len(keys([url], cache)) == 8
    assert copies(tmp_path / "cache") == ["0000.tar"]


def test_a_copy_that_another_process_makes_is_left_to_it(tmp_path, server):
    write_shards(tmp_path, [8])
    url = server.url("0000.tar")
    one, other = cache_of(tmp_path, [url]), cache_of(tmp_path, [url])
    samples = read_shards([(url, "")], BadSampleNotes("x"), one.open)
    next(samples)
    assert len(keys([url], other)) == 8
    assert copies(tmp_path / "cache") == ["making-0000.tar"]
    assert len(list(samples)) == 7
    assert copies(tmp_path / "cache") == ["0000.tar"]


def test_it_never_grows_beyond_its_size_and_own_copies_stay(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shard_cache, "_STEP_BYTES", STEP)
    paths = write_shards(tmp_path / "d", [4] * 6)
    urls = [server.url(f"d/{path.name}") for path in paths]
    largest = max(path.stat().st_size for path in paths)
    most = 3 * largest + STEP
    sizes = []

    class Watched(ShardCache):
        def make_room(self, more):
            fits = super().make_room(more)
            held = sum(p.stat().st_size for p in (tmp_path / "cache").iterdir())
            sizes.append(held + more * fits)
            return fits

    cache = Watched(tmp_path / "cache", most, urls)
    cache.prepare()
    for _ in range(3):
        assert len(keys(urls, cache)) == 24
    assert copies(tmp_path / "cache") == ["0000.tar", "0001.tar", "0002.tar"]
    assert len(server.asked) == 6 + 3 + 3
    assert cache_of(tmp_path, urls, most).prepare().endswith("it holds 0.0 of at most 0.0 GB")
    assert max(sizes) <= most

    others = urls[4:]  # another run, which has no use for them
    server.asked.clear()
    os.utime(next((tmp_path / "cache").glob("*0001.tar")), (1, 1))
    for _ in range(2):
        assert len(keys(others[:1], cache_of(tmp_path, others, most))) == 4
    assert server.asked == ["/d/0004.tar"]
    assert copies(tmp_path / "cache") == ["0000.tar", "0002.tar", "0004.tar"]


def test_a_shard_larger_than_the_folder_may_be_is_read_without(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shard_cache, "_STEP_BYTES", STEP)
    write_shards(tmp_path, [8])
    cache = cache_of(tmp_path, [url := server.url("0000.tar")], max_bytes=2 * STEP)
    assert len(keys([url], cache)) == 8
    assert copies(tmp_path / "cache") == []


READER = """
import signal, sys, time
from pathlib import Path
from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.shard_cache import ShardCache
from fastclip.data.shard_opener import open_shard
from fastclip.data.shards import read_shards
folder, url, how = sys.argv[1:]
cache = ShardCache(Path(folder), 10**9, [url])
for sample in read_shards([(url, "")], BadSampleNotes("x"), cache.open):
    print(sample.key, flush=True)
    if how == "wait":
        time.sleep(100)
"""


def reader(folder: Path, url: str, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READER, str(folder / "cache"), url, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_a_killed_process_left_behind_makes_room(tmp_path, server):
    write_shards(tmp_path, [8, 8])
    urls = [server.url(f"000{i}.tar") for i in range(2)]
    cache = cache_of(tmp_path, urls)
    with reader(tmp_path, urls[0], "wait") as process:
        assert process.stdout.readline() == "0000.tar/000000\n"
        assert copies(tmp_path / "cache") == ["making-0000.tar"]
        process.send_signal(signal.SIGKILL)
    assert copies(tmp_path / "cache") == ["making-0000.tar"]
    assert len(keys(urls[1:], cache)) == 8
    assert copies(tmp_path / "cache") == ["0001.tar"]
    assert len(keys(urls[:1], cache)) == 8
    assert copies(tmp_path / "cache") == ["0000.tar", "0001.tar"]


def test_processes_at_once_read_the_same_and_leave_one_copy(tmp_path, server):
    (path,) = write_shards(tmp_path, [30])
    url = server.url("0000.tar")
    cache_of(tmp_path, [url])
    processes = [reader(tmp_path, url, "on") for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    expected = "".join(f"0000.tar/{i:06d}\n" for i in range(30))
    assert [
        (process.returncode, out) for process, (out, _) in zip(processes, outputs, strict=True)
    ] == [(0, expected)] * 4, outputs
    (copy,) = (tmp_path / "cache").glob("*.tar*")
    assert copy.read_bytes() == path.read_bytes()


def test_a_disk_that_takes_no_more_costs_no_sample(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setattr(shard_cache, "_STEP_BYTES", 512)
    write_shards(tmp_path, [8, 8])
    urls = [server.url(f"000{i}.tar") for i in range(2)]
    cache = cache_of(tmp_path, urls)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        assert len(keys(urls, cache)) == 16
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert copies(tmp_path / "cache") == []
    assert [r.message for r in caplog.records if "shard cache" in r.message] == [
        f"shard cache {tmp_path}/cache: no copies are made any more: [Errno 27] File too large"
    ]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--shard-cache .*file/x: Not a directory; give a folder"):
        build(
            train_data="http://127.0.0.1:9/0.tar",
            train_num_samples=4,
            shard_cache=f"{tmp_path}/file/x",
        )


def test_other_files_in_the_folder_are_nobodys(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shard_cache, "_STEP_BYTES", STEP)
    write_shards(tmp_path, [4, 4])
    urls = [server.url(f"000{i}.tar") for i in range(2)]
    most = (tmp_path / "0000.tar").stat().st_size + STEP
    (tmp_path / "cache").mkdir()
    for name in ("epoch_1.pt", "0000.tar", "making-x", "x.part"):
        (tmp_path / "cache" / name).write_bytes(bytes(most))
    for _ in range(2):
        assert len(keys(urls[:1], cache_of(tmp_path, urls[:1], most))) == 4
        assert len(keys(urls[1:], cache_of(tmp_path, urls[1:], most))) == 4
    assert copies(tmp_path / "cache") == [
        "0000.tar",
        "0001.tar",
        "epoch_1.pt",
        "making-x",
        "x.part",
    ]


def test_a_smaller_size_holds_from_the_start_on(tmp_path, server):
    paths = write_shards(tmp_path / "d", [4] * 3)
    urls = [server.url(f"d/{path.name}") for path in paths]
    keys(urls, cache_of(tmp_path, urls))
    os.utime(next((tmp_path / "cache").glob("*0001.tar")), (1, 1))
    cache_of(tmp_path, urls, 2 * paths[0].stat().st_size + 1)
    assert copies(tmp_path / "cache") == ["0000.tar", "0002.tar"]


def test_a_damaged_copy_is_made_again(tmp_path, server):
    (path,) = write_shards(tmp_path, [8])
    cache = cache_of(tmp_path, [url := server.url("0000.tar")])
    keys([url], cache)
    (copy,) = (tmp_path / "cache").glob("*.tar")
    copy.write_bytes(copy.read_bytes()[:6000])
    notes = BadSampleNotes("x")
    assert 0 < len(list(read_shards([(url, "")], notes, cache.open))) < 8
    assert len(keys([url], cache)) == 8
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("ending", ["; exit 1", "; kill -9 $$", ""])
@pytest.mark.parametrize("bytes_sent", [700, 20_000, 300_000])
def test_a_program_that_fails_gives_the_same_samples_as_without(tmp_path, bytes_sent, ending):
    (path,) = write_shards(tmp_path, [100])
    url = f"pipe:head -c {bytes_sent} {path}{ending}"
    found = []
    for opener in (open_shard, cache_of(tmp_path, [url]).open):
        notes = BadSampleNotes("x")
        samples = [sample.key for sample in read_shards([(url, "")], notes, opener)]
        found.append((samples, notes.take().counts))
    assert found[0] == found[1]
    assert sum(found[0][1].values()) == 1
    assert copies(tmp_path / "cache") == []


def test_no_copy_makes_way_for_one_that_cannot_fit(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shard_cache, "_STEP_BYTES", STEP)
    (small, large) = write_shards(tmp_path, [2, 40])
    most = small.stat().st_size + STEP
    urls = [server.url(path.name) for path in (small, large)]
    keys(urls[:1], cache_of(tmp_path, urls[:1], most))
    cache = cache_of(tmp_path, urls[1:], most)
    keys(urls[1:], cache)
    keys(urls[1:], cache)
    assert copies(tmp_path / "cache") == ["0000.tar"]


def test_what_follows_an_archive_is_not_read_where_no_copy_is_made(tmp_path):
    (path,) = write_shards(tmp_path, [2])
    log = tmp_path / "log"
    url = f"pipe:cat {path}; head -c 9000000 /dev/zero; echo done > {log}"
    keys([url], cache_of(tmp_path, [url], max_bytes=10))
    assert not log.exists()
    keys([url], cache_of(tmp_path, [url]))
    assert log.exists()


def test_a_disk_that_fails_in_every_way_costs_no_sample(tmp_path, server, monkeypatch):
    """It takes nothing, and then not even the removal of what it took."""
    write_shards(tmp_path, [8])
    cache = cache_of(tmp_path, [url := server.url("0000.tar")])

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(shard_cache._Copy, "_has_room", fails)
    monkeypatch.setattr(Path, "unlink", fails)
    assert len(keys([url], cache)) == 8


@pytest.mark.parametrize("size", ["0", "-1", "inf", "nan"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UserError, match="--shard-cache-gb"):
        DataConfig(shard_cache="x", shard_cache_gb=float(size))

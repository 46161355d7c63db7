"""A download that breaks off goes on where it did: a real server that cuts connections, and curl."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastclip.data import shard_opener
from fastclip.data.shard_opener import open_shard

FILE = random.Random(0).randbytes(1_500_000)


class Server(ThreadingHTTPServer):
    """Gives FILE. `cut_after`: how many bytes each request in turn gets, None for all that it asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = True
        self.file = FILE
        self.cut_after: list[int | None] = []
        self.starts: list[int] = []  # asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shard.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        cut = self.server.cut_after[min(len(self.server.starts), len(self.server.cut_after) - 1)]
        self.server.starts.append(start)
        file = self.server.file
        if asked and self.server.ranges:
            body = file[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(file) - 1}/{len(file)}")
        else:
            body = file
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(shard_opener, "BACKOFF_SECONDS", 0.01)
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_it_goes_on_at_the_byte_where_it_broke_off_as_often_as_it_gets_on(server: Server) -> None:
    server.cut_after = [400_000, 300_001, 7, 300_000, 1, None]
    with open_shard(server.url) as file:
        assert file.read() == FILE
    assert server.starts == [0, 400_000, 700_001, 700_008, 1_000_008, 1_000_009]


def test_a_server_without_ranges_is_read_again_and_nothing_is_handed_on_twice(
    server: Server,
) -> None:
    server.ranges = False
    server.cut_after = [400_000, None, 600_000, None, None]
    with open_shard(server.url) as file:
        assert file.read() == FILE
    assert server.starts == [0, 400_000, 0, 600_000, 0]


def test_three_times_without_a_byte_is_an_error(server: Server) -> None:
    server.cut_after = [400_000, 0]
    with open_shard(server.url) as file, pytest.raises(OSError, match=r"shard\.tar"):
        file.read()
    assert server.starts == [0, 400_000, 400_000]


def test_a_file_that_has_become_shorter_is_an_error(server: Server) -> None:
    server.ranges = False
    server.cut_after = [400_000, None]
    with open_shard(server.url) as file:
        assert file.read(10) == FILE[:10]
        server.file = FILE[:1000]
        with pytest.raises(OSError, match="has become shorter"):
            file.read()

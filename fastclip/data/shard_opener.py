"""Opening a shard wherever it is: a local file, a program's output, an address.

Programs for addresses get their arguments as a list, never through a shell; only `pipe:` runs one, which is what it is
for. Every program gets its own process group, is given up when it delivers nothing for a minute, and is killed when
the reader is closed. One that fails before its first byte is tried three times; a download that breaks off later
goes on at the byte where it did.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from fastclip.data.shard_spec import display, is_local

STALL_SECONDS = 60.0
CONNECT_SECONDS = 20
TRIES = 3
BACKOFF_SECONDS = 0.5  # doubled with every try
_BUFFER_BYTES = 1 << 18
_CANNOT_RESUME = 33  # curl's exit status where a server sends the whole file and not the rest of it

_running: set[int] = set()  # process groups that this process started


def end_programs() -> None:
    """Kill what this process started and has not closed; for a loader process that is about to end."""
    for group in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def open_shard(url: str) -> BinaryIO:
    """The bytes of `url`, to be closed by the caller. Raises OSError (TimeoutError for a stalled program)."""
    if is_local(url):
        path = Path(url)
        if path.is_fifo() and not url.startswith("/dev/"):  # /dev/fd/N: of this process alone
            return _open_program(["cat", "--", url], url)  # which is not waited for without end
        return path.open("rb")
    if url.startswith("file://"):
        from urllib.parse import urlparse
        from urllib.request import url2pathname

        return Path(url2pathname(urlparse(url).path)).open("rb")
    command = command_for(url)
    if command is None:
        from webdataset.gopen import gopen  # hf://, ais://, sftp:// and what else it knows

        return cast(BinaryIO, gopen(url))
    return _open_program(command, url)


def _open_program(command: Sequence[str] | str, url: str) -> BinaryIO:
    for attempt in range(1, TRIES + 1):
        raw = _Download(command, url) if command[0] == "curl" else _ProgramOutput(command, url)
        stream = io.BufferedReader(raw, _BUFFER_BYTES)
        try:
            stream.peek(1)
            return cast(BinaryIO, stream)
        except TimeoutError:
            stream.close()
            raise
        except OSError:
            stream.close()
            if attempt == TRIES:
                raise
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def command_for(url: str) -> Sequence[str] | str | None:
    """The program that writes `url` to its output: an argument list, or a string for the shell (`pipe:` only)."""
    if url.startswith("pipe:"):
        return url[len("pipe:") :]
    scheme = url.split("://", 1)[0].lower()
    if scheme in ("http", "https", "ftp", "ftps"):
        connect = ["--connect-timeout", str(CONNECT_SECONDS)]
        return ["curl", "--fail", "--silent", "--show-error", "--location", *connect, "--", url]
    if scheme == "s3":
        return ["aws", "s3", "cp", "--only-show-errors", url, "-"]
    if scheme == "gs":
        return ["gsutil", "-q", "cat", url]
    return None


class _ProgramFailed(OSError):
    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name}: the program ended with status {status}")
        self.status = status


class _ProgramOutput(io.RawIOBase):
    """The standard output of a program, which must go on writing: see STALL_SECONDS."""

    def __init__(self, command: Sequence[str] | str, url: str) -> None:
        super().__init__()
        self._name = display(url)
        self._process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        _running.add(self._process.pid)
        assert self._process.stdout is not None  # a pipe was asked for
        self._fd = self._process.stdout.fileno()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        ready, _, _ = select.select([self._fd], [], [], STALL_SECONDS)
        if not ready:
            raise TimeoutError(f"{self._name}: nothing came for {STALL_SECONDS:.0f} s")
        count = os.readv(self._fd, [buffer])
        if count == 0:
            status = self._process.wait()
            if status != 0:
                raise _ProgramFailed(self._name, status)
        return count

    def close(self) -> None:
        if not self.closed:
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.wait()
            _running.discard(self._process.pid)
        super().close()


class _Download(io.RawIOBase):
    """What curl fetches, taken up again where it breaks off: TRIES times without a byte, then the error is raised."""

    def __init__(self, command: Sequence[str] | str, url: str) -> None:
        super().__init__()
        self._command, self._url = command, url
        self._received, self._failures = 0, 0
        self._doubled = 0  # bytes to come that were handed on before
        self._output = _ProgramOutput(command, url)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            try:
                count = self._output.readinto(buffer)
            except OSError as error:
                self._failures += 1
                if self._received == 0 or self._failures == TRIES:
                    raise
                time.sleep(BACKOFF_SECONDS * 2 ** (self._failures - 1))
                self._go_on(error)
                continue
            if self._doubled and count == 0:
                raise OSError(f"{display(self._url)}: has become shorter while it was read")
            if self._doubled >= count > 0:
                self._doubled -= count
                continue
            fresh = count - self._doubled
            buffer[:fresh] = buffer[self._doubled : count]
            self._doubled = 0
            self._received += fresh
            if fresh:
                self._failures = 0
            return fresh

    def _go_on(self, error: OSError) -> None:
        self._output.close()
        if isinstance(error, _ProgramFailed) and error.status == _CANNOT_RESUME:
            self._doubled = self._received
            self._output = _ProgramOutput(self._command, self._url)
        else:
            self._doubled = 0
            rest = ["curl", "--continue-at", str(self._received), *self._command[1:]]
            self._output = _ProgramOutput(rest, self._url)

    def close(self) -> None:
        self._output.close()
        super().close()

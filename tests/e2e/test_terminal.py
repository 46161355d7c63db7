"""On a terminal a bar is drawn; an error stands on a line of its own, not behind the bar."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from tests.e2e.tiny_run import arguments, command, environment


def output_on_terminal(words: list[str]) -> tuple[int, str]:
    """Exit status and what a terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(
        theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0)
    )  # as wide as a terminal
    with subprocess.Popen(
        command(words), env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            sent += chunk
        os.close(ours)
    return process.returncode, sent.decode()


def test_the_bar_is_gone_when_an_error_is_written(tmp_path: Path) -> None:
    words = arguments(tmp_path, "run", "--lr", "1e30", "--nonfinite", "stop")
    status, sent = output_on_terminal(words)
    assert re.search(r"epoch 0: +\d+%", sent), sent
    assert status != 0
    last = sent.rstrip().splitlines()[-1]
    assert last.startswith("fastclip: error: epoch 0, up to step 1"), repr(sent[-600:])

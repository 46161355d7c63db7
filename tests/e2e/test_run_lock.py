"""Two runs with one LOGS/NAME: the second waits for the first to end, and gives up without harm."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import subprocess
from pathlib import Path

import pytest

from fastclip.cli.main import main
from fastclip.train import run_lock
from tests.e2e.tiny_run import arguments, command, environment

RESUMED = ("--resume", "latest", "--save-every-n-steps", "1")


def running(folder: Path, *extra: str, processes: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(arguments(folder, "run", *RESUMED, *extra), processes),
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError("".join(said[-30:]))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_second_goes_on_where_the_first_ends(tmp_path: Path, processes: int) -> None:
    first = running(tmp_path, "--epochs", "1000")
    read_until(first, "Train Epoch: 0")
    second = running(tmp_path, "--epochs", "1000", processes=processes)
    try:
        read_until(second, "another run writes there; waiting for its end")
        first.send_signal(signal.SIGTERM)
        read_until(second, "Found latest resume checkpoint")
        for _ in range(8):
            read_until(second, "Train Epoch")
        assert first.stderr is not None
        first.stderr.read()
        assert first.wait() == 75
    finally:
        first.kill()
        second.terminate()
        second.communicate()
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    steps = [
        line.split("Train Epoch: ")[1].split("/")[0]
        for line in log.splitlines()
        if "Train Epoch" in line
    ]
    assert len(steps) == len(set(steps))  # none was made twice


def test_a_run_that_goes_on_is_left_alone(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.5)
    words = arguments(tmp_path, "run", "--epochs", "1", *RESUMED)
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with (run / "out.log").open("a") as of_another:
        fcntl.flock(of_another, fcntl.LOCK_EX)
        assert main(words) == 74
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "another run still writes there" in line
    assert "--name" in line
    assert [path.name for path in run.iterdir()] == ["out.log"]
    assert not (run / "out.log").read_text()
    assert main(words) == 0
    assert json.loads((run / "exit.json").read_text())["code"] == 0


def test_two_that_start_at_once(tmp_path, monkeypatch, capsys) -> None:
    """The other one made the folder since this one looked."""
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.5)
    run = tmp_path / "logs" / "run"
    take = run_lock.RunLock.take

    def later(self, world, *, create=False) -> None:
        if not create:
            return take(self, world)
        with (run / "out.log").open("a") as of_another:
            fcntl.flock(of_another, fcntl.LOCK_EX)
            return take(self, world, create=True)

    monkeypatch.setattr(run_lock.RunLock, "take", later)
    assert main(arguments(tmp_path, "run", "--epochs", "1")) == 74
    assert "another run still writes there" in capsys.readouterr().err
    assert not (run / "exit.json").exists()
    assert not (run / "out.log").read_text()


def test_a_filesystem_without_locks(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    words = arguments(tmp_path, "run", *RESUMED)
    for epochs in ("1", "2"):
        assert main([*words, "--epochs", epochs]) == 0

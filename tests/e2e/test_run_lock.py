"""Two runs with one LOGS/NAME: the second waits for the first to end, and gives up without harm."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import time
from pathlib import Path

import pytest

from fastclip.cli.main import main
from fastclip.train import run_lock
from tests.e2e.tiny_run import arguments, command, environment

TIMEOUT = 300  # the machine may stand still for minutes
RESUMED = ("--resume", "latest", "--save-every-n-steps", "1")


class Running:
    """A run of the command whose output is in a file."""

    def __init__(self, folder: Path, name: str, *extra: str, processes: int = 1) -> None:
        self._said = folder / name
        words = command(arguments(folder, "run", *RESUMED, *extra), processes)
        with self._said.open("w") as file:
            self.process = subprocess.Popen(words, env=environment(), stderr=file)

    def has_said(self, words: str, times: int = 1) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self._said.read_text().count(words) < times:
            assert self.process.poll() is None, self._said.read_text()[-3000:]
            assert time.monotonic() < deadline, self._said.read_text()[-3000:]
            time.sleep(0.05)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(TIMEOUT)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_second_goes_on_where_the_first_ends(tmp_path: Path, processes: int) -> None:
    first = Running(tmp_path, "first", "--epochs", "1000")
    second = None
    try:
        first.has_said("Train Epoch: 0")
        second = Running(tmp_path, "second", "--epochs", "1000", processes=processes)
        second.has_said("another run writes there; waiting for its end")
        assert first.end() == 75
        second.has_said("Found latest resume checkpoint")
        second.has_said("Train Epoch", times=8)
        assert second.end() == 75 or processes > 1
    finally:
        for run in (first, second):
            if run is not None and run.process.poll() is None:
                run.end()
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    steps = [line for line in log.splitlines() if "Train Epoch" in line]
    named = [line.split("Train Epoch: ")[1].split("/")[0] for line in steps]
    assert len(named) == len(set(named))  # none was made twice


def test_one_that_waits_can_be_stopped(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    with (run / "out.log").open("a") as of_another:
        fcntl.flock(of_another, fcntl.LOCK_EX)
        waiting = Running(tmp_path, "waiting")
        waiting.has_said("another run writes there; waiting for its end")
        assert waiting.end() == 75
    assert [path.name for path in run.iterdir()] == ["out.log"]


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


@pytest.mark.parametrize("still_there", [True, False])
def test_two_that_start_at_once(tmp_path, monkeypatch, capsys, still_there) -> None:
    """The other one made the folder since this one looked, and may have ended since."""
    run = tmp_path / "logs" / "run"
    take_new = run_lock.RunLock.take_new

    def later(self, world) -> None:
        run.mkdir(parents=True)
        with (run / "out.log").open("a") as of_another:
            if still_there:
                fcntl.flock(of_another, fcntl.LOCK_EX)
            else:
                print("a line", file=of_another, flush=True)
            take_new(self, world)

    monkeypatch.setattr(run_lock.RunLock, "take_new", later)
    assert main(arguments(tmp_path, "run", "--epochs", "1")) == 74
    told = "another run still writes there" if still_there else "another run began there just now"
    assert told in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["out.log"]
    assert (run / "out.log").read_text() == ("" if still_there else "a line\n")


def test_a_filesystem_without_locks(tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)
    words = arguments(tmp_path, "run", *RESUMED)
    for epochs in ("1", "2"):
        assert main([*words, "--epochs", epochs]) == 0

"""SIGTERM, and kill -9 at random points, half of them inside a save: the run ends with the bits of one that was never
touched."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data.shard_files import fresh_seed
from tests.e2e.tiny_run import BATCH, SAMPLES, arguments, command, environment, finish, losses
from tests.live_processes import live_processes

TIMEOUT = 900  # the machine may stand still for minutes
WORDS = [
    *("--deterministic", "--force-patch-dropout", "0.5", "--workers", "2"),
    *("--save-every-n-steps", "2", "--resume", "latest", "--report-to", "tensorboard"),
]


def words_for(folder: Path, processes: int, epochs: int) -> list[str]:
    shared = ["--batch-size", str(BATCH // processes), "--local-loss", "--gather-with-grad"]
    return arguments(folder, "run", *WORDS, *shared, "--epochs", str(epochs))


def sessions_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Its own, and those that its children lead: torchrun gives each rank one."""
    children = live_processes("parent", process.pid)
    return [process.pid, *(each for each in children if each in live_processes("session", each))]


def all_gone(sessions: list[int]) -> None:
    deadline = time.monotonic() + 20
    while [member for each in sessions for member in live_processes("session", each)]:
        assert time.monotonic() < deadline, "processes outlive the run"
        time.sleep(0.02)


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """False where the process ended first."""
    deadline = time.monotonic() + TIMEOUT
    while not true():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0005)
    return True


def shared_memory_of(pids: list[int]) -> list[str]:
    """torch names its blocks after the process that made them; others on this machine have theirs."""
    return [path.name for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")]


def killed(
    words: list[str], processes: int, folder: Path, rng: random.Random, in_save: bool
) -> bool:
    """Start, and kill after a few steps; whether the kill came before the end, with a save half written if asked."""
    run = folder / "logs" / "run"
    lines_before = _train_lines(run)
    with (folder / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            command(words, processes), env=environment(), start_new_session=True, stderr=errors
        )
    steps = rng.randint(1, 2)
    alive = wait_until(lambda: _train_lines(run) >= lines_before + steps, process)
    if in_save:
        alive = alive and wait_until(lambda: list(run.glob("resume/*.partial")), process)
        time.sleep(rng.random() * 0.03)
    else:
        time.sleep(rng.random() * 0.05)
        wait_until(lambda: not list(run.glob("resume/*.partial")), process)
    half_written = bool(list(run.glob("resume/*.partial")))
    sessions = sessions_of(process)
    members = [member for each in sessions for member in live_processes("session", each)]
    if processes == 1:
        process.kill()  # the loader processes have to notice by themselves
    else:
        for session in sessions:
            os.killpg(session, signal.SIGKILL)
    process.wait()
    all_gone(sessions)
    assert not shared_memory_of(members)
    print("killed", alive, "in a save" if half_written else "", sorted(run.glob("resume/*")))
    return alive


def told_to_stop(words: list[str], processes: int, folder: Path) -> None:
    """SIGTERM to every process of the job, loader processes too, as a batch system sends it."""
    run = folder / "logs" / "run"
    with (folder / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            command(words, processes), env=environment(), start_new_session=True, stderr=errors
        )
    assert wait_until(lambda: _train_lines(run), process)
    sessions = sessions_of(process)
    for session in sessions:
        os.killpg(session, signal.SIGTERM)
    status = process.wait(timeout=TIMEOUT)
    said = (folder / "stderr").read_text()
    assert json.loads((run / "exit.json").read_text())["code"] == 75, said[-3000:]
    assert status == 75 or processes > 1  # torchrun has one status for all failures
    assert "told to stop, and saved epoch 0 after step" in said
    all_gone(sessions)
    assert list(run.glob("resume/save_*"))


def _train_lines(run: Path) -> int:
    log = run / "out.log"
    return len(re.findall("Train Epoch", log.read_text())) if log.exists() else 0


def check(folder: Path, processes: int, kills: int, epochs: int) -> None:
    rng = random.Random(fresh_seed())
    straight = words_for(folder / "straight", processes, epochs)
    done = finish(straight, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    words = words_for(folder / "killed", processes, epochs)
    told_to_stop(words, processes, folder / "killed")
    for kill in range(kills):
        assert killed(words, processes, folder / "killed", rng, in_save=kill % 2 == 0)
    again = finish(words, processes)
    assert again.returncode == 0, again.stderr[-3000:]
    if kills <= 3:
        assert "batches on each rank, with the batches that would have followed" in again.stderr
    ours, theirs = (folder / name / "logs" / "run" for name in ("killed", "straight"))
    assert losses(ours) == losses(theirs)
    a, b = (
        torch.load(r / "checkpoints" / f"epoch_{epochs}.pt", weights_only=True)
        for r in (ours, theirs)
    )
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in b["state_dict"])
    for index, state in b["optimizer"]["state"].items():
        assert all(torch.equal(state[k], a["optimizer"]["state"][index][k]) for k in state)
    assert not (ours / "resume").exists()
    events = EventAccumulator(str(ours / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(epochs * SAMPLES // BATCH))


def test_a_run_stopped_and_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    check(tmp_path, 1, kills=1, epochs=3)


def test_ranks_whose_torchrun_is_killed_save_and_end(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "run"
    with (tmp_path / "stderr").open("ab") as errors:
        process = subprocess.Popen(
            command(words_for(tmp_path, 2, epochs=1000), 2),
            env=environment(), start_new_session=True, stderr=errors,
        )  # fmt: skip
    assert wait_until(lambda: _train_lines(run), process)
    sessions = sessions_of(process)
    assert len(sessions) == 3
    process.kill()
    process.wait()
    all_gone(sessions)
    said = (tmp_path / "stderr").read_text()
    # of the first rank that looks; the other may have stopped with it before it looks itself
    assert "torchrun is gone: this rank stops" in said
    assert "told to stop, and saved epoch" in said
    assert json.loads((run / "exit.json").read_text())["code"] == 75
    assert list(run.glob("resume/save_*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path, processes: int) -> None:
    check(tmp_path, processes, kills=20, epochs=20)

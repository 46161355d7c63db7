"""Loaders end when told, with every process and thread of theirs, and say so when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fastclip.errors import DataError, EnvironmentProblem
from tests.data.loaders import (
    build,
)
from tests.data.shard_files import tar_bytes, write_shards
from tests.live_processes import live_processes

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_close_ends_every_process_and_thread(tmp_path):
    write_shards(tmp_path, [8, 8])
    before = set(live_processes("parent", os.getpid()))
    loader = build(train_data=str(tmp_path), train_num_samples=10**5, workers=2).train
    batches = loader.epoch(0)
    next(batches)
    started = set(live_processes("parent", os.getpid())) - before
    assert len(started) >= 2
    loader.close()
    assert gone(list(started), 10)
    assert not [t for t in threading.enumerate() if t.name == "fastclip-loader"]
    with pytest.raises(ValueError, match="closed"):
        next(loader.epoch(0))


def test_close_ends_every_process_while_an_error_is_still_held(tmp_path):
    """As in `cli`, where an error is on its way out when the loader is closed."""
    (tmp_path / "0.tar").write_bytes(tar_bytes([("0.jpg", b"junk"), ("0.txt", b"y")]))
    before = set(live_processes("parent", os.getpid()))
    loader = build(train_data=str(tmp_path), train_num_samples=8, workers=1).train
    with pytest.raises(DataError) as held:
        list(loader.epoch(0))
    started = set(live_processes("parent", os.getpid())) - before
    assert started
    loader.close()
    assert gone(list(started), 3)
    assert held.value.__traceback__ is not None


def test_an_interrupt_of_a_loader_process_alone_changes_nothing(tmp_path):
    """Ctrl-C goes to the whole terminal group; when loaders end is for the main process to say."""
    write_shards(tmp_path, [8])
    before = set(live_processes("parent", os.getpid()))
    loader = build(train_data=str(tmp_path), train_num_samples=80, workers=1).train
    batches = loader.epoch(0)
    next(batches)
    (pid,) = set(live_processes("parent", os.getpid())) - before
    os.kill(pid, signal.SIGINT)
    assert len(list(batches)) == 19
    loader.close()


# A process of its own, on the shards of one folder with so many loader processes
LOADER = """
import multiprocessing, os, signal, sys, time, torch
from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import DataConfig
from fastclip.data.build import build_data
from fastclip.data.tokenizer import ClipTokenizer
from fastclip.errors import EnvironmentProblem
if __name__ == "__main__":
    cfg = DataConfig(train_data=sys.argv[1], train_num_samples=10**6, workers=int(sys.argv[2]), batch_size=4,
                     decoder="pillow", dataset_type="webdataset")
    loader = build_data(cfg, PreprocessConfig(size=(16, 16)), ClipTokenizer(), seed=0, rank=0,
                        world_size=1, device=torch.device("cpu")).train
"""
INTERRUPTED = (
    LOADER
    + """
    try:
        for i, batch in enumerate(loader.epoch(0)):
            if i == 3:
                print("running", flush=True)
    except KeyboardInterrupt:
        loader.close()
        print("interrupted", flush=True)
        sys.exit(130)
"""
)
DYING = (
    LOADER
    + """
    try:
        for i, batch in enumerate(loader.epoch(0)):
            if i == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            if i > 2:
                time.sleep(0.2)  # a step: no exception from a signal handler may come here
                print("step", flush=True)
    except EnvironmentProblem as error:
        print(error, flush=True)
        os._exit(70)
"""
)


def command(folder: Path, script: str, workers: int) -> dict[str, Any]:
    """What subprocess takes, to run it on new shards in `folder`."""
    write_shards(folder / "d", [8, 8][:workers])
    (folder / "run.py").write_text(script)
    return {
        "args": [sys.executable, str(folder / "run.py"), str(folder / "d"), str(workers)],
        "env": os.environ | {"PYTHONPATH": f"{Path.cwd()}:{Path.cwd()}/kernels"},
        "text": True,
    }


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_run(tmp_path, how):
    """Ctrl-C (to the whole group, as a terminal sends it) and kill -9 of the main process."""
    process = subprocess.Popen(
        **command(tmp_path, INTERRUPTED, workers=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        loaders = live_processes("parent", process.pid)
        assert len(loaders) >= 2
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
            out, errors = process.communicate(timeout=20)
            assert process.returncode == 130, errors
            assert out == "interrupted\n"
            assert "Traceback" not in errors, errors
        else:
            process.kill()
            process.wait()
        assert gone(loaders, 15)
    finally:
        process.kill()
        process.wait()


def test_a_loader_process_that_dies_ends_the_run_and_says_so(tmp_path):
    ended = subprocess.run(**command(tmp_path, DYING, workers=1), capture_output=True, timeout=60)
    assert ended.returncode == 70, ended.stderr
    assert "a loader process died" in ended.stdout


HALF_SENT = """
import multiprocessing, os, signal, time, torch
from torch.utils.data import IterableDataset
from fastclip.data.ahead import Ahead
from fastclip.data.bad_samples import BadReport
from fastclip.data.loader_processes import LoaderProcesses
from fastclip.data.worker import Parcel
from fastclip.errors import EnvironmentProblem

class Endless(IterableDataset):
    def __iter__(self):
        while True:  # 130 kB each: a pipe takes 64 kB
            yield Parcel([f"{number:030d}" for number in range(4096)], BadReport({}, []), None, None)

if __name__ == "__main__":
    processes = LoaderProcesses(Endless(), 1, persistent=True)
    parcels = iter(Ahead(processes.parcels(), torch.device("cpu"), None, processes.check))
    next(parcels)
    (loader,) = multiprocessing.active_children()
    time.sleep(3)  # it waits for the rest of a parcel to be taken
    os.kill(loader.pid, signal.SIGKILL)
    try:
        for parcel in parcels:
            pass
    except EnvironmentProblem as error:
        print(error, flush=True)
        os._exit(70)
"""


def test_a_loader_process_that_dies_in_the_middle_of_handing_over_is_found(tmp_path):
    ended = subprocess.run(
        **command(tmp_path, HALF_SENT, workers=1), capture_output=True, timeout=60
    )
    assert ended.returncode == 70, ended.stderr
    assert "a loader process died" in ended.stdout


def test_one_that_dies_between_epochs_or_in_an_evaluation_is_told_too(tmp_path):
    write_shards(tmp_path, [16])
    options = {"train_data": str(tmp_path), "train_num_samples": 8, "val_data": str(tmp_path)}
    before = set(live_processes("parent", os.getpid()))
    loaders = build(workers=1, **options)
    list(loaders.train.epoch(0))
    (pid,) = set(live_processes("parent", os.getpid())) - before
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentProblem, match="a loader process died"):
        list(loaders.train.epoch(1))
    loaders.train.close()

    batches = iter(loaders.val)
    next(batches)
    (pid,) = set(live_processes("parent", os.getpid())) - before
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentProblem, match="a loader process died"):
        list(batches)

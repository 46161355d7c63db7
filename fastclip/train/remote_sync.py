"""`--remote-sync`: copies of the run's folder elsewhere, by the aws command line or by fsspec."""

from __future__ import annotations

import logging
import subprocess
import threading
from pathlib import Path
from typing import Any

from fastclip.errors import EnvironmentProblem, InputMissing
from fastclip.optional import require

logger = logging.getLogger(__name__)

_EXCLUDED = "epoch_latest.pt"  # may change while it is read
_RESUME = "resume"  # this folder's saves come and go while they are read


def _aws(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["aws", "s3", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            "--remote-sync-protocol s3 needs the `aws` command, which is not on the PATH"
        ) from error


def _sync_s3(local: Path, remote: str) -> bool:
    result = _aws(
        "sync", str(local), remote, "--exclude", f"*{_EXCLUDED}", "--exclude", f"{_RESUME}/*"
    )
    if result.returncode != 0:
        logger.error("Error: Failed to sync with S3 bucket %s", result.stderr.strip())
    return result.returncode == 0


def _sync_fsspec(local: Path, remote: str) -> bool:
    """File by file; a file of the same length is taken for the same file, as in the reference."""
    fsspec: Any = require("fsspec", "--remote-sync-protocol fsspec", "pip install fsspec")
    filesystem, root = fsspec.core.url_to_fs(remote)
    left_out = local / _RESUME
    for file in sorted(
        p
        for p in local.rglob("*")
        if p.is_file() and _EXCLUDED not in p.name and left_out not in p.parents
    ):
        target = f"{root}/{file.relative_to(local).as_posix()}"
        try:
            if filesystem.exists(target) and filesystem.size(target) == file.stat().st_size:
                continue
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            filesystem.put_file(str(file), target)
        except OSError as error:
            if not file.exists():  # an old checkpoint, deleted since it was listed
                continue
            logger.error("Error during remote sync for %s: %s", file, error)
            return False
    return True


class RemoteSync:
    """First copy at once (it must succeed), then one every `seconds`, and a last one at the end."""

    def __init__(self, local: Path, remote: str, protocol: str, seconds: int) -> None:
        self._local, self._remote, self._seconds = local, remote, seconds
        self._sync = _sync_s3 if protocol == "s3" else _sync_fsspec
        logger.info("Starting remote sync.")
        if not self._sync(local, remote):
            raise EnvironmentProblem(
                f"--remote-sync {remote}: the first copy failed (see above); check the address and your rights"
            )
        logger.info("remote sync successful.")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="remote-sync", daemon=True)
        self._thread.start()

    def _repeat(self) -> None:
        while not self._stop.wait(self._seconds):
            self._try()

    def _try(self) -> bool:
        """A copy that fails, for whatever reason, is told and tried again at the next turn."""
        try:
            return self._sync(self._local, self._remote)
        except Exception as error:
            logger.error("remote sync failed: %s: %s", type(error).__name__, error)
            return False

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()
        logger.info("Final remote sync.")
        done = self._try()
        logger.info("Final remote sync %s.", "successful" if done else "failed")


def list_remote_checkpoints(remote_folder: str) -> list[str]:
    """Names of the .pt files in an S3 folder; empty where there is none."""
    result = _aws("ls", remote_folder.rstrip("/") + "/")
    if result.returncode not in (0, 1):
        raise InputMissing(f"--resume latest: cannot list {remote_folder}: {result.stderr.strip()}")
    names = [line.split()[-1] for line in result.stdout.splitlines() if line.strip()]
    return [name for name in names if name.endswith(".pt")]

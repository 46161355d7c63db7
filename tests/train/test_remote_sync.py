"""`--remote-sync` and checkpoints that `--keep-last` deletes: copies stay, and a file that goes stops no copy."""

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from fastclip.train.remote_sync import RemoteSync


def _run(folder: Path, *epochs: int) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in epochs:
        (folder / "checkpoints" / f"epoch_{epoch}.pt").write_text(f"weights {epoch}")
    return folder


def _copies(remote: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in remote.rglob("*.pt")}


def test_a_deleted_checkpoint_stays_on_the_remote(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 1, 2)
    sync = RemoteSync(run, str(tmp_path / "remote"), "fsspec", seconds=3600)
    (run / "checkpoints" / "epoch_1.pt").unlink()
    _run(run, 3)
    sync.finish()
    assert _copies(tmp_path / "remote") == {f"epoch_{n}.pt": f"weights {n}" for n in (1, 2, 3)}


def test_a_file_that_goes_while_files_are_copied_stops_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "run", 1, 2, 3)
    put = LocalFileSystem.put_file

    def put_and_delete(self: LocalFileSystem, source: str, target: str) -> None:
        put(self, source, target)
        if source.endswith("epoch_1.pt"):
            (run / "checkpoints" / "epoch_2.pt").unlink()

    monkeypatch.setattr(LocalFileSystem, "put_file", put_and_delete)
    RemoteSync(run, str(tmp_path / "remote"), "fsspec", seconds=3600).finish()
    assert _copies(tmp_path / "remote") == {f"epoch_{n}.pt": f"weights {n}" for n in (1, 3)}

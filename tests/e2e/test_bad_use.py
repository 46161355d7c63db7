"""What a user gets wrong: one clear line, the right exit status, and nothing left on the disk."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastclip.cli.main import main
from tests.e2e.tiny_run import SHARDS, arguments


def _without(words: list[str], flag: str) -> list[str]:
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


def _file(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / "given.pt"
        path.write_bytes(content)
        return ["--resume", str(path)]

    return make


def _foreign_checkpoint(folder: Path) -> list[str]:
    path = folder / "given.pt"
    torch.save(
        {"epoch": 1, "state_dict": {"logit_scale is missing": torch.zeros(2)}, "optimizer": {}},
        path,
    )
    return ["--resume", str(path)]


def _cut_checkpoint(folder: Path) -> list[str]:
    path = folder / "given.pt"
    torch.save({"epoch": 1, "state_dict": {"weight": torch.zeros(20000)}}, path)
    path.write_bytes(path.read_bytes()[:30000])
    return ["--resume", str(path)]


def _empty_folder(folder: Path) -> list[str]:
    (folder / "no_shards").mkdir()
    return ["--train-data", str(folder / "no_shards")]


def _logs_in_a_file(folder: Path) -> list[str]:
    (folder / "a_file").write_text("")
    return ["--logs", str(folder / "a_file")]


def _shards_without_sizes(folder: Path) -> list[str]:
    first = Path(SHARDS.replace("{0000..0003}", "0000"))
    (folder / "shard.tar").write_bytes(first.read_bytes())
    return ["--train-data", str(folder / "shard.tar")]


@pytest.mark.parametrize(
    ("make", "status", "says"),
    [
        (["--model", "ViT-B-23"], 2, "ViT-B-32"),
        (["--train-data", "/nowhere/{000..003}.tar"], 66, "/nowhere/000.tar"),
        (_empty_folder, 66, "no_shards"),
        (["--train-data", "wordless"], 66, "wordless"),
        (["--workers", "9"], 2, "--workers"),
        (["--resume", "/nowhere/epoch_1.pt"], 66, "/nowhere/epoch_1.pt"),
        (_file(b"not a checkpoint"), 65, "given.pt"),
        (_file(b""), 65, "given.pt"),
        (_cut_checkpoint, 65, "given.pt"),
        (_foreign_checkpoint, 65, "logit_scale is missing"),
        (["--model", "ViT-S-32", "--pretrained", "/nowhere/it.pt"], 66, "/nowhere/it.pt"),
        (["--batch-size", "many"], 2, "--batch-size"),
        (["--lr-scheduler", "cosin"], 2, "cosine"),
        (["--grad-checkpoint1ng"], 2, "--grad-checkpointing"),
        (["--attention", "flash-attn-2"], 69, "--attention flash-attn-2 cannot run"),
        (
            ["--loss-backend", "triton"],
            69,
            "--loss-backend triton cannot run: it needs a CUDA device",
        ),
        (["--attention", "varlen", "--no-packed-text"], 2, "use --attention sdpa"),
        (["--optimizer-impl", "apex"], 69, "--optimizer-impl apex: apex is not installed"),
        (["--horovod"], 2, "--horovod"),
        (["--accum-freq", "50"], 2, "--accum-freq"),
        (_logs_in_a_file, 74, "a_file"),
    ],
)
def test_one_line_and_nothing_left(
    make: list[str] | Callable[[Path], list[str]],
    status: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra = make if isinstance(make, list) else make(tmp_path)
    assert main(arguments(tmp_path, "run", *extra)) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1, errors
    assert says in errors[0]
    assert not (tmp_path / "logs").exists()


def test_number_of_samples_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path, "run", *_shards_without_sizes(tmp_path))
    assert main(_without(words, "--train-num-samples")) in (2, 66)
    assert "--train-num-samples" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_existing_log_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "run" / "out.log"
    log.parent.mkdir(parents=True)
    log.write_text("yesterday\n")
    assert main(arguments(tmp_path, "run")) == 2
    assert "--name" in capsys.readouterr().err
    assert log.read_text() == "yesterday\n"


def test_more_processes_than_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments(tmp_path, "run", "--device", "cuda")) == 2
    assert "needs GPU 3, this machine has 1" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_dirty_shards_cost_their_bad_samples_only(decoder: str, tmp_path: Path) -> None:
    """A corrupt picture, an empty caption, a missing caption, a shard cut short: counted, named, training goes on."""
    with tarfile.open(SHARDS.replace("{0000..0003}", "0000")) as demo:
        members = [m for m in demo.getmembers() if m.name.endswith((".jpg", ".txt"))][:120]
        contents = {m.name: demo.extractfile(m).read() for m in members}
    shard = tmp_path / "dirty.tar"
    pictures = [m.name for m in members if m.name.endswith(".jpg")]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as out:
        for member in members:
            content = contents[member.name]
            if member.name == pictures[1]:
                content = content[: len(content) // 2]
            if member.name == pictures[2]:
                content = b"<html>not found</html>"
            if member.name == pictures[3].replace(".jpg", ".txt"):
                content = b""
            if member.name == pictures[4].replace(".jpg", ".txt"):
                continue
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    shard.write_bytes(shard.read_bytes()[: -40 * 512])
    words = ["--train-data", str(shard), "--decoder", decoder, "--train-num-samples", "48"]
    assert main(arguments(tmp_path, "run", "--epochs", "1", *words)) == 0
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    for picture in pictures[1:5]:
        assert picture.split(".")[0] in log, f"{picture} is not named"
    assert "dirty.tar" in log
    assert "Bad Samples: " in log
    assert log.count("Train Epoch:") == 3

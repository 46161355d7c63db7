"""A checkpoint file is read whole or refused in one line that names it."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastclip.errors import DataError, FastclipError, InputMissing
from fastclip.model.checkpoint_file import read_checkpoint


@pytest.fixture
def state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(64, 65, generator=generator), "b": torch.randn(7, generator=generator)}


def _same(got, wanted):
    return list(got) == list(wanted) and all(torch.equal(got[k], wanted[k]) for k in wanted)


def test_reads_what_was_written(tmp_path, state):
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "zip.pt")
    content = read_checkpoint(tmp_path / "zip.pt")
    assert content["epoch"] == 3
    assert _same(content["state_dict"], state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert _same(read_checkpoint(str(tmp_path / "old.pt")), state)
    save_file(state, tmp_path / "flat.safetensors")
    assert _same(read_checkpoint(tmp_path / "flat.safetensors"), state)


def _refused(path, message, kind=DataError, **options):
    with pytest.raises(kind, match=message) as error:
        read_checkpoint(path, **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing(tmp_path):
    _refused(tmp_path / "absent.pt", "no such file", InputMissing)
    _refused(tmp_path, "a folder", InputMissing)
    locked = tmp_path / "locked.pt"
    torch.save({}, locked)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        _refused(locked, "cannot be read", InputMissing)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_cut_short(tmp_path, state, kind, share):
    path = tmp_path / ("c.safetensors" if kind == "safetensors" else "c.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    _refused(path, "cut short|not a|empty")


def test_flipped_bits(tmp_path, state):
    """torch.load itself returns wrong numbers here without a word."""
    path = tmp_path / "c.pt"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    values = state["a"].numpy().tobytes()
    content[content.index(values) + len(values) // 2] ^= 0x40
    path.write_bytes(content)
    assert not _same(torch.load(path), state)
    _refused(path, "does not match its checksum")


class _Surprise:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_is_run_only_when_asked_for(tmp_path):
    path, trace = tmp_path / "c.pt", tmp_path / "trace"
    torch.save({"state_dict": _Surprise(trace)}, path)
    _refused(path, "--unsafe-load")
    assert not trace.exists()
    read_checkpoint(path, unsafe=True)
    assert trace.exists()


def test_something_else(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(b"not a checkpoint at all\n" * 9)
    _refused(path, "not a")
    path.write_bytes(pickle.dumps([1, 2]))
    _refused(path, "not a")
    torch.save([torch.zeros(2)], path)
    _refused(path, "holds a list")
    torch.save({}, path)
    _refused(path, "an empty dict")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    _refused(path, "not a")
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"\x00" * 100)
    _refused(path, "safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archive(tmp_path):
    path = tmp_path / "openai.pt"
    module = torch.nn.Linear(3, 2)
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3)), path)
    _refused(path, "TorchScript.*--unsafe-load")
    assert _same(read_checkpoint(path, unsafe=True), module.state_dict())


def test_whatever_is_damaged_is_one_line(tmp_path: Path, seed: int) -> None:
    """Flipped bits and cuts anywhere, in names, lengths and methods of the archive too."""
    file = tmp_path / "epoch_1.pt"
    state = {f"layer.{i}": torch.randn(3, 4) for i in range(6)}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, file)
    whole, rng = file.read_bytes(), random.Random(seed)
    said: list[str] = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged[: rng.choice([len(whole), rng.randrange(len(whole))])])
        try:
            read_checkpoint(file)
        except FastclipError as error:
            said.append(str(error))
    assert len(said) > 200
    assert not any("\n" in line for line in said)

"""What cannot be exported is one line and an exit status, and leaves nothing behind."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from fastclip.errors import DataError
from fastclip.export import export as export_module
from tests.export.exported import config, export, reference_model


@pytest.fixture
def model(tmp_path):
    trained = reference_model(tmp_path / "model", config(), {})
    torch.save({"epoch": 1, "state_dict": trained.state_dict()}, tmp_path / "good.pt")
    return trained


def refused(
    tmp_path: Path, capsys, status: int, *words: object, checkpoint: str = "good.pt"
) -> str:
    """The one line that the command ends with; nothing is there afterwards that was not before."""
    before = sorted(tmp_path.iterdir())
    name = f"local-dir:{tmp_path / 'model'}"
    usual = ["--model", name, "--checkpoint", tmp_path / checkpoint, "--to", "open_clip"]
    assert export(*usual, "--out", tmp_path / "out", *words) == status
    assert sorted(tmp_path.iterdir()) == before
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1, errors
    return errors[0]


def test_weights_that_are_not_finite(tmp_path, capsys, model):
    state = model.state_dict()
    state["ln_final.bias"][3] = torch.nan
    torch.save({"state_dict": state}, tmp_path / "nan.pt")
    line = refused(tmp_path, capsys, 65, checkpoint="nan.pt")
    assert "1 of" in line
    assert "ln_final.bias" in line


def test_a_checkpoint_of_another_architecture(tmp_path, capsys, model):
    other = reference_model(tmp_path / "other", config(vision={"layers": 3}), {})
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert "resblocks.2" in refused(tmp_path, capsys, 65, checkpoint="other.pt")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"vision": {"image_size": 64}}, "--force-image-size"),
        ({"text": {"context_length": 30}}, "--force-context-length"),
    ],
)
def test_positions_are_not_resampled_in_silence(tmp_path, capsys, model, changes, flag):
    other = reference_model(tmp_path / "other", config(**changes), {})
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert flag in refused(tmp_path, capsys, 65, checkpoint="other.pt")


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_no_code_of_a_checkpoint_runs(tmp_path, capsys, model):
    mark = tmp_path / "exploded"
    torch.save({"state_dict": model.state_dict(), "bomb": _Bomb(str(mark))}, tmp_path / "bomb.pt")
    assert "may run code" in refused(tmp_path, capsys, 65, checkpoint="bomb.pt")
    assert not mark.exists()


def test_a_full_disk(tmp_path, capsys, model):
    """Files may not grow beyond 4 MB, as on a disk with that much room; the weights are 9 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    try:
        assert "cannot be written" in refused(tmp_path, capsys, 74)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_holds_something(tmp_path, capsys, model):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    assert "is there already" in refused(tmp_path, capsys, 2)
    assert (tmp_path / "out/mine").exists()


def test_what_a_killed_export_left_is_replaced(tmp_path, model):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/half").touch()
    name = f"local-dir:{tmp_path / 'model'}"
    words = ["--model", name, "--checkpoint", tmp_path / "good.pt", "--out", tmp_path / "out"]
    assert export(*words, "--to", "open_clip") == 0
    assert not (tmp_path / "out.partial").exists()
    assert not (tmp_path / "out/half").exists()


def test_a_folder_that_is_not_the_model_is_not_called_done(tmp_path, capsys, model, monkeypatch):
    """One tensor of the written file is changed before it is opened again."""
    write = export_module._FORMATS["open_clip"].write

    def damaged(source, folder):
        with torch.no_grad():
            source.model.visual.proj[0, 0] += 0.5
            write(source, folder)
            source.model.visual.proj[0, 0] -= 0.5

    form = export_module._FORMATS["open_clip"]._replace(write=damaged)
    monkeypatch.setitem(export_module._FORMATS, "open_clip", form)
    assert "differ by" in refused(tmp_path, capsys, DataError.exit_code)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr", "1"], "--lr"),
        (["--to", "onnx"], "--to"),
        (["--run", "/nowhere"], "/nowhere"),
        (["--results", "/nowhere.json"], "/nowhere.json"),
        (["--checkpoint", "/nowhere.pt"], "/nowhere.pt"),
        (["--out"], "--out"),
        (["--modell", "x"], "--model"),
    ],
)
def test_flags(tmp_path, capsys, model, words, says):
    status = 66 if "/nowhere" in says else 2
    assert says in refused(tmp_path, capsys, status, *words)


def test_neither_run_nor_checkpoint(capsys):
    assert export("--to", "open_clip", "--out", "somewhere", "--model", "ViT-B-32") == 2
    assert "--run" in capsys.readouterr().err

"""`fastclip train` for real: every output, a kill and a resume, one process and several, the reference's files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP as ReferenceCLIP
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastclip.cli.main import main
from tests.e2e.tiny_run import (
    BATCH,
    MODEL,
    SAMPLES,
    VAL,
    arguments,
    command,
    environment,
    finish,
    losses,
)

EXTRA = [
    "--report-to",
    "tensorboard",
    "--save-most-recent",
    "--val-data",
    VAL,
    "--val-num-samples",
    "240",
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one uninterrupted run of three epochs."""
    folder = tmp_path_factory.mktemp("straight")
    done = finish(arguments(folder, "run", *EXTRA))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "logs" / "run"


def _load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def _same_weights(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_all_outputs_are_there(straight: Path) -> None:
    assert {p.name for p in straight.iterdir()} == {
        "checkpoints",
        "exit.json",
        "out.log",
        "params.txt",
        "tensorboard",
    }
    assert {p.name for p in (straight / "checkpoints").iterdir()} == {
        "epoch_1.pt",
        "epoch_2.pt",
        "epoch_3.pt",
        "epoch_latest.pt",
        "results.jsonl",
    }
    checkpoint = _load(straight / "checkpoints" / "epoch_3.pt")
    assert list(checkpoint) == ["epoch", "name", "state_dict", "optimizer"]
    assert (checkpoint["epoch"], checkpoint["name"]) == (3, "run")
    assert json.loads((straight / "exit.json").read_text())["code"] == 0
    results = [
        json.loads(line)
        for line in (straight / "checkpoints" / "results.jsonl").read_text().splitlines()
    ]
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert 0 < results[-1]["image_to_text_R@5"] < 1
    params = dict(
        line.split(": ", 1) for line in (straight / "params.txt").read_text().splitlines()
    )
    assert list(params) == sorted(params)
    assert (params["batch_size"], params["world_size"], params["beta2"]) == ("16", "1", "0.999")


def test_log_and_tensorboard_tell_of_every_step(straight: Path) -> None:
    steps = SAMPLES // BATCH
    logged = losses(straight)
    assert len(logged) == 3 * steps
    first, last = float(logged[0, "16"]), float(logged[2, "96"])
    assert last < first, "three epochs must have learned something"
    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/lr",
        "train/scale",
        "val/clip_val_loss",
        "val/image_to_text_R@1",
    } <= tags
    assert [e.step for e in events.Scalars("train/loss")] == list(range(3 * steps))
    assert [e.step for e in events.Scalars("val/clip_val_loss")] == [1, 2, 3]


def test_killed_and_resumed_run_ends_with_the_same_bits(straight: Path, tmp_path: Path) -> None:
    words = arguments(tmp_path, "run", *EXTRA, "--resume", "latest")
    process = subprocess.Popen(
        command(words), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
    )
    first = tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt"
    deadline = time.monotonic() + 300
    while not first.exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    again = finish(words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "=> resuming checkpoint" in again.stderr
    resumed = tmp_path / "logs" / "run"
    ours, uninterrupted = (_load(run / "checkpoints" / "epoch_3.pt") for run in (resumed, straight))
    assert _same_weights(ours["state_dict"], uninterrupted["state_dict"])
    for index, state in uninterrupted["optimizer"]["state"].items():
        assert all(torch.equal(state[k], ours["optimizer"]["state"][index][k]) for k in state)
    assert losses(resumed) == losses(straight)


def test_the_reference_loads_our_checkpoint(straight: Path, tmp_path: Path) -> None:
    import open_clip

    path = straight / "checkpoints" / "epoch_3.pt"
    theirs = ReferenceCLIP(**MODEL)
    open_clip.load_checkpoint(theirs, str(path))
    assert _same_weights(dict(theirs.state_dict()), _load(path)["state_dict"])


def test_one_process_to_two_and_back(straight: Path, tmp_path: Path) -> None:
    """The reference cannot: it misses the `module.` prefix."""
    half = ["--batch-size", str(BATCH // 2), "--local-loss", "--gather-with-grad"]
    one = straight / "checkpoints" / "epoch_1.pt"
    two = finish(
        arguments(tmp_path, "two", *half, "--epochs", "2", "--resume", str(one)), processes=2
    )
    assert two.returncode == 0, two.stderr[-3000:]
    of_two = _load(tmp_path / "logs" / "two" / "checkpoints" / "epoch_2.pt")
    assert all(key.startswith("module.") for key in of_two["state_dict"])
    path = str(tmp_path / "logs" / "two" / "checkpoints" / "epoch_2.pt")
    assert main(arguments(tmp_path, "back", "--resume", path)) == 0
    back = _load(tmp_path / "logs" / "back" / "checkpoints" / "epoch_3.pt")
    assert list(back["state_dict"]) == list(_load(one)["state_dict"])


def test_a_reference_run_goes_on_with_us(tmp_path: Path, straight: Path) -> None:
    """A checkpoint as the reference's main() writes it after an epoch, distributed."""
    torch.manual_seed(3)
    model = ReferenceCLIP(**MODEL)

    def exclude(n: str, p: torch.Tensor) -> bool:
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": 0.2},
        ],
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    image, text, scale = model(torch.randn(4, 3, 32, 32), torch.randint(1, 9, (4, 16)))
    (scale * (image @ text.T)).square().mean().backward()
    optimizer.step()
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    path = tmp_path / "theirs.pt"
    torch.save(
        {"epoch": 2, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict()}, path
    )
    assert main(arguments(tmp_path, "run", "--resume", str(path))) == 0
    ours = _load(tmp_path / "logs" / "run" / "checkpoints" / "epoch_3.pt")
    steps = SAMPLES // BATCH
    assert {int(s["step"]) for s in ours["optimizer"]["state"].values()} == {1 + steps}


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(
            ["--accum-freq", "2", "--grad-clip-norm", "1.0"], id="accumulated and clipped"
        ),
        pytest.param(
            ["--siglip", "--lock-image", "--skip-scheduler"], id="siglip, image tower locked"
        ),
        pytest.param(["--precision", "amp"], id="fp16 autocast with a scaler"),
        pytest.param(["--precision", "pure_bf16", "--grad-checkpointing"], id="pure bf16"),
        pytest.param(
            ["--decoder", "pillow", "--dataset-resampled", "--workers", "2"], id="pillow, resampled"
        ),
        pytest.param(
            ["--force-patch-dropout", "0.5", "--torchcompile"], id="patch dropout, compiled"
        ),
        pytest.param(["--lr-scheduler", "const-cooldown", "--epochs-cooldown", "1"], id="cooldown"),
        pytest.param(
            ["--dataset-type", "synthetic", "--precision", "bf16", "--workers", "0"], id="synthetic"
        ),
        pytest.param(
            ["--opt", "timm/lamb", "--eps", "1e-6", "--copy-codebase"], id="timm optimiser"
        ),
    ],
)
def test_modes_train(extra: list[str], tmp_path: Path) -> None:
    words = arguments(tmp_path, "run", "--epochs", "1", "--train-num-samples", "32", *extra)
    assert main(words) == 0
    checkpoint = _load(tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt")
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())
    assert not any("_orig_mod" in key for key in checkpoint["state_dict"])
    assert ("scaler" in checkpoint) == ("amp" in extra)


def test_distillation_from_our_own_checkpoint(straight: Path, tmp_path: Path) -> None:
    teacher = str(straight / "checkpoints" / "epoch_3.pt")
    words = arguments(tmp_path, "run", "--epochs", "1", "--train-num-samples", "32")
    model = words[words.index("--model") + 1]
    assert main([*words, "--distill-model", model, "--distill-pretrained", teacher]) == 0
    assert "Distill_loss: " in (tmp_path / "logs" / "run" / "out.log").read_text()


def test_evaluation_only_writes_results(straight: Path, tmp_path: Path) -> None:
    words = arguments(tmp_path, "eval", "--val-data", VAL)
    start = words.index("--train-data")
    del words[start : start + 2]
    resumed = [*words, "--resume", str(straight / "checkpoints" / "epoch_3.pt")]
    assert main(resumed) == 0
    ours = json.loads((tmp_path / "logs" / "eval" / "checkpoints" / "results.jsonl").read_text())
    in_training = (straight / "checkpoints" / "results.jsonl").read_text().splitlines()[-1]
    assert ours == json.loads(in_training)


def test_keep_last_over_a_run_and_its_continuation(tmp_path: Path) -> None:
    """`epoch_latest.pt` stays, and `--resume latest` goes on from what is kept."""
    checkpoints = tmp_path / "logs" / "run" / "checkpoints"
    words = [
        *arguments(tmp_path, "run", "--train-num-samples", "32", "--keep-last", "2"),
        "--save-most-recent",
    ]
    assert main(words) == 0
    kept = {path.name for path in checkpoints.glob("*.pt")}
    assert kept == {"epoch_2.pt", "epoch_3.pt", "epoch_latest.pt"}
    assert main([*words, "--epochs", "4", "--resume", "latest"]) == 0
    kept = {path.name for path in checkpoints.glob("*.pt")}
    assert kept == {"epoch_3.pt", "epoch_4.pt", "epoch_latest.pt"}
    assert _load(checkpoints / "epoch_4.pt")["epoch"] == 4


def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    words = arguments(tmp_path, "run", "--train-num-samples", "9600")
    process = subprocess.Popen(
        command(words), env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Train Epoch: 0" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to loader processes too
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in rest, rest
    assert "interrupted" in rest.splitlines()[-1].lower()
    assert json.loads((tmp_path / "logs" / "run" / "exit.json").read_text())["code"] == 130
    with pytest.raises(ProcessLookupError):  # nobody is left of its session
        os.killpg(process.pid, 0)

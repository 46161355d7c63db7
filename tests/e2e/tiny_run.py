"""A run small enough to be made for real in a test: the bundled shards, a one-layer model, the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARDS = str(ROOT / "fastclip" / "demo" / "train-{0000..0003}.tar")
VAL = str(ROOT / "fastclip" / "demo" / "val-0000.tar")

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
SAMPLES, BATCH = 96, 16


def model_folder(folder: Path) -> str:
    """`--model` for the tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    return f"local-dir:{folder}"


def arguments(folder: Path, name: str, *extra: str) -> list[str]:
    """`fastclip train` arguments; extra ones come last and win."""
    return [
        "train",
        *("--model", model_folder(folder / "model")),
        *("--train-data", SHARDS),
        *("--dataset-type", "webdataset"),
        *("--train-num-samples", str(SAMPLES)),
        *("--aug-cfg", "scale=(0.5, 1.0)"),
        *("--batch-size", str(BATCH)),
        *("--workers", "1"),
        *("--epochs", "3"),
        *("--lr", "1e-3"),
        *("--warmup", "3"),
        *("--precision", "fp32"),
        *("--device", "cpu"),
        *("--log-every-n-steps", "1"),
        *("--logs", str(folder / "logs")),
        *("--name", name),
        *extra,
    ]


def command(words: list[str], processes: int = 1) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "fastclip", *words]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # Without `--` torchrun of today's torch takes `--logs` for an abbreviation of its own `--logs-specs`.
    return [sys.executable, "-m", *launcher, "-m", "--", "fastclip", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}


def finish(words: list[str], processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(words, processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def losses(run: Path) -> dict[tuple[int, str], str]:
    """(epoch, samples seen) -> the loss as logged, the last time that step was made."""
    found = {}
    for line in (run / "out.log").read_text().splitlines():
        if "Train Epoch:" in line:
            epoch = int(line.split("Train Epoch: ")[1].split()[0])
            position = line.split("[")[1].split("/")[0].strip()
            found[epoch, position] = line.split(" Loss: ")[1].split()[0]
    return found

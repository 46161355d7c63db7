"""CLIP_benchmark 1.6.2 as a command, in the environment that scripts/clip_benchmark_env.sh makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-clip-benchmark" / "bin" / "python"
# What it calls the tasks of `fastclip eval`.
TASKS = {
    "retrieval": "zeroshot_retrieval",
    "zeroshot": "zeroshot_classification",
    "linear-probe": "linear_probe",
}
# By how much figures may differ: its linear probe sums in another order, and trains on what comes of it.
TOLERANCE = {"retrieval": 1e-4, "zeroshot": 1e-4, "linear-probe": 5e-3}
# Its linear probe asks for CUDA by name and by `.cuda()`; nothing in its arithmetic needs it. It also shuffles the
# training set once more before it trains, by numbers that depend on what was drawn before; that one shuffle is undone,
# so that both tools see the same order. (Samplers call `randperm` with a generator.)
_ON_A_CPU = """
import sys, torch
class Cpu(str):
    def __eq__(self, other): return other in ("cpu", "cuda")
    def __hash__(self): return str.__hash__(self)
torch.nn.Module.cuda = lambda self, device=None: self
torch.Tensor.cuda = lambda self: self
permuted = torch.randperm
torch.randperm = lambda n, **given: permuted(n, **given) if given else torch.arange(n)
from clip_benchmark import cli
evaluate = cli.linear_probe.evaluate
cli.linear_probe.evaluate = lambda *args, **given: evaluate(*args, **{**given, "device": Cpu("cpu")})
sys.exit(cli.main())
"""


def command(
    hub: Path, data: Path, task: str, out: Path, *, batch_size: int = 64, workers: int = 1
) -> list[str]:
    """For `task` (one of TASKS) in fp32, on `data` in its own layout. A linear probe runs on the CPU."""
    words = ["-m", "clip_benchmark.cli"]
    more: list[str] = []
    if task == "linear-probe":
        words = ["-c", _ON_A_CPU]
        more = ["--feature_root", str(out.with_suffix(".features"))]
    return [
        *(str(PYTHON), *words, "eval", "--dataset", f"wds/{data.name}"),
        *("--dataset_root", str(data), "--model", f"local-dir:{hub}", "--pretrained", "none"),
        *("--task", TASKS[task], "--no_amp", "--recall_k", "1", "5", "10"),
        *("--batch_size", str(batch_size), "--num_workers", str(workers)),
        *("--output", str(out), "--quiet", *more),
    ]


def digits(folder: Path) -> tuple[list[list[list[float]]], list[int]]:
    """scikit-learn's handwritten digits, pictures of 8 x 8 values from 0 to 16, and what they are.

    (scikit-learn is a part of that environment, not of fastclip's.)
    """
    file = folder / "digits.json"
    code = (
        "import json, sys; from sklearn.datasets import load_digits; found = load_digits()\n"
        "json.dump([found.images.tolist(), found.target.tolist()], open(sys.argv[1], 'w'))"
    )
    subprocess.run([PYTHON, "-c", code, str(file)], check=True)
    pictures, labels = json.loads(file.read_text())
    file.unlink()
    return pictures, labels

"""The examples run as their first lines say, and train as the reference's loss does."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.e2e import tiny_run
from tests.kernels.parity import load_reference

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "kernels" / "examples"
REFERENCE_PYTHON = ROOT / ".venv-reference" / "bin" / "python"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "kernels")}

# Runs a trainer with the same shuffle every time, which the reference seeds with the clock, and
# tells whose losses it had.
SEEDED = """
import random, runpy, sys
class Fixed(random.Random):
    def __init__(self, seed=None):
        super().__init__(0)
random.Random = Fixed
del sys.argv[0]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
import open_clip.factory
print("losses of", open_clip.factory.ClipLoss.__module__)
"""


def output_of(words: list[str], cwd: Path) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_ranks_train_as_one_process_with_the_references_loss(tmp_path):
    (command,) = re.findall(r"^torchrun (.*)$", (EXAMPLES / "two_ranks.py").read_text(), re.M)
    words = command.replace("two_ranks.py", str(EXAMPLES / "two_ranks.py")).split()
    printed = output_of([sys.executable, "-m", "torch.distributed.run", *words], tmp_path)
    shown = [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]
    example = runpy.run_path(str(EXAMPLES / "two_ranks.py"))
    torch.testing.assert_close(shown, whole_batch_losses(example), atol=2e-4, rtol=1e-3)
    assert shown[-1] < shown[0] / 3


def whole_batch_losses(example) -> list[float]:
    """What the example prints, from all pairs in one process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = example["TwoTowers"]()
        views = torch.randn(8, 48), torch.randn(8, 32)
    ranks = [torch.Generator().manual_seed(1 + rank) for rank in range(2)]
    loss_of = load_reference().ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(example["STEPS"]):
        content = torch.cat([torch.randn(example["BATCH"], 8, generator=each) for each in ranks])
        loss = loss_of(*model(*(content @ view for view in views)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[9::10]


@pytest.mark.slow
def test_the_references_trainer_logs_the_same_losses(tmp_path):
    assert REFERENCE_PYTHON.exists(), "scripts/reference_env.sh makes the reference's environment"
    (tmp_path / "seeded.py").write_text(SEEDED)
    logged = []
    for name, trainer, losses in (
        ("theirs", "open_clip_train.main", "open_clip.loss"),
        ("ours", str(EXAMPLES / "openclip_trainer.py"), "fastclip_kernels.loss.modules"),
    ):
        flags = tiny_run.arguments(tmp_path, name, "--epochs", "1")[1:]
        printed = output_of([str(REFERENCE_PYTHON), "seeded.py", trainer, *flags], tmp_path)
        assert printed.splitlines()[-1] == f"losses of {losses}"
        log = (tmp_path / "logs" / name / "out.log").read_text()
        logged.append(re.findall(r"Contrastive_loss: ([\d.]+)", log))
    theirs, ours = (torch.tensor([float(value) for value in each]) for each in logged)
    assert len(theirs) == tiny_run.SAMPLES // tiny_run.BATCH
    assert len(theirs.unique()) == len(theirs)
    torch.testing.assert_close(ours, theirs, atol=1.5e-4, rtol=0)  # logged with four decimals

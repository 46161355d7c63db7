"""Learning parity at full length; the figure belongs into the release notes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tiny_run import ROOT, SHARDS, environment


@pytest.mark.slow
def test_three_seeds_learn_alike() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.learning_parity", SHARDS],
        cwd=Path(ROOT),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]

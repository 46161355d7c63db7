"""Ranks whose shards hold unequal numbers of samples make the same steps; too few shards are an answer, not a hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.data.shard_files import write_shards
from tests.e2e.tiny_run import arguments, finish, losses


@pytest.mark.slow
def test_shards_of_100_and_37_samples_on_two_ranks(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", [100, 37])
    data = ["--train-data", str(tmp_path / "data"), "--train-num-samples", "137"]
    done = finish(arguments(tmp_path, "run", *data, "--batch-size", "8"), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "logs" / "run"
    assert len(losses(run)) == 3 * 9
    said = re.findall(r"Epoch \d: (\d+) samples were given again .* \(rank \d: \d+\)", done.stderr)
    assert said == ["40"] * 3  # of 72, where 37 fill 4 batches


@pytest.mark.slow
def test_one_shard_for_two_ranks_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", [20])
    data = ["--train-data", str(tmp_path / "data"), "--train-num-samples", "20"]
    refused = finish(arguments(tmp_path, "run", *data), processes=2)
    assert refused.returncode != 0
    assert "--train-data has 1 shard for 2 processes" in refused.stderr
    # as a traceback would name it; torchrun adds one of its own
    assert "UserError" not in refused.stderr
    assert not (tmp_path / "logs").exists()

"""A cluster is described only for a dry run, and only one that can exist."""

from __future__ import annotations

import pytest

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.errors import UserError

TRAIN = ["--train-data", "a.tar"]


def refused(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        resolve(parse_args([*TRAIN, *words]))
    return str(raised.value)


@pytest.mark.parametrize("words", [["--nodes", "2"], ["--gpus-per-node", "8"], ["--gpu", "h100"]])
def test_a_cluster_without_a_dry_run_is_refused(words: list[str]) -> None:
    line = refused(*words)
    assert "\n" not in line
    assert line.startswith(f"{words[0]}: only --dry-run")


@pytest.mark.parametrize(
    "words",
    [["--nodes", "0"], ["--nodes", "-3"], ["--gpus-per-node", "0"], ["--gpus-per-node", "3000"]],
)
def test_a_cluster_that_cannot_exist_is_refused(words: list[str]) -> None:
    line = refused("--dry-run", *words)
    assert "\n" not in line
    assert line.startswith(f"{words[0]} {int(words[1])}: must be from 1 to ")


def test_both_mistakes_at_once() -> None:
    assert len(refused("--dry-run", "--nodes", "0", "--gpus-per-node", "0").split("\n")) == 2


def test_ranks() -> None:
    config = resolve(parse_args([*TRAIN, "--dry-run", "--nodes", "24", "--gpus-per-node", "4"]))
    assert (config.cluster.ranks, config.cluster.ranks_per_node) == (96, 4)
    assert resolve(parse_args([*TRAIN, "--dry-run"])).cluster.ranks == 1


def test_an_evaluation_is_not_planned() -> None:
    with pytest.raises(UserError, match="--dry-run plans training"):
        resolve(parse_args(["--val-data", "a.tar", "--dry-run"]))

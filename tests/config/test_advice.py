"""Flags that do nothing are named; a command line in which all flags act gets no remark."""

from __future__ import annotations

import shlex

import pytest

from fastclip.config.advice import advice
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from tests.config.test_resolve import TRAIN, USERS_SCRIPT


@pytest.mark.parametrize(
    ("argv", "start"),
    [
        ([*TRAIN, "--allreduce-dtype", "bf16"], "--allreduce-dtype does nothing"),
        ([*TRAIN, "--siglip", "--local-loss"], "--local-loss and --gather-with-grad do nothing"),
        ([*TRAIN, "--loss-dist-impl", "x"], "--loss-dist-impl does nothing without --siglip"),
        ([*TRAIN, "--distill-model", "RN50"], "no distillation"),
        ([*TRAIN, "--lock-image-unlocked-groups", "2"], "--lock-image-*"),
        ([*TRAIN, "--lock-text-freeze-layer-norm"], "--lock-text-*"),
        ([*TRAIN, "--momentum", "0.9"], "--momentum"),
        ([*TRAIN, "--epochs-cooldown", "2"], "--epochs-cooldown"),
        (["--train-data", "a.csv", "--train-data-up", "1"], "--train-data-upsampling-factors"),
        ([*TRAIN, "--dataset-type", "csv", "--train-num-samples", "9"], "--train-num-samples"),
        ([*TRAIN, "--logs", "none", "--save-most-recent"], "--logs none"),
    ],
)
def test_a_flag_that_does_nothing_is_named(argv: list[str], start: str) -> None:
    remarks = advice(resolve(parse_args(argv)), processes=1)
    assert len(remarks) == 1
    assert remarks[0].startswith(start)


@pytest.mark.parametrize(
    "argv",
    [
        TRAIN,
        shlex.split(USERS_SCRIPT),
        [*TRAIN, "--allreduce-dtype", "bf16"],
        [*TRAIN, "--siglip", "--loss-dist-impl", "shift"],
        [*TRAIN, "--lock-text", "--lock-text-unlocked-layers", "2"],
    ],
)
def test_no_remark_where_every_flag_acts(argv: list[str]) -> None:
    assert advice(resolve(parse_args(argv)), processes=2) == []

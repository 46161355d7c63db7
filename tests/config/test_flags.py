"""Every flag of the reference is here, with the same name, type, default, choices and arity."""

from __future__ import annotations

import argparse

import pytest

from fastclip.config.parse import TrainParser
from tests.config.flag_lists import OWN, by_name


def test_no_flag_is_missing_and_only_ours_are_added(
    reference_parser: argparse.ArgumentParser,
) -> None:
    theirs, ours = set(by_name(reference_parser)), set(by_name(TrainParser()))
    assert len(theirs) == 92  # 90 flags, -h and --help: the reference is the version we mean
    assert theirs - ours == set()
    assert ours - theirs == set(OWN)


def test_our_flags_default_to_the_fast_exact_choice() -> None:
    ours = by_name(TrainParser())
    assert {flag: ours[flag].default for flag in OWN} == OWN


def test_types_defaults_choices_and_arity_equal_the_reference(
    reference_parser: argparse.ArgumentParser,
) -> None:
    ours = by_name(TrainParser())
    for flag, their in by_name(reference_parser).items():
        our = ours[flag]
        assert our.dest == their.dest, flag
        assert our.nargs == their.nargs, flag
        assert our.const == their.const, flag
        assert our.default == their.default, flag
        assert type(our.default) is type(their.default), flag
        assert our.required == their.required, flag
        # `type=str` and none given are the same to argparse
        assert (our.type or str) is (their.type or str), flag
        assert (our.choices is None) == (their.choices is None), flag
        assert sorted(our.choices or ()) == sorted(their.choices or ()), flag
        if flag != "--aug-cfg":  # an action of its own on both sides: compared by its results
            assert type(our) is type(their), flag


def test_every_flag_is_explained_and_grouped() -> None:
    parser = TrainParser()
    for group in parser._action_groups:
        for action in group._group_actions:
            assert action.help, action.option_strings
            if action.option_strings and "--help" not in action.option_strings:
                assert group.title not in ("options", "optional arguments", "positional arguments")


def test_help_names_every_flag_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        TrainParser().parse(["--help"])
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    for flag in by_name(TrainParser()):
        assert flag in text
    assert "optimiser steps in which the learning rate rises from near 0 [10000]" in text

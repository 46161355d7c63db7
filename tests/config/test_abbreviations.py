"""A beginning of a flag means what it means to the reference, although we have more flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pytest

from fastclip.config.parse import TrainParser
from fastclip.errors import UserError
from tests.config.flag_lists import OWN, OWN_DESTS, by_name

PARSER = TrainParser()


def a_value_for(action: argparse.Action) -> list[str]:
    """Words that `action` accepts, so that a prefix is refused for itself and not for its value."""
    if action.nargs == 0:
        return []
    if action.nargs == "*":
        return ["scale=0.5,1.0"]
    if action.choices is not None:
        return [str(list(action.choices)[-1])]
    return {int: ["3"], float: ["0.25"]}.get(action.type, ["word"])  # type: ignore[arg-type]


def outcome_of_reference(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> dict[str, object] | None:
    try:
        return vars(parser.parse_args(words))
    except SystemExit:
        return None


def outcome_of_ours(words: Sequence[str]) -> dict[str, object] | None:
    try:
        namespace = vars(PARSER.parse(words))
    except UserError:
        return None
    assert all(namespace[d] == OWN[f"--{d.replace('_', '-')}"] for d in OWN_DESTS), words
    return {k: v for k, v in namespace.items() if k not in OWN_DESTS}


@pytest.mark.parametrize("form", ["separate", "equals"])
def test_every_prefix_of_every_reference_flag_means_the_same(
    reference_parser: argparse.ArgumentParser, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = refused = 0
    for flag, action in by_name(reference_parser).items():
        if flag in ("-h", "--help"):
            continue
        value = a_value_for(action)
        if form == "equals" and not value:
            continue
        for end in range(3, len(flag) + 1):
            words = [flag[:end], *value] if form == "separate" else [f"{flag[:end]}={value[0]}"]
            theirs = outcome_of_reference(reference_parser, words)
            assert outcome_of_ours(words) == theirs, words
            resolved += theirs is not None
            refused += theirs is None
    assert resolved > 200
    assert refused > 100
    capsys.readouterr()


def test_a_prefix_of_ours_counts_only_where_no_reference_flag_has_it(
    reference_parser: argparse.ArgumentParser,
) -> None:
    theirs = [s for s in by_name(reference_parser) if s.startswith("--")]
    ours = by_name(TrainParser())
    for flag in OWN:
        action = ours[flag]
        value = a_value_for(action)
        for end in range(3, len(flag) + 1):
            prefix = flag[:end]
            rivals = [f for f in OWN if f.startswith(prefix) and f != flag]
            if any(f.startswith(prefix) for f in theirs) or rivals:
                continue
            parsed = vars(TrainParser().parse([prefix, *value]))
            wanted = value[0] if value else "True"
            assert str(parsed[action.dest]) == wanted, prefix


@pytest.mark.parametrize(
    ("words", "dest"),
    [(["--no"], "no_set_device_rank"), (["--debu"], "debug"), (["--un"], "unsafe_load")],
)
def test_known_crossings(words: list[str], dest: str) -> None:
    assert vars(TrainParser().parse(words))[dest] is True


def test_an_ambiguous_prefix_names_reference_flags_only() -> None:
    with pytest.raises(UserError, match="--de could match") as raised:
        TrainParser().parse(["--de"])  # --device, --debug, ..., and ours --decoder, --deterministic
    assert "--decoder" not in str(raised.value)
    assert "--device" in str(raised.value)

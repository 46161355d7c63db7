"""The parser of `fastclip train`: the reference's flags and ours, abbreviations, one-line errors.

A prefix is looked up among the reference's flags first, so that no flag of ours can change what a
script that runs today means: `--no` stays `--no-set-device-rank` although `--nonfinite` exists.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from fastclip.config.flags import add_reference_flags
from fastclip.config.own_flags import add_own_flags
from fastclip.errors import UserError

_EXPECTED = {int: "a whole number", float: "a number"}


class TrainParser(argparse.ArgumentParser):
    """argparse, but it raises UserError with one line per mistake and prints no usage."""

    def __init__(self) -> None:
        super().__init__(
            prog="fastclip train",
            usage="fastclip train [--FLAG [VALUE ...]] ...",
            description="Train or evaluate a CLIP model. Takes the flags of OpenCLIP 3.3.0's "
            "trainer; any unambiguous beginning of a flag will do.",
            epilog="docs/flags.md lists every flag; docs/behaviour-differs.md what differs from "
            "OpenCLIP.",
            formatter_class=_HelpFormatter,
        )
        self._problems: list[str] = []
        add_reference_flags(self)
        self._own = add_own_flags(self)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags in `argv`. Raises UserError with one line for every mistake found."""
        self._problems = []
        namespace, leftover = self.parse_known_args(argv)
        self._problems += self._explain(leftover)
        if self._problems:
            raise UserError("\n".join(self._problems))
        return namespace

    def error(self, message: str) -> NoReturn:
        """Called by argparse when it cannot go on; what was noted before belongs to the message."""
        raise UserError("\n".join([*self._problems, _reword(message)]))

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse would swallow a closed pipe

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # argparse asks here for all flags that begin with `option_string`, if none is called so.
        # The first element of each answer is the action, in every Python from 3.10 to 3.14.
        matches: list[Any] = super()._get_option_tuples(option_string)
        return [match for match in matches if match[0] not in self._own] or matches

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # A value of the wrong type is noted and parsing goes on, to report all mistakes at once.
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            wanted = _EXPECTED[action.type]  # type: ignore[index]
            self._problems.append(f"{action.option_strings[-1]} {arg_string!r}: expected {wanted}")
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = list(action.choices)
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self._problems.append(
            f"{action.option_strings[-1]} {value!r}: choose {', '.join(choices[:-1])} or "
            f"{choices[-1]}{hint}"
        )

    def _explain(self, leftover: list[str]) -> list[str]:
        """One line per unknown flag; words after one are taken for its values and left alone."""
        lines: list[str] = []
        after_unknown_flag = False
        for word in leftover:
            if word == "--":
                return [*lines, "unexpected word '--': every value follows a --flag"]
            if word.startswith("-") and not re.fullmatch(r"-\.?\d.*", word):
                lines.append(f"unknown flag {word.split('=')[0]}{self._nearest(word)}")
                after_unknown_flag = True
            elif not after_unknown_flag:
                lines.append(f"unexpected word {word!r}: every value follows a --flag")
        return lines

    def _nearest(self, word: str) -> str:
        known = [s for action in self._actions for s in action.option_strings if s.startswith("--")]
        name = "--" + word.split("=")[0].lstrip("-").replace("_", "-").lower()
        if name in known:
            return f"; did you mean {name}?"
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.72)
        return f"; did you mean {' or '.join(close)}?" if close else "; see fastclip train --help"


class _HelpFormatter(argparse.HelpFormatter):
    """Wide columns, and the default of every flag that has a telling one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        default = action.default
        if default in (None, "", {}, argparse.SUPPRESS) or isinstance(default, bool):
            return text
        return f"{text} [{'a tab' if default == chr(9) else default}]"


def _reword(message: str) -> str:
    """argparse's message in the form of ours: without `argument `, the flag by its long name."""
    message = re.sub(r"^argument (?:\S+/)*(--\S+): ", r"\1: ", message)
    return re.sub(r"ignored explicit argument .*", "takes no value", message)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv` as the reference does, fill defaults that depend on the model, and add ours.

    Raises UserError (one line per mistake); exits after printing for `--help`.
    """
    namespace = TrainParser().parse(argv)
    if "timm" not in namespace.opt:
        for name, value in optimiser_defaults(namespace.model).items():
            if getattr(namespace, name) is None:
                setattr(namespace, name, value)
    return namespace


def optimiser_defaults(model: str) -> dict[str, float]:
    """AdamW's settings in the CLIP paper (appendix F); the reference goes by "vit" in the name."""
    if "vit" in model.lower():
        return {"lr": 5e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
    return {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

"""`--aug-cfg KEY=VALUE ...`: words to a dictionary, as the reference does, then to `AugmentConfig`.

The dictionary is what `params.txt` shows. Whether its keys exist and its values can work is asked
in a second step, before anything starts; the reference finds out when the model has been built.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fastclip.config.images import AugmentConfig
from fastclip.errors import UserError

KEYS = tuple(field.name for field in fields(AugmentConfig))

# The reference asks whether the value is truthy, and every word is: `use_timm=false` means on.
_WORDS_FOR_ON = ("true", "yes", "on", "y", "t")
_TIMM_SCALE = (0.08, 1.0)  # reference: `scale=None` with use_timm leaves timm's own range


class KeyValueAction(argparse.Action):
    """Words `key=value` become a dictionary; values are Python literals, or else plain strings."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parsed: dict[str, Any] = {}
        problems: list[str] = []
        for word in values or ():
            try:
                key, value = parse_word(str(word))
            except UserError as error:
                problems.append(str(error))
            else:
                parsed[key] = value
        if problems:
            raise argparse.ArgumentError(None, "\n".join(problems))
        setattr(namespace, self.dest, parsed)


def parse_word(word: str) -> tuple[str, Any]:
    """`key=value` -> (key, value). Raises UserError where the reference fails with a traceback."""
    key, equals, text = word.partition("=")
    if not equals or not key or "=" in text:
        raise UserError(f"--aug-cfg {word!r}: write KEY=VALUE, for instance scale=0.4,1.0")
    try:
        return key, ast.literal_eval(text)
    except ValueError:
        return key, text  # a bare word, such as `bicubic`, needs no quotes
    except (SyntaxError, TypeError, MemoryError, RecursionError):
        raise UserError(
            f"--aug-cfg {word!r}: {text!r} is not a number, a list of numbers or a word; "
            "write for instance scale=0.4,1.0 or scale='(0.4, 1.0)'"
        ) from None


def make_augment_config(values: Mapping[str, Any]) -> AugmentConfig:
    """The checked form of the dictionary. Raises UserError with one line per problem.

    What the reference runs properly is accepted, with its meaning; what it ignores is checked too,
    since a wrong value there is a mistake as well.
    """
    check = _Checker()
    for key in values:
        if key not in KEYS:
            check.problems.append(f"--aug-cfg {key}: no such key{_nearest(key)}")
    use_timm = check.switch("use_timm", values.get("use_timm", False))
    scale = check.interval("scale", values["scale"], use_timm) if "scale" in values else None
    if scale is None:
        if "scale" in values and values["scale"] is None and not use_timm:
            check.refuse("scale", None, "two numbers, such as 0.4,1.0")
        scale = _TIMM_SCALE if "scale" in values else AugmentConfig().scale
    config = AugmentConfig(
        scale=scale,
        ratio=check.interval("ratio", values.get("ratio"), use_timm),
        color_jitter=check.jitter(values.get("color_jitter")),
        re_prob=check.probability("re_prob", values.get("re_prob")),
        re_count=check.count("re_count", values.get("re_count")),
        use_timm=use_timm,
        color_jitter_prob=check.probability("color_jitter_prob", values.get("color_jitter_prob")),
        gray_scale_prob=check.probability("gray_scale_prob", values.get("gray_scale_prob")),
    )
    jitter = config.color_jitter
    if (
        not check.problems
        and not use_timm
        and config.color_jitter_prob
        and not (isinstance(jitter, tuple) and len(jitter) == 4)
    ):
        check.problems.append(
            "--aug-cfg color_jitter_prob: needs color_jitter with four numbers beside it "
            "(brightness, contrast, saturation, hue), such as color_jitter=0.32,0.32,0.32,0.08"
        )
    if check.problems:
        raise UserError("\n".join(check.problems))
    return config


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key.lower().replace("-", "_"), KEYS, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(KEYS)}"


def _number(value: object) -> float | None:
    """`value` as a finite number, or None. True and False count as 1 and 0, as in Python."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


class _Checker:
    """Turns values into their types; collects what is wrong instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def refuse(self, key: str, value: object, wanted: str) -> None:
        self.problems.append(f"--aug-cfg {key}={value}: must be {wanted}")

    def switch(self, key: str, value: object) -> bool:
        if isinstance(value, str):
            if value.lower() not in _WORDS_FOR_ON:
                self.refuse(key, value, "True or False (OpenCLIP takes any other word for True)")
            return True
        if value is not None and not isinstance(value, (bool, int, float)):
            self.refuse(key, value, "True or False")
        return bool(value)

    def interval(
        self, key: str, value: object, may_be_reversed: bool
    ) -> tuple[float, float] | None:
        """Two numbers in order; timm draws from (b, a) as from (a, b), torchvision refuses it."""
        if value is None:
            return None
        numbers = [_number(v) for v in value] if isinstance(value, (tuple, list)) else []
        least = 0.0 if key == "scale" else math.ulp(0.0)
        if len(numbers) != 2 or any(n is None or n < least for n in numbers):
            meaning = "shares of the area" if key == "scale" else "width / height, above 0"
            self.refuse(key, value, f"two numbers ({meaning}), such as 0.4,1.0")
            return None
        low, high = (n for n in numbers if n is not None)
        if low > high and not may_be_reversed:
            self.refuse(key, value, f"in order, the smaller first: {high:g},{low:g}")
            return None
        return min(low, high), max(low, high)

    def jitter(self, value: object) -> float | tuple[float, ...] | None:
        wanted = (
            "0 or greater: one number, or brightness, contrast, saturation and, at most 0.5, hue; "
            "such as 0.32,0.32,0.32,0.08"
        )
        if value is None:
            return None
        if isinstance(value, (tuple, list)):
            numbers = [_number(v) for v in value]
            wrong = len(numbers) not in (3, 4) or any(n is None or n < 0 for n in numbers)
            if not wrong and len(numbers) == 4:
                wrong = (numbers[3] or 0.0) > 0.5
            if wrong:
                self.refuse("color_jitter", value, wanted)
                return None
            return tuple(n for n in numbers if n is not None)
        number = _number(value)
        if number is None or number < 0:
            self.refuse("color_jitter", value, wanted)
            return None
        return number

    def probability(self, key: str, value: object) -> float | None:
        if value is None:
            return None
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            self.refuse(key, value, "a number from 0 to 1")
            return None
        return number

    def count(self, key: str, value: object) -> int | None:
        if value is None:
            return None
        number = _number(value)
        if number is None or number < 1 or number != int(number):
            self.refuse(key, value, "a whole number, 1 or greater")
            return None
        return int(number)

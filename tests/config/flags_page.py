"""Writes docs/flags.md from the parser: `python -m tests.config.flags_page`, in the root."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastclip.config.parse import TrainParser
from fastclip.config.resolve import REFUSED
from tests.config.flag_lists import OWN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flags.md"

HEAD = """# Flags of `fastclip train`

All 90 flags of OpenCLIP 3.3.0's trainer, with their names, types, defaults and meanings, and a few
of our own. Any beginning of a flag that only one flag has will do (`--train-num` for
`--train-num-samples`); it is looked up among OpenCLIP's flags first, so that ours never make one
of its abbreviations ambiguous. `--flag value` and `--flag=value` are the same. A flag that takes
"nothing" is a switch: off unless given. Per rank means per process, which is per GPU.

What differs from OpenCLIP is in [behaviour-differs.md](behaviour-differs.md).

<!-- Written by `python -m tests.config.flags_page` from the help texts: change those. -->
"""

# dests whose default is filled in after parsing, by the model's name
BY_MODEL = {
    "lr": "5e-4",
    "beta1": "0.9",
    "beta2": "0.98 (ViT), 0.999",
    "eps": "1e-6 (ViT), 1e-8",
}

AUG_CFG = """
### The keys of `--aug-cfg`

Written `--aug-cfg key=value key=value`. A value is a number, a list of numbers (`0.4,1.0`,
`'(0.4, 1.0)'` and `[0.4,1.0]` are the same), `True`, `False` or `None`. Pictures are never flipped.

| key | value | default | meaning |
|---|---|---|---|
"""

# key -> value, default, meaning
AUG_KEYS = {
    "scale": ("two numbers", "`0.9,1.0`", "share of the picture's area that a random crop takes"),
    "ratio": (
        "two numbers",
        "`0.75,1.333`",
        "width / height of the crop, before it is resized; acts with `use_timm` only",
    ),
    "color_jitter": (
        "1, 3 or 4 numbers",
        "none",
        "greatest change of brightness, contrast, saturation and hue (at most 0.5); one number is "
        "for the first three",
    ),
    "re_prob": (
        "0 to 1",
        "none",
        "with `use_timm`: share of pictures of which a part is replaced by noise",
    ),
    "re_count": (
        "whole number",
        "`1`",
        "with `use_timm`: most parts that are replaced in one picture",
    ),
    "use_timm": (
        "`True`, `False`",
        "`False`",
        "augment as timm does: see the other keys, and `--image-interpolation`",
    ),
    "color_jitter_prob": (
        "0 to 1",
        "none",
        "without `use_timm`: share of pictures that are jittered; needs four numbers in "
        "`color_jitter`. With `use_timm` it does nothing: all are jittered",
    ),
    "gray_scale_prob": (
        "0 to 1",
        "none",
        "without `use_timm`: share of pictures that become grey. With `use_timm` it does nothing",
    ),
}


def takes(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "nothing"
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    kind = {int: "whole number", float: "number"}.get(action.type, "text")  # type: ignore[arg-type]
    many = {"+": ", one or more", "*": ", any number"}.get(str(action.nargs), "")
    return f"{kind}{many} ({action.metavar})"


def default(action: argparse.Action) -> str:
    if action.dest in BY_MODEL:
        return BY_MODEL[action.dest]
    if action.nargs == 0:
        return "off"
    if action.default is None or action.default in ("", {}):
        return "–"
    return "a tab" if action.default == "\t" else f"`{action.default}`"


def row(action: argparse.Action) -> str:
    text = str(action.help).replace("|", "\\|").replace("*", "\\*")
    return f"| `{action.option_strings[-1]}` | {takes(action)} | {default(action)} | {text} |"


def table(actions: list[argparse.Action]) -> str:
    return "\n".join(
        ["| flag | takes | default | meaning |", "|---|---|---|---|", *map(row, actions)]
    )


def page() -> str:
    parts = [HEAD]
    own: list[argparse.Action] = []
    for group in TrainParser()._action_groups:
        actions = [
            a for a in group._group_actions if a.option_strings and "--help" not in a.option_strings
        ]
        if actions and actions[0].option_strings[-1] in OWN:
            own = actions
        elif actions:
            kept = [a for a in actions if a.option_strings[-1] not in REFUSED]
            parts.append(f"\n## {str(group.title).capitalize()}\n\n{table(kept)}\n")
            if any(a.dest == "aug_cfg" for a in actions):
                parts.append(AUG_CFG)
                parts += [f"| `{key}` | {' | '.join(cells)} |\n" for key, cells in AUG_KEYS.items()]
    parts.append(
        "\n## Refused\n\nThese are read, and then end the command with one line that says this.\n\n"
        "| flag | why | instead |\n|---|---|---|\n"
        + "\n".join(f"| `{flag}` | {why} | {instead} |" for flag, (why, instead) in REFUSED.items())
        + "\n"
    )
    parts.append(
        "\n## Ours\n\nOpenCLIP does not have these. Left out, they choose the fastest way that "
        f"computes the same (docs/numerics.md says how nearly).\n\n{table(own)}\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())

"""The report of a check: Markdown from the same values that the JSON holds."""

from __future__ import annotations

from typing import Any

from fastclip.data.bad_samples import BadEvent

_ROWS = {
    "width": "width, pixels",
    "height": "height, pixels",
    "shorter_edge": "shorter edge, pixels",
    "picture_bytes": "encoded picture, bytes",
    "caption_tokens": "caption, tokens with both marks",
}


def markdown(
    spec: str, found: dict[str, Any], examples: dict[str, list[BadEvent]], plots: str | None
) -> str:
    """`plots` is the name of the picture beside the report, None where there is none."""
    parts = [
        f"# Check of {_cell(spec)}\n",
        "\n".join(f"- {line}" for line in summary(found)) + "\n",
        "## Samples\n",
        _sizes(found),
        _counts("format and mode", found["formats"]),
    ]
    if plots is not None:
        parts.append(f"![sizes and caption lengths]({plots})\n")
    parts.append("## What is wrong\n")
    parts.append(_counts("cause", found["causes"]) if found["causes"] else "Nothing.\n")
    for cause, events in examples.items():
        lines = "\n".join(f"- {_cell(e.where)}{_because(e)}" for e in events)
        parts.append(
            f"### {cause}: the first {len(events)} of {found['causes'][cause]:,}\n\n{lines}\n"
        )
    return "\n".join(parts)


def summary(found: dict[str, Any]) -> list[str]:
    """Sentences for the screen and for the head of the report."""
    run, twice = found["training"], found["duplicates"]
    decoded = (
        "decoded" if found["pictures_decoded"] else "judged by their headers and ends, not decoded"
    )
    lines = [
        f"{found['shards']:,} shards, {found['samples']:,} usable samples, {found['dropped']:,} bad "
        f"({found['bad_fraction']:.2%}); pictures were {decoded}",
        f"{found['captions_cut_at_77_tokens']:,} captions are cut at 77 tokens",
        f"more than once: {twice['picture']:,} pictures, {twice['caption']:,} captions, {twice['key']:,} keys "
        "(the first of each not counted)",
        f"`fastclip train --batch-size {run['batch_size']} --workers {run['workers']}` on {run['world_size']} "
        f"processes: {run['steps_per_epoch']:,} steps an epoch, {run['samples_per_epoch']:,} samples",
    ]
    if run["refused"] is not None:
        lines.append(f"that run is refused at its start: {run['refused']}")
    return lines


def _sizes(found: dict[str, Any]) -> str:
    names = ("least", "5 %", "median", "95 %", "most")
    rows = [f"| {label} | {_numbers(found[key])} |" for key, label in _ROWS.items() if found[key]]
    return "\n".join([f"| | {' | '.join(names)} |", "|---" * 6 + "|", *rows, ""])


def _numbers(values: list[int]) -> str:
    return " | ".join(f"{value:,}" for value in values)


def _counts(title: str, counts: dict[str, int]) -> str:
    rows = [f"| {_cell(name)} | {count:,} |" for name, count in counts.items()]
    return "\n".join([f"| {title} | number |", "|---|---|", *rows, ""])


def _because(event: BadEvent) -> str:
    return f": {_cell(event.detail)}" if event.detail else ""


def _cell(text: str) -> str:
    """`text`, of which nothing is markup: names come from the archives."""
    for sign in "\\`*_<>|[]#":
        text = text.replace(sign, "\\" + sign)
    return text

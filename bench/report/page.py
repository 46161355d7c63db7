"""The page: Markdown with the plots beside it, and the same as one HTML file that carries them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import markdown

from bench.report import plots
from bench.report.changes import Change, changes
from bench.rows import OURS, Row, Run
from bench.table import sent_by, time_of, used

_STYLE = """body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-size: 13px } td, th { border: 1px solid #ccc; padding: 2px 8px }
img { max-width: 100% }"""


def write_page(runs: list[Run], folder: Path) -> list[Change]:
    """report.md, report.html and the plots in `folder`; what changed between each run and the next."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [change for old, new in pairwise(runs) for change in changes(old, new)]
    text = "\n".join(_page(runs, found, folder)) + "\n"
    (folder / "report.md").write_text(text)
    body = markdown.markdown(text, extensions=["tables"])
    body = re.sub(
        r'src="([^"]+\.png)"', lambda match: f'src="{_embedded(folder / match[1])}"', body
    )
    page = (
        f"<!doctype html><meta charset=utf-8><title>fastclip bench</title><style>{_STYLE}</style>"
    )
    (folder / "report.html").write_text(f"{page}\n{body}\n")
    return found


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _page(runs: list[Run], found: list[Change], folder: Path) -> Iterator[str]:
    last = runs[-1]
    yield f"# fastclip beside open_clip: {last.commit}"
    yield ""
    described = ", ".join(f"{name} {value}" for name, value in last.machine.items())
    yield f"{last.when}: {described}."
    yield ""
    yield (
        "Each ratio is the peer's time over ours, the median of rounds in which both ran in turns; its spread is the "
        "interval that holds the median with 95 % confidence, or all rounds where these are few. Short cases were "
        "timed in visits spread over the run: there a round is the median of one visit. Used is useful work over "
        "what products of the model's shapes, or copies, reached in the same run, whichever is more."
    )
    yield ""
    if len(runs) > 1:
        yield from _changes(runs, found)
    for title, picture in _pictures(runs, folder):
        if picture is not None:
            yield f"## {title}"
            yield ""
            yield f"![{title}]({picture.name})"
            yield ""
    yield "## All cases"
    yield ""
    yield "| part | case | beside | ours | theirs | ratio | spread | used | of data sheet | peak, ours and theirs |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in last.rows:
        yield from _table_lines(row)
    sent = [sent_by(row) for row in last.rows if "sent_bytes" in row]
    if sent:
        yield ""
        yield "Sent:"
        yield ""
        yield from (f"- {text}" for text in sent)
    missing = {f"{peer}: {why}" for row in last.rows for peer, why in row["missing"].items()}
    if missing:
        yield ""
        yield "Missing:"
        yield ""
        yield from (f"- {text}" for text in sorted(missing))


def _changes(runs: list[Run], found: list[Change]) -> Iterator[str]:
    yield f"## Changes: {' to '.join(run.commit for run in runs)}"
    yield ""
    told = [change for change in found if change.verdict in ("slower", "faster")]
    for change in told:
        yield (
            f"- **{change.verdict}**: {change.part}, {change.case}: {change.times:.2f} times the time "
            f"(ratio to {change.peer} {change.before:.2f}, then {change.after:.2f})"
        )
    counts = {
        v: sum(c.verdict == v for c in found) for v in ("same", "too few rounds", "not compared")
    }
    rest = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    yield f"- {rest}" if rest else "- nothing else to compare"
    yield ""


def _pictures(runs: list[Run], folder: Path) -> Iterator[tuple[str, Path | None]]:
    last = runs[-1]
    yield "Speed-ups", plots.speed_ups(last, folder / "speed_ups.png")
    yield "Over the runs", plots.over_runs(runs, folder / "over_runs.png")
    yield "A step by its parts", plots.step_timeline(last, folder / "step.png")
    yield "Roofline", plots.roofline(last, folder / "roofline.png")
    yield "Cost as batch and ranks grow", plots.growth(last, folder / "growth.png")


def _table_lines(row: Row) -> Iterator[str]:
    ours = row["ways"].get(OURS, {"error": "not run"})
    for name in [*(n for n in row["ways"] if n != OURS), *row["missing"]]:
        way, ratio = row["ways"].get(name, {"error": "missing"}), row["ratios"].get(name)
        numbers = ("-", "-")
        if ratio:
            numbers = (f"{ratio['median']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}")
        sheet = ours.get("of_data_sheet")
        cells = [
            row["part"], row["case"], name, time_of(ours), time_of(way), *numbers, used(ours),
            f"{sheet:.0%}" if sheet else "-", f"{_mega(ours)}, {_mega(way)}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _mega(way: dict[str, float]) -> str:
    peak = way.get("peak_bytes")
    return "-" if peak is None else f"{peak / 1e6:.4g} MB"

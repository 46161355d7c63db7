"""The plots of the page, each a PNG file; all axes begin at zero."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.report.changes import key_of, peer_of
from bench.rows import OURS, REFERENCE, Row, Run

_COLOURS = {OURS: "tab:blue", REFERENCE: "tab:orange"}
_STEP_PARTS = ("image tower", "text tower", "loss and the rest")


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def label_of(row: Row) -> str:
    return textwrap.shorten(f"{row['part']}: {row['case']}", 60, placeholder="...")


def speed_ups(run: Run, path: Path) -> Path | None:
    """A bar for each case: how many times as fast as its peer, with its interval."""
    rows = [(row, peer) for row in run.rows if (peer := peer_of(row))]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.28 * len(rows)))
    for place, (row, peer) in enumerate(rows):
        found = row["ratios"][peer]
        middle = found["median"]
        spread = [[middle - found["low"]], [found["high"] - middle]]
        colour = "tab:blue" if middle >= 1 else "tab:red"
        axes.barh(place, middle, xerr=spread, color=colour, height=0.7, capsize=2)
    axes.set_yticks(range(len(rows)), [label_of(row) for row, _ in rows], fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(y=0.01)
    axes.set_xlabel("times as fast as open_clip (or the first peer there); line: as fast")
    return _save(figure, path)


def roofline(run: Run, path: Path) -> Path | None:
    """Useful FLOP/s over useful FLOPs a byte, under what products and copies reached in the same run."""
    rows = [r for r in run.rows if r["work"]["flops"] and r["work"]["bytes"]]
    if not rows:
        return None
    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5))
    intensities = [row["work"]["flops"] / row["work"]["bytes"] for row in rows]
    ceiling = rows[0]["ceilings"]
    top, ridge = ceiling["gemm_flops"] / 1e9, ceiling["gemm_flops"] / ceiling["copy_bytes"]
    for axes, right in zip(both, (4 * ridge, 1.1 * max(*intensities, ridge)), strict=True):
        axes.plot([0, ridge, max(right, 2 * ridge)], [0, top, top], color="black", linewidth=1)
        for who in (OURS, REFERENCE):
            points = [
                (x, row["ways"][who]["flops_per_second"] / 1e9)
                for x, row in zip(intensities, rows, strict=True)
                if x <= right and "flops_per_second" in row["ways"].get(who, {})
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), label=who, color=_COLOURS[who], zorder=2)
        axes.set_xlim(0, right)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("useful FLOPs a byte that must move")
        axes.legend()
    both[0].set_title("around the ridge of copy bandwidth and products", fontsize=9)
    both[1].set_title("all ops", fontsize=9)
    both[0].set_ylabel("useful GFLOP/s")
    return _save(figure, path)


def step_timeline(run: Run, path: Path) -> Path | None:
    """Where a step's time goes: towers by themselves, and what is left of the whole step."""
    cases = _steps_with_towers(run)
    if not cases:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.5 * len(cases)))
    for place, (_, parts) in enumerate(cases):
        left = 0.0
        for seconds, colour in zip(parts, ("tab:blue", "tab:green", "tab:grey"), strict=True):
            axes.barh(place, 1e3 * seconds, left=1e3 * left, color=colour, height=0.7)
            left += seconds
    axes.set_yticks(range(len(cases)), [name for name, _ in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("ms of a step; towers as timed by themselves, forward and backward")
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, color=c) for c in ("tab:blue", "tab:green", "tab:grey")
    ]
    axes.legend(handles, _STEP_PARTS, fontsize=8)
    return _save(figure, path)


def _steps_with_towers(run: Run) -> list[tuple[str, tuple[float, float, float]]]:
    """(who and what, seconds of each of `_STEP_PARTS`)."""
    of_part: dict[str, list[Row]] = {}
    for row in run.rows:
        of_part.setdefault(row["part"], []).append(row)
    images = of_part.get("image tower", [])
    texts = {round(row["mean_tokens"], 3): row for row in of_part.get("text tower", [])}
    found = []
    for row in of_part.get("step", []):
        text = texts.get(round(row["mean_tokens"], 3))
        for who in (OURS, REFERENCE):
            if not images or text is None:
                continue
            ways = [each["ways"].get(who, {}) for each in (images[0], text, row)]
            if all("median" in way for way in ways):
                image, words, whole = (way["median"] for way in ways)
                rest = max(0.0, whole - image - words)
                found.append((f"{who}, captions of {row['mean_tokens']:.0f}", (image, words, rest)))
    return found


def growth(run: Run, path: Path) -> Path | None:
    """Seconds of the losses over the batch, and over the world size where ranks were timed."""
    sweeps: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in run.rows:
        sweep = row.get("sweep")
        if sweep is None:
            continue
        lines = sweeps.setdefault(sweep["over"], {})
        for who in (OURS, REFERENCE):
            if "median" in row["ways"].get(who, {}):
                point = (sweep["at"], 1e3 * row["ways"][who]["median"])
                lines.setdefault(f"{sweep['name']}, {who}", []).append(point)
    if not sweeps:
        return None
    figure, many = pyplot.subplots(1, len(sweeps), figsize=(5 * len(sweeps), 4), squeeze=False)
    for axes, (over, lines) in zip(many[0], sweeps.items(), strict=True):
        for name, points in lines.items():
            style = "--" if name.endswith(REFERENCE) else "-"
            axes.plot(*zip(*sorted(points), strict=True), style, marker="o", label=name)
        _from_zero(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(over)
        axes.set_ylabel("ms, forward and backward")
        axes.legend(fontsize=8)
    return _save(figure, path)


def over_runs(runs: list[Run], path: Path) -> Path | None:
    """The ratio of each step and trainer case over the runs given."""
    if len(runs) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 4))
    shown = ("loss", "step", "whole trainer", "image tower")
    for key in [key_of(row) for row in runs[-1].rows if row["part"] in shown]:
        points = [
            (place, row["ratios"][peer])
            for place, run in enumerate(runs)
            for row in run.rows
            if key_of(row) == key and (peer := peer_of(row))
        ]
        if points:
            places = [place for place, _ in points]
            middle = [found["median"] for _, found in points]
            low = [found["median"] - found["low"] for _, found in points]
            high = [found["high"] - found["median"] for _, found in points]
            name = textwrap.shorten(": ".join(key), 50, placeholder="...")
            axes.errorbar(places, middle, yerr=[low, high], marker="o", capsize=2, label=name)
    axes.set_xticks(range(len(runs)), [run.commit for run in runs], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times as fast as the peer")
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(1, 0))
    return _save(figure, path)


def _from_zero(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)

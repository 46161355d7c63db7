"""Results in CLIP_benchmark's schema, and as a table to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastclip import __version__
from fastclip.benchmark.dataset import causes
from fastclip.benchmark.model import Subject
from fastclip.benchmark.tasks import Outcome
from fastclip.benchmark.write import write_whole
from fastclip.errors import UserError


def record(
    subject: Subject, dataset: str, task: str, outcome: Outcome, fingerprint: str
) -> dict[str, Any]:
    """CLIP_benchmark's fields, and after them our own."""
    return {
        "dataset": dataset,
        "model": subject.name,
        "pretrained": subject.checkpoint,
        "task": task,
        "metrics": outcome.metrics,
        "language": "en",
        "num_samples": outcome.num_samples,
        "bad_samples": outcome.bad,
        "fingerprint": fingerprint,
        "evaluated_by": f"fastclip {__version__}",
    }


def read_record(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result in `path` if it is of the same weights, data and settings; None if there is none.

    UserError if the file is of something else: it is not overwritten.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        raise UserError(
            f"--out {path}: is there already, and not from these weights, data and settings; "
            "move it away or give another --out"
        )
    return content


def write_record(path: Path, result: Mapping[str, Any]) -> None:
    """As JSON; raises CannotWrite."""
    write_whole(path, json.dumps(result, indent=2) + "\n")


def metrics_table(result: Mapping[str, Any]) -> str:
    """One result as a Markdown table of its figures."""
    bad = sum(result["bad_samples"].values())
    left_out = f", {bad:,} left out: {causes(result['bad_samples'])}" if bad else ""
    head = (
        f"{result['model']} ({result['pretrained']}) on {result['dataset']}: {result['task']}, "
        f"{result['num_samples']:,} samples{left_out}"
    )
    rows = [[name, show(value)] for name, value in result["metrics"].items()]
    return f"{head}\n\n{table(['metric', 'value'], rows)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source is aligned too."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)

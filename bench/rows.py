"""One row of the suite's result: what was timed, by whom, in how long, and what of the machine that used.

A row is plain JSON. `SCHEMA` is the number of its layout; `load_rows` refuses another.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.paired import Timing, of_visits, ratios, with_spread
from fastclip.errors import DataError, InputMissing

SCHEMA = 1
BLOCK = "fastclip_bench"  # its name in pytest-benchmark's JSON
OURS, REFERENCE = "fastclip", "open_clip"

Row = dict[str, Any]


@dataclass(frozen=True)
class Ceilings:
    """What this machine reached in the same run; None where it has no such thing."""

    gemm_flops: float  # FLOP/s of products of the model's own shapes, in the dtype of the ops
    copy_bytes: float  # bytes/s, read and written
    data_sheet_flops: float | None = None


class Work(NamedTuple):
    """What one call does at least, whoever does it."""

    samples: int
    flops: float = 0.0  # useful ones: products that the mathematics needs
    bytes: float = 0.0  # inputs read once and results written once, each pass


def make_row(
    part: str,
    case: str,
    results: dict[str, Timing | str],  # seconds of one call, or why there are none
    work: Work,
    ceilings: Ceilings,
    missing: dict[str, str],
    of_visit: int = 1,  # rounds that were taken in one go
    **more: Any,  # JSON: what the case adds
) -> Row:
    """The ratio of each peer is its time over ours: how many times as fast ours is."""
    ours = results.get(OURS)
    ways: dict[str, dict[str, Any]] = {}
    compared: dict[str, dict[str, Any]] = {}
    for name, timing in results.items():
        if isinstance(timing, str):
            ways[name] = {"error": timing}
            continue
        seconds = timing.median
        flops = work.flops / seconds if work.flops else None
        moved = work.bytes / seconds if work.bytes else None
        ways[name] = {
            "seconds": timing.seconds,
            "median": seconds,
            "peak_bytes": timing.peak_bytes,
            "samples_per_second": work.samples / seconds,
            "flops_per_second": flops,
            "bytes_per_second": moved,
            "of_gemm_rate": _share(flops, ceilings.gemm_flops),
            "of_data_sheet": _share(flops, ceilings.data_sheet_flops),
            "of_copy_rate": _share(moved, ceilings.copy_bytes),
        }
        if name != OURS and isinstance(ours, Timing):
            of_rounds = ratios(timing, ours)
            spread = with_spread(of_visits(of_rounds, of_visit))
            compared[name] = {"rounds": of_rounds, **spread._asdict()}
    return {
        "part": part, "case": case, "work": work._asdict(), "ceilings": asdict(ceilings),
        "ways": ways, "ratios": compared, "missing": missing, **more,
    }  # fmt: skip


def _share(rate: float | None, ceiling: float | None) -> float | None:
    return None if rate is None or ceiling is None else rate / ceiling


class Run(NamedTuple):
    """One JSON file of `pytest bench/ --benchmark-json`."""

    path: Path
    commit: str  # short; "+" where the tree had changes
    when: str  # date and time of the run
    machine: dict[str, Any]
    rows: list[Row]


def load_run(path: Path) -> Run:
    """InputMissing or DataError, one line each, where there is nothing to read or another layout."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputMissing(f"{path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: not JSON, or cut short: run the suite again") from None
    block = content.get(BLOCK) if isinstance(content, dict) else None
    if block is None:
        raise DataError(f"{path}: not a result of pytest bench/ --benchmark-json")
    if block.get("schema") != SCHEMA:
        raise DataError(
            f"{path}: layout {block.get('schema')}, this report reads {SCHEMA}: run the suite of this "
            "version again, or the report of that one"
        )
    commit = content.get("commit_info") or {}
    named = str(commit.get("id") or "unknown")[:8] + ("+" if commit.get("dirty") else "")
    return Run(path, named, content.get("datetime", ""), block["machine"], block["rows"])

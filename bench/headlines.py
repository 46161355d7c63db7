"""One line on the JSON of each part of scripts/gpu_check.sh."""

from __future__ import annotations

from typing import Any

from bench.paired import with_spread
from bench.rows import BLOCK


def environment(found: Any) -> str:
    return f"{found['device']}, torch {found['torch']}, triton {found['triton']}"


def kernels(found: Any) -> str:
    cases = found["cases"]
    return f"{sum(case['right'] for case in cases)} of {len(cases)} cases right"


def losses(found: Any) -> str:
    cases = found["cases"]
    return f"{sum(not case['wrong'] for case in cases)} of {len(cases)} cases right"


def tiles(found: Any) -> str:
    if found["machine"]["interpreted"]:
        return f"{len(found['cases'])} cases ran in the interpreter: no speeds"
    better = [case for case in found["cases"] if case["best"] not in (None, "table")]
    return f"{len(better)} of {len(found['cases'])} cases have faster tiles than the table's"


def speed(found: Any) -> str:
    """Of the largest case that ran, by the peer that is the best of them there."""
    if found["machine"]["interpreted"]:
        return f"{len(found['cases'])} cases ran in the interpreter: no speeds"
    for case in reversed(found["cases"]):
        ratios = {
            name: way["fastclip_is_times_as_fast"]
            for name, way in case["ways"].items()
            if not name.startswith("fastclip") and way.get("fastclip_is_times_as_fast")
        }
        if ratios:
            peer = min(ratios, key=lambda name: ratios[name])
            size = f"{case['loss']} {case['rows']} x {case['width']}"
            return f"{size}: {ratios[peer]:.2f} times as fast as {peer}"
    return "nothing to compare with"


def suite(found: Any) -> str:
    rows = [row for row in found[BLOCK]["rows"] if "open_clip" in row["ratios"]]
    return ", ".join(
        f"{row['part']} {row['ratios']['open_clip']['median']:.2f}" for row in rows[:3]
    )


def step(found: Any) -> str:
    """At the captions' own lengths."""
    ways = found["cases"][0]["ways"]
    ours, theirs = ways["fastclip"], ways.get("open_clip", {})
    if "samples_per_second" not in ours:
        return str(ours.get("error"))
    ratio = theirs.get("fastclip_is_times_as_fast")
    beside = f", {ratio:.2f} times as fast as open_clip" if ratio else ""
    used = f", {ours['of_gemm_rate']:.0%} of the products' rate"
    return f"{ours['samples_per_second']:.0f} samples/s{beside}{used}"


def trainer(found: Any) -> str:
    ratio = with_spread([each["ratio"] for each in found["rounds"]])
    return f"{ratio.median:.2f} times as fast as open_clip ({ratio.low:.2f} to {ratio.high:.2f})"

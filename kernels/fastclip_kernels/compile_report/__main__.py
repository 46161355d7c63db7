"""Exit status: 0 if every bar is met, 1 if not, 2 for a usage that cannot be served."""

from __future__ import annotations

import argparse
import json
import sys

from ..backend import interpreting


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastclip_kernels.compile_report")
    parser.add_argument(
        "--arch", action="append", choices=("sm_80", "sm_90"), help="both if not given"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every variant that can be chosen, not a width of 512 alone",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--launch",
        metavar="M,K,D,WARPS,STAGES",
        help="compile the bfloat16 kernels with this tile, to see what it costs",
    )
    parser.add_argument(
        "--only", metavar="NAME", help="with --launch: this kernel, as the table names it"
    )
    given = parser.parse_args()
    if interpreting():
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    from ..loss.triton_table import Launch  # triton loads here, after the check
    from .report import as_json, as_text, make_report

    launch = None
    if given.launch is not None:
        try:
            m, k, d, warps, stages = map(int, given.launch.split(","))
        except ValueError:
            parser.error(f"--launch {given.launch!r}: five whole numbers, separated by commas")
        launch = Launch(m, k, d, warps, stages)
    archs = list(dict.fromkeys(given.arch or ["sm_80", "sm_90"]))
    report = make_report(archs, all_variants=given.all, launch=launch, only=given.only)
    if given.json:
        print(json.dumps(as_json(report), indent=1))
    else:
        print("\n".join(as_text(report)))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""One page from the results of `pytest bench/`, oldest first: what is fast, and what a commit changed.

    pytest bench/ --benchmark-json RESULT.json
    python -m bench.report RESULT.json [...] --out FOLDER

Writes report.md, report.html and the plots. Exit status 3 where a case became slower beyond the noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.rows import load_run
from fastclip.errors import FastclipError

SLOWER = 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        runs = [load_run(path) for path in options.results]
    except FastclipError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return error.exit_code
    try:
        from bench.report.page import write_page
    except ImportError as error:
        print(f"bench.report: {error}: pip install '.[bench]'", file=sys.stderr)
        return 69
    try:
        found = write_page(runs, options.out)
    except OSError as error:
        print(f"bench.report: --out {options.out}: {error.strerror}", file=sys.stderr)
        return 74
    slower = [change for change in found if change.verdict == "slower"]
    for change in slower:
        print(f"slower: {change.part}, {change.case}: {change.times:.2f} times the time")
    print(f"{options.out / 'report.html'}: {len(runs)} runs, {len(slower)} cases slower")
    return SLOWER if slower else 0


if __name__ == "__main__":
    sys.exit(main())

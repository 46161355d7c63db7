"""The parts of scripts/gpu_check.sh, smallest first: each in a process of its own, time-boxed, kept once done.

    python -m bench.gpu_kit --out FOLDER [--seconds N] [--again] [--toy]

parts.json is written after each part, beside the part's own JSON. Started again with the same --out, it runs what is
not done. Ends with a line for each part; exit status 0 where every result that was checked is right.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.gpu_parts import Part, parts
from bench.reference_environment import ROOT
from fastclip.errors import ExitCode

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # not after a fork


class Done(NamedTuple):
    status: str  # done, missing, wrong, failed, out of time
    seconds: float
    words: list[str]
    end: str  # the last line that it printed


class Kit:
    """One folder of results."""

    def __init__(self, out: Path, *, toy: bool) -> None:
        self._out, self._toy = out, toy
        self._file = out / "parts.json"
        self._done: dict[str, Done] = {}
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            self._done = {name: Done(*each) for name, each in kept.items()}

    def is_done(self, part: Part) -> bool:
        """With the same arguments, and its JSON is whole."""
        known = self._done.get(part.name)
        return (
            known is not None
            and known[0] == "done"
            and known.words == part.words
            and (self._result(part) is not None)
        )

    def run(self, part: Part) -> None:
        """Whatever becomes of it is noted, and the next one runs."""
        print(f"== {part.name}", flush=True)
        started = time.monotonic()
        lacking = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if lacking:
            status, end = "missing", f"not installed: {', '.join(lacking)}"
            print(end, flush=True)
        else:
            status, end = self._in_a_process(part)
        self._done[part.name] = Done(status, time.monotonic() - started, part.words, end)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._done, indent=1) + "\n")
        partial.replace(self._file)

    def _in_a_process(self, part: Part) -> tuple[str, str]:
        """Its status and the last line that it printed; all of them are in a file."""
        environment = dict(os.environ)
        environment.pop("TRITON_INTERPRET", None)
        if part.interprets and self._toy and not torch.cuda.is_available():
            environment["TRITON_INTERPRET"] = "1"
        log = self._out / f"{part.name.replace(' ', '_')}.log"
        with log.open("w") as output:
            status = _in_time([sys.executable, *part.words], environment, output, part.seconds)
        lines = log.read_text().splitlines() or [""]
        print("\n".join(lines[-20:]), flush=True)
        return _status(part, status), lines[-1][:200]

    def line(self, part: Part) -> str:
        """For the summary."""
        done, result = self._done[part.name], self._result(part)
        said = done.end if done.status != "done" or result is None else part.headline(result)
        return f"{part.name:<21}{done.status:<12}{done.seconds:5.0f} s  {said}"

    def is_right(self, part: Part) -> bool:
        return not part.checks or self._done[part.name].status in ("done", "missing")

    def _result(self, part: Part) -> Any:
        try:
            return json.loads((self._out / part.result).read_text())
        except (OSError, ValueError):
            return None


def _in_time(
    words: list[str], environment: dict[str, str], output: Any, seconds: float
) -> int | None:
    """Its exit status; None where it was ended because of the time."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=_end_with_kit,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # out of time, or this process is being ended itself
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_kit() -> None:
    """A part that outlived a kit that was killed would run beside the same part of the next one. (What the part has
    started itself is a scheduler's to end.)"""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _status(part: Part, status: int | None) -> str:
    if status is None:
        return "out of time"
    if status == ExitCode.ENVIRONMENT:
        return "missing"
    if status == 0:
        return "done"
    return "wrong" if part.checks and status == 1 else "failed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / f"{date.today()}",
                        help="folder for JSON files (default: bench/results/<date>)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=240,
                        help="for each comparison of speeds: 60 makes ten minutes, 600 an hour")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="redo parts that are done")
    parser.add_argument("--toy", action="store_true",
                        help="small sizes; without a GPU kernels run in Triton's interpreter")  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.toy and not torch.cuda.is_available():
        print("there is no GPU here: pass --toy for a small run on the CPU", file=sys.stderr)
        return ExitCode.ENVIRONMENT
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a scheduler's end
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    kit, to_run = Kit(out, toy=options.toy), parts(out, options.seconds, toy=options.toy)
    for part in to_run:
        if not options.again and kit.is_done(part):
            print(f"== {part.name}: done before", flush=True)
        else:
            kit.run(part)
    print(f"== summary of {out}")
    for part in to_run:
        print(kit.line(part))
    wrong = [part.name for part in to_run if not kit.is_right(part)]
    print(f"NOT RIGHT: {', '.join(wrong)}" if wrong else "every result that was checked is right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The report: what it calls a change, what it refuses to read, and its plots."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.paired import Timing
from bench.report import plots
from bench.report.__main__ import SLOWER, main
from bench.report.changes import changes
from bench.rows import BLOCK, SCHEMA, Ceilings, Row, Work, load_run, make_row

CEILINGS = Ceilings(100e9, 10e9)
MACHINE = {"device": "a CPU", "torch": "2.14.1"}


@pytest.fixture
def drawn() -> random.Random:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


def row(
    drawn: random.Random,
    part: str = "loss",
    case: str = "clip 64 x 8",
    *,
    ours: float = 1.0,
    theirs: float = 2.0,
    rounds: int = 15,
    busy: float = 1.0,  # so many times as slow is the machine in the second half, and ours a little more so
    **more: Any,
) -> Row:
    """Seconds with 2 % of noise in each, and twice as much that a round's two share."""
    timings: dict[str, Timing | str] = {"fastclip": Timing([], 10), "open_clip": Timing([], 20)}
    for turn in range(rounds):
        shared = drawn.lognormvariate(0, 0.06)
        disturbed = busy if turn > rounds // 2 else 1.0
        for name, seconds, extra in (("fastclip", ours, 1.15), ("open_clip", theirs, 1.0)):
            slow = disturbed * extra if disturbed > 1 else 1.0
            timing = timings[name]
            assert isinstance(timing, Timing)
            timing.seconds.append(seconds * shared * slow * drawn.lognormvariate(0, 0.02))
    work = Work(64, flops=30e9, bytes=5e9)
    return make_row(part, case, timings, work, CEILINGS, {"inf-cl": "not installed"}, **more)


def written(path: Path, *rows: Row, **block: Any) -> Path:
    content = {
        "commit_info": {"id": path.stem * 8, "dirty": False}, "datetime": "2026-01-01T00:00:00",
        BLOCK: {"schema": SCHEMA, "machine": MACHINE, "rows": rows, **block},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def verdict_of(folder: Path, before: Row, after: Row, **block: Any) -> str:
    old, new = written(folder / "old.json", before), written(folder / "new.json", after, **block)
    (change,) = changes(load_run(old), load_run(new))
    return change.verdict


def test_a_slow_down_of_15_percent_is_flagged(
    tmp_path: Path, drawn: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = row(drawn), row(drawn, ours=1.15)
    assert verdict_of(tmp_path, before, after) == "slower"
    assert verdict_of(tmp_path, after, before) == "faster"
    files = [str(tmp_path / "new.json"), str(tmp_path / "old.json")]  # as the latter wrote them
    assert main([*files[::-1], "--out", str(tmp_path / "up")]) == 0
    assert main([*files, "--out", str(tmp_path / "page")]) == SLOWER
    assert "slower: loss, clip 64 x 8: 1.1" in capsys.readouterr().out
    assert "**slower**: loss, clip 64 x 8" in (tmp_path / "page" / "report.md").read_text()


def test_noise_is_not_flagged(tmp_path: Path, drawn: random.Random) -> None:
    """A machine half as fast for all of a run, or for a half of it, even if ours suffers more."""
    before = row(drawn, rounds=31)  # so many that the rank-sum test alone would see the disturbance
    assert verdict_of(tmp_path, before, row(drawn, rounds=31, ours=2.0, theirs=4.0)) == "same"
    assert verdict_of(tmp_path, before, row(drawn, rounds=31, busy=2.0)) == "same"


def test_what_cannot_be_told_is_said(tmp_path: Path, drawn: random.Random) -> None:
    few = [row(drawn, rounds=3), row(drawn, rounds=3, ours=1.5)]
    assert verdict_of(tmp_path, *few) == "too few rounds"
    other = {**MACHINE, "device": "another CPU"}
    assert verdict_of(tmp_path, row(drawn), row(drawn, ours=2), machine=other) == "not compared"
    new = written(tmp_path / "new.json", row(drawn, case="clip 128 x 8"))
    assert not list(changes(load_run(tmp_path / "old.json"), load_run(new)))


@pytest.mark.parametrize(("content", "status", "told"), [
    (None, 66, "No such file"),
    ("{", 65, "not JSON, or cut short"),
    ("{}", 65, "not a result of pytest bench/"),
    (json.dumps({BLOCK: {"schema": SCHEMA + 1}}), 65, f"layout {SCHEMA + 1}, this report reads"),
])  # fmt: skip
def test_what_it_cannot_read_is_one_line(
    content: str | None, status: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "page")]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "page").exists()


def test_the_page_of_two_runs(
    tmp_path: Path, drawn: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> list[Row]:
        sweep = {"name": "clip", "over": "pairs"}
        return [
            *(row(drawn, case=f"clip {n} x 8", ours=n / 64, sweep={**sweep, "at": n}) for n in (64, 128)),
            row(drawn, "loss on ranks", "2 ranks", sweep={**sweep, "over": "ranks", "at": 2},
                sent_bytes={"fastclip": 10_000, "open_clip": 30_000}),
            row(drawn, "image tower", "8 pictures"),
            row(drawn, "text tower", "8 captions", mean_tokens=12.1),
            row(drawn, "step", "8 pairs", ours=4, theirs=9, mean_tokens=12.1),
        ]  # fmt: skip

    figures: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda f, path: (figures.append(f), save(f, path))[1])
    files = [str(written(tmp_path / f"{name}.json", *rows())) for name in ("a", "b")]
    assert main([*files, "--out", str(tmp_path / "page")]) == 0
    assert len(figures) == 5
    for figure in figures:
        for axes in figure.axes:
            for low, ticks in ((axes.get_xlim()[0], axes.get_xticklabels()),
                               (min(axes.get_ylim()), axes.get_yticklabels())):  # fmt: skip
                named = any(any(c.isalpha() for c in tick.get_text()) for tick in ticks)
                assert named or low == 0  # axes of numbers begin at zero
    text = (tmp_path / "page" / "report.md").read_text()
    html = (tmp_path / "page" / "report.html").read_text()
    pictures = sorted(path.name for path in (tmp_path / "page").glob("*.png"))
    assert all(f"({name})" in text for name in pictures)
    assert html.count("data:image/png;base64,") == len(pictures) == 5
    assert (
        text.count("\n| ") == 1 + 2 * 6
    )  # the heading; each case beside its peer, and the missing one
    assert "by a rank in a step: fastclip 0.01 MB, open_clip 0.03 MB" in text

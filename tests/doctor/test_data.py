"""The data of the flags: looked for, read, and set against what the GPU asks for."""

from __future__ import annotations

import itertools
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from fastclip.doctor import data
from fastclip.doctor.examine import examine
from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Built, Case
from fastclip.doctor.parts import ask
from tests.doctor.environments import BARE, EVERYTHING, act_as_gpu, by_name, flags

DEMO = Path(__file__).resolve().parents[2] / "fastclip" / "demo"
SHARDS = ("--dataset-type", "webdataset", "--train-num-samples", "400", "--workers", "2")


def case(spec: str, *words: str) -> Case:
    config = flags("--train-data", spec, *SHARDS, "--batch-size", "16", *words)
    built, _ = ask(BARE, config)
    return Case(BARE, config, built)


def judged(given: Case) -> dict[str, Finding]:
    return by_name(data.check(given))


def test_reading_counts_what_the_shards_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, float]] = []

    def measure(sizes, seconds):
        seen.append((*real(sizes, seconds),))
        return seen[-1]

    real = data.measure
    monkeypatch.setattr(data, "measure", measure)
    found = judged(case(str(DEMO / "train-{0000..0001}.tar")))
    assert {finding.verdict for finding in found.values()} == {"ok"}
    sizes = []
    for name in ("train-0000.tar", "train-0001.tar"):
        with tarfile.open(DEMO / name) as shard:
            sizes += [m.size for m in shard if m.name.endswith((".jpg", ".png", ".txt"))]
    ((count, total, seconds),) = seen
    assert count == len(sizes) / 2
    assert abs(total - sum(sizes)) <= count  # captions are stripped
    rate = re.search(r"([\d,]+) samples/s", found["reading"].found)
    assert rate is not None
    assert abs(int(rate[1].replace(",", "")) - count / seconds) <= 1


def test_reading_ends_when_its_time_is_over() -> None:
    count, total, seconds = data.measure(itertools.repeat(3), 0.05)
    assert seconds >= 0.05
    assert total == 3 * count > 0


@pytest.mark.parametrize(("share", "verdict"), [(1e-9, "slower"), (0.4, "ok")])
def test_reading_against_the_need(
    share: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`share` is what one sample/s takes of the GPU: 0.4 is one sample/s, 1e-9 400 million."""
    act_as_gpu(monkeypatch)
    monkeypatch.setattr(data, "utilisation", lambda *_: share)
    given = case(str(DEMO / "train-{0000..0003}.tar"))
    one_gpu = replace(EVERYTHING.torch, gpus=EVERYTHING.torch.gpus[:1])
    given = Case(replace(EVERYTHING, torch=one_gpu), given.config, given.built)
    reading = judged(given)["reading"]
    assert reading.verdict == verdict
    assert f"{0.4 / share:,.0f}/s" in reading.found
    assert reading.advice.startswith("--workers" if verdict == "slower" else "")


def test_shards_that_are_not_there() -> None:
    some = judged(case(str(DEMO / "train-{0000..0005}.tar")))
    assert some["shards"].verdict == "broken"
    assert "2 are not there" in some["shards"].found
    assert some["shards"].status == 0  # the trainer leaves them out
    config = flags("--train-data", "/nowhere/{0..9}.tar", *SHARDS)
    report = examine(BARE, config)
    assert by_name(report.findings)["data"].status == report.status == 66


def test_too_many_workers() -> None:
    found = judged(case(str(DEMO / "train-{0000..0003}.tar"), "--workers", "9"))
    assert (found["data"].verdict, found["data"].status) == ("broken", 2)


def test_without_a_model_there_is_nothing_to_ask() -> None:
    config = flags("--train-data", str(DEMO / "train-0000.tar"), *SHARDS)
    assert judged(Case(BARE, config, Built()))["data"].verdict == "missing"

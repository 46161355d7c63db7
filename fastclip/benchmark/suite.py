"""`fastclip eval --suite datacomp`: all data sets that are there, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastclip.benchmark.command import combined, remove_if_empty, work_of
from fastclip.benchmark.dataset import causes
from fastclip.benchmark.devices import devices_of, other_devices
from fastclip.benchmark.features import Parts
from fastclip.benchmark.model import Subject, load_subject
from fastclip.benchmark.results import read_record, record, show, table, write_record
from fastclip.benchmark.suite_sets import NUM_AVERAGED, SuiteSet, datacomp_sets
from fastclip.benchmark.suite_tasks import TASKS
from fastclip.benchmark.tasks import Work
from fastclip.benchmark.write import make_folder, write_whole
from fastclip.config.eval_options import EvalOptions
from fastclip.errors import (
    DataError,
    EnvironmentProblem,
    FastclipError,
    InputMissing,
    UserError,
)

_REFERENCE_TASKS = {"retrieval": "zeroshot_retrieval", "winogavil": "image_association"}


class SetResult(NamedTuple):
    of: SuiteSet
    result: Mapping[str, Any] | None  # a record; None: not evaluated
    reason: str  # why not

    @property
    def main(self) -> float | None:
        if self.result is None or self.of.main_metric is None:
            return None
        value: float | None = self.result["metrics"][self.of.main_metric]
        return value


def evaluate_suite(options: EvalOptions, say: Callable[[str], None]) -> None:
    """Results of every set, and of the whole, in the folder --out. Finished sets are not done again.

    Raises InputMissing if no set at all is there, and DataError at the end if one is there that
    cannot be used.
    """
    root, out = Path(options.data_root or ""), Path(options.out or "results")
    if not root.is_dir():
        raise InputMissing(f"--data-root {root}: no such folder")
    if out.is_file():
        raise UserError(f"--out {out}: a file; a suite writes into a folder")
    sets = datacomp_sets()
    if not any((root / of.folder).is_dir() for of in sets):
        raise InputMissing(
            f"--data-root {root}: none of the {len(sets)} data sets is there; expected folders such "
            f"as {sets[0].folder}, as DataComp's download_evalsets.py writes them"
        )
    make_folder(out)
    devices = devices_of(options)
    subject = load_subject(replace(options, device=devices[0]))
    done: list[SetResult] = []
    with other_devices(options, devices[1:]) as others:
        work = work_of(options, others)
        for number, of in enumerate(sets, start=1):
            done.append(_one(subject, of, root, out, work))
            last = done[-1]
            figure = last.reason or f"{of.main_metric or 'no main metric'} {show(last.main)}"
            say(f"[{number}/{len(sets)}] {of.name}: {figure}")
    remove_if_empty(out / "parts")
    lines = [json.dumps(_datacomp_line(one)) for one in done if one.result is not None]
    write_whole(out / "eval_results.jsonl", "\n".join(lines) + "\n")
    text = suite_table(subject.name, subject.checkpoint, done)
    write_whole(out / "results.md", text + "\n")
    say(f"\n{text}\n\n{out} holds this (results.md), and every set's figures.")
    broken = [one for one in done if one.reason and (root / one.of.folder).is_dir()]
    if broken:
        raise DataError(f"{len(broken)} data sets are there and were not used: {broken[0].reason}")


def _one(subject: Subject, of: SuiteSet, root: Path, out: Path, work: Work) -> SetResult:
    task = TASKS[of.task]
    path = out / f"{of.slug}.json"
    try:
        data = task.read(root, of)
    except (InputMissing, DataError, EnvironmentProblem) as error:
        return _not_evaluated(of, error, root)
    try:
        fingerprint = combined(subject.fingerprint, data.fingerprint(), of.task)
        result = read_record(path, fingerprint)
        if result is None:
            folder = out / "parts" / of.slug
            parts = Parts(folder / fingerprint[:16])
            outcome = task.run(subject, data, parts, work)
            name = _REFERENCE_TASKS.get(of.task, "zeroshot_classification")
            result = record(subject, f"wds/{of.key}", name, outcome, fingerprint)
            write_record(path, result)
            parts.remove()
            remove_if_empty(folder)
    except (InputMissing, DataError) as error:
        return _not_evaluated(of, error, root)
    return SetResult(of, result, "")


def _not_evaluated(of: SuiteSet, error: FastclipError, root: Path) -> SetResult:
    return SetResult(of, None, str(error).replace(f"{root}/", ""))


def suite_table(model: str, checkpoint: str, done: Sequence[SetResult]) -> str:
    """Markdown: averages, every set with its figure, and what is missing."""
    parts = [f"{model} ({checkpoint}) on DataComp's suite", _averages(done)]
    rows = []
    for one in done:
        if one.result is not None:
            of, result = one.of, one.result
            rows.append(
                [
                    of.name,
                    result["task"],
                    of.main_metric or "–",
                    show(one.main),
                    f"{result['num_samples']:,}",
                    _remark(of, result),
                ]
            )
    head = ["data set", "task", "metric", "value", "samples", "remark"]
    parts.append(table(head, rows) if rows else "No data set could be evaluated.")
    missing = [[one.of.name, one.of.source, one.reason] for one in done if one.result is None]
    if missing:
        parts.append(f"Not evaluated: {len(missing)} of {len(done)}.")
        parts.append(table(["data set", "source", "why"], missing))
    return "\n\n".join(parts)


def _remark(of: SuiteSet, result: Mapping[str, Any]) -> str:
    remarks = []
    if result["bad_samples"]:
        remarks.append(f"left out: {causes(result['bad_samples'])}")
    elif result["num_samples"] != of.size:
        remarks.append(f"not the whole set: {of.size:,}")
    if of.main_metric is None:
        remarks.append("no part of the average")
    return "; ".join(remarks)


def _averages(done: Sequence[SetResult]) -> str:
    """DataComp's, each over all of its sets; where some are missing, of how many it is instead."""
    counted = [one for one in done if one.of.main_metric is not None]
    groups = dict.fromkeys(one.of.group for one in counted if one.of.group is not None)
    rows = [
        _average_row(group, [one.main for one in counted if one.of.group == group])
        for group in groups
    ]
    rows.append(_average_row(f"all {NUM_AVERAGED}", [one.main for one in counted]))
    return table(["average", "value", "sets"], rows)


def _average_row(name: str, values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if len(known) == len(values):
        return [name, show(sum(known) / len(known)), str(len(known))]
    part = f" ({show(sum(known) / len(known))} over those)" if known else ""
    return [name, "–", f"{len(known)} of {len(values)}{part}"]


def _datacomp_line(one: SetResult) -> dict[str, Any]:
    """As in the `eval_results.jsonl` of DataComp's evaluate.py."""
    assert one.result is not None
    metrics = {**one.result["metrics"], "main_metric": one.main}
    return {"key": one.of.key, "dataset": one.of.name, "metrics": metrics}

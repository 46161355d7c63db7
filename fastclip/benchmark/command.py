"""`fastclip eval`: one task on one data set, or a suite."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastclip.benchmark.devices import devices_of, other_devices
from fastclip.benchmark.features import Helper, Parts
from fastclip.benchmark.model import Subject, load_subject
from fastclip.benchmark.read import read_captioned, read_labelled
from fastclip.benchmark.results import metrics_table, read_record, record, write_record
from fastclip.benchmark.tasks import Outcome, Work, linear_probe, retrieval, zero_shot
from fastclip.benchmark.write import make_folder, write_whole
from fastclip.config.eval_options import EvalOptions
from fastclip.errors import UserError

Say = Callable[[str], None]

_REFERENCE_TASKS = {
    "zeroshot": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "linear-probe": "linear_probe",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A data set that has been read, and what is to be done with it."""

    dataset: str
    fingerprint: str
    run: Callable[[Subject, Callable[[str], Parts], Work], Outcome]


def evaluate(options: EvalOptions, say: Say) -> None:
    """One data set. A result that is there already and of the same things is shown again."""
    out = Path(options.out or "results.json")
    if out.is_dir():
        raise UserError(f"--out {out}: a folder; give a file name that ends in .json")
    plan = _plan(options)  # mistakes in the data are told before the model is loaded
    make_folder(out.parent)
    devices = devices_of(options)
    subject = load_subject(replace(options, device=devices[0]))
    fingerprint = combined(subject.fingerprint, plan.fingerprint, options.task, options.seed)
    result = read_record(out, fingerprint)
    if result is None:
        folder = out.with_name(f"{out.name}.parts") / fingerprint[:16]
        with other_devices(options, devices[1:]) as others:
            work = work_of(options, others)
            outcome = plan.run(subject, lambda name: Parts(folder / name), work)
        task = _REFERENCE_TASKS[options.task or ""]
        result = record(subject, plan.dataset, task, outcome, fingerprint)
        write_record(out, result)
        Parts(folder).remove()
        remove_if_empty(folder.parent)
    table = metrics_table(result)
    write_whole(out.with_suffix(".md"), table + "\n")
    say(f"{table}\n\n{out} and {out.with_suffix('.md').name} hold this.")


def _plan(options: EvalOptions) -> Plan:
    data = Path(options.data or "")
    if options.task == "retrieval":
        captioned = read_captioned(options, data, options.split)
        return Plan(
            captioned.name,
            captioned.fingerprint(),
            lambda subject, parts, work: retrieval(subject, captioned, parts("pictures"), work),
        )
    test = read_labelled(options, data, options.split)
    if options.task == "zeroshot":
        return Plan(
            test.name,
            test.fingerprint(),
            lambda subject, parts, work: zero_shot(subject, test, parts("pictures"), work),
        )
    train = read_labelled(options, Path(options.train_data or data), options.train_split)
    if train.classnames != test.classnames:
        raise UserError(
            f"--task linear-probe: {options.train_data or data} and {data} have different classes"
        )
    return Plan(
        test.name,
        combined(train.fingerprint(), test.fingerprint()),
        lambda subject, parts, work: linear_probe(
            subject, train, test, parts("train"), parts("test"), work, seed=options.seed
        ),
    )


def work_of(options: EvalOptions, others: Sequence[Helper]) -> Work:
    """Loader processes: by default one a core, but for those that the models keep busy, shared out to the devices."""
    workers = options.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = min(8, max(1, cores // (1 + len(others)) - 1))
    return Work(options.batch_size, workers, others)


def combined(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

"""The data of the flags: there, and read fast enough?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.build import DataLoaders, build_data
from fastclip.data.shard_spec import data_kind, display, expand_shards, is_local
from fastclip.data.shards import EvalShards, Position
from fastclip.doctor.asking import Answer, Asking
from fastclip.doctor.barred import Barred
from fastclip.doctor.finding import Finding
from fastclip.doctor.links import machines_of_run
from fastclip.doctor.machine import Case
from fastclip.doctor.parts import run_device
from fastclip.train.distributed import world_size
from fastclip.train.mfu import utilisation
from fastclip.train.packed_captions import example_texts

READ_SECONDS = 3.0
_LOOKED_FOR = 100  # shards: a cluster's file system takes its time about each
_ASSUMED_MFU = 0.4  # of the data sheet's FLOP/s; no fastclip run has been measured on a GPU yet


def check(case: Case) -> list[Finding]:
    if case.built.model is None or case.built.tokenizer is None:
        return [
            Finding("data", "missing", "not asked: it takes a model and a tokenizer, see above")
        ]
    asked = Asking(Barred({}))
    loaders = asked("data", lambda: _loaders(case))
    spec = case.config.data.train_data
    if spec is None or loaders is None:
        return asked.findings
    if data_kind(spec, case.config.data.dataset_type, "--train-data") == "webdataset":
        urls = expand_shards(
            spec, "--train-data", allow_pipe_from_files=case.config.data.allow_pipe_from_files
        ).urls
        asked("shards", lambda: _present(urls))
        asked("reading", lambda: _reading(case, urls, loaders))
    return asked.findings


def _loaders(case: Case) -> Answer:
    """Built as the trainer builds them; no process is started."""
    config, built = case.config, case.built
    processes = world_size(case.machine.environment, case.local_ranks * machines_of_run(case))
    loaders = build_data(
        config.data,
        built.model.visual.preprocess_cfg,
        built.tokenizer,
        seed=config.seed,
        rank=0,
        world_size=processes,
        device=torch.device("cpu"),
        epochs=config.epochs,
        pack=built.pack,
    )
    if loaders.train is None:
        return Answer("for evaluation: there", value=loaders)
    return Answer(loaders.train.describe()[0], value=loaders)


def _present(urls: tuple[str, ...]) -> Answer:
    local = [url for url in urls if is_local(url)]
    looked_for = local[:: max(1, len(local) // _LOOKED_FOR)]
    gone = [url for url in looked_for if not Path(url).is_file()]
    found = f"{len(urls):,}, of which {len(looked_for):,} were looked for"
    if gone:
        return Answer(
            f"{found}: {len(gone)} are not there, the first {gone[0]}",
            "broken",
            "correct --train-data; the run would leave them out, counted and named",
        )
    return Answer(found)


def _reading(case: Case, urls: tuple[str, ...], loaders: DataLoaders) -> Answer:
    """What one process reads of undecoded samples, against what the GPU asks for."""
    notes = BadSampleNotes(f"--train-data {display(urls[0])}")
    source = EvalShards("--train-data", urls)
    samples = source.read(Position(0, 0, 1, 0), notes)
    count, size, seconds = measure(
        (len(sample.image) + len(sample.caption) for sample in samples), READ_SECONDS
    )
    if count == 0:
        return Answer(
            "no sample could be read", "broken", "see fastclip train's log for the causes"
        )
    rate = count / seconds
    found = f"one process read {size / seconds / 1e6:,.0f} MB/s, {rate:,.0f} samples/s (undecoded)"
    need = _needed(case, loaders)
    if need is None:
        return Answer(found)
    workers = max(1, case.config.data.workers)
    found += f"; a GPU asks for {need:,.0f}/s at {100 * _ASSUMED_MFU:.0f} % of its FLOP/s (assumed)"
    if rate * workers < need:
        enough = int(need // rate) + 1
        return Answer(found, "slower", f"--workers {enough}, or shards on a faster disk")
    return Answer(found)


def measure(sizes: Iterator[int], seconds: float) -> tuple[int, int, float]:
    """(how many came, their sum, how long that took), until `seconds` are over or no more come."""
    count = total = 0
    start = time.perf_counter()
    for size in sizes:
        count += 1
        total += size
        if time.perf_counter() - start > seconds:
            break
    return count, total, time.perf_counter() - start


def _needed(case: Case, loaders: DataLoaders) -> float | None:
    """Samples/s of one GPU; None where its data sheet is not known here."""
    device = run_device(case)
    assert loaders.train is not None
    texts = example_texts(
        loaders.train, case.config.data.batch_size, case.built.tokenizer.context_length
    )
    share = utilisation(case.built.model, device, case.config.precision, texts)
    return None if share is None else _ASSUMED_MFU / share

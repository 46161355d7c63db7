"""What a dry run says of a step, beside that step: seconds and memory of six configurations on 1 and 2 gloo ranks.

    python -m bench.plan_against_measured --out FOLDER [--toy] [--steps 8]

Each configuration runs in processes of its own, one thread a rank: first the trainer's step on a resident batch, the
memory that torch's allocator had handed out at the peak (by its profiler: what max_memory_allocated is on a GPU) and
its seconds (median); then, in the same processes and at the same time on all ranks, the rates of the CPU and of the
all-reduce, and from these what the dry run would print. Aims: memory within 10 %, seconds within 20 %. The figures go
to plan_against_measured.json, with the growth of the process too, in which the C library's heap counts with its gaps.
Exit status 1 where an aim is missed. A busy machine makes the seconds worthless; --toy (small batches, two steps)
shows that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from bench.captions import DEMO, captions_of, repeated
from bench.machine import machine, write
from bench.memory_of_step import ROOT, of_this_process
from bench.resident_step import our_step

MEMORY_AIM, SECONDS_AIM = 0.10, 0.20
_SETTLING = 3  # steps until DDP has its buckets
_ALLREDUCED = 1 << 22  # numbers: 16 MB, of the size of DDP's buckets


class Case(NamedTuple):
    model: str
    batch_size: int
    ranks: int
    flags: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.batch_size} pairs, {self.flags}, {self.ranks} rank{'s' * (self.ranks > 1)}"


CASES = [
    Case("ViT-S-32", 64, 1, "--precision fp32"),
    Case("ViT-S-32", 64, 1, "--precision amp_bf16 --no-packed-text"),
    Case("ViT-S-16", 16, 1, "--precision amp_bf16 --grad-checkpointing"),
    Case("ViT-B-32-256", 32, 1, "--precision amp_bf16 --recompute full"),
    Case("ViT-S-32", 64, 2, "--precision fp32"),
    Case("ViT-B-32-256", 32, 2, "--precision amp_bf16 --grad-checkpointing"),
]


def of_one_case(case: Case, steps: int) -> dict[str, Any]:
    """In this process, which is one of the case's ranks."""
    from fastclip.config.parse import parse_args
    from fastclip.config.resolve import resolve
    from fastclip.data.tokenizer import build_tokenizer
    from fastclip.model.model_config import load_config, tokenizer_spec
    from fastclip.plan import dry_run  # noqa: F401 (all that either side imports)
    from fastclip.train.distributed import init_world, leave

    torch.set_num_threads(1)
    torch.manual_seed(0)
    flags = ["--train-data", "unused", "--logs", "none", "--device", "cpu", "--model", case.model]
    flags += ["--batch-size", str(case.batch_size), "--local-loss", "--gather-with-grad"]
    flags += case.flags.split()
    config = resolve(parse_args(flags))
    world = init_world(config.distributed)
    tokenize = build_tokenizer(
        tokenizer_spec(case.model, context_length=None, tokenizer_file=None, cache_dir=None)
    )
    texts = tokenize(repeated(captions_of(DEMO), case.batch_size))
    height, width = load_config(case.model).vision_cfg.image_size_pair
    images = torch.randint(0, 256, (case.batch_size, height, width, 3), dtype=torch.uint8)

    before = of_this_process("VmRSS")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = our_step(flags, images, texts, world)
        for _ in range(_SETTLING):
            step()
    grown = of_this_process("VmHWM") - before
    peak = _allocated_at_most(profiler)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    del step
    told = _told(config, texts, world)
    leave(world, failed=False)
    return {
        "case": case._asdict(),
        "measured": {
            "bytes": peak,
            "seconds": statistics.median(seconds),
            "growth_of_process": grown,
        },
        "all_seconds": seconds,
        **told,
    }


def _allocated_at_most(profiler: Any) -> int:
    """Bytes, of all that was allocated since it began."""
    most, waiting = 0, list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            most = max(most, event.extra_fields.total_allocated)
    return most


def _told(config: Any, texts: Any, world: Any) -> dict[str, Any]:
    """What the dry run predicts, from rates that are measured now."""
    from fastclip.data.packing import TextPacker, rows_for
    from fastclip.plan.estimate import Subject, estimate
    from fastclip.plan.figure import Figure
    from fastclip.plan.measured_here import HERE
    from fastclip.plan.prepared import prepared_on_meta
    from fastclip.plan.scaling import at_both_ends

    subject = Subject(chip=None, measured=None, world=world)
    model, pack = prepared_on_meta(config, for_cpu=True)
    packer = None
    if pack is not None:
        packer = TextPacker(pack, rows_for(pack.lengths(texts.numpy()), *texts.shape))
    world.wait_for_all()
    told = estimate(config, subject, model, packer)
    rates, times = told.rates, told.times[0]
    if world.distributed:
        rate, latency = _allreduce(world.size)
        rates = replace(
            rates,
            allreduce=Figure.exactly(rate, HERE),
            per_collective=Figure.exactly(latency, HERE),
        )
        times = at_both_ends(told.work, rates)[0]
    named = ("products", "attention", "passes", "update", "allreduce", "per_operation")
    return {
        "predicted": {
            "bytes": replace(told.memory, batches=told.step.batch).needed,
            "seconds": times.step,
        },
        "parts": {name: getattr(times, name) for name in times.__slots__},
        "rates": {name: getattr(rates, name).low for name in named},
    }


def _allreduce(ranks: int) -> tuple[float, float]:
    """(bytes/s that a rank sends, seconds before the first byte) of gloo on this machine."""

    def seconds(numbers: torch.Tensor) -> float:
        times = []
        for _ in range(6):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(numbers)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    latency = seconds(torch.zeros(1))
    much = torch.ones(_ALLREDUCED)
    return 2 * (ranks - 1) / ranks * much.nbytes / (seconds(much) - latency), latency


def run_case(case: Case, steps: int, number: int, *, toy: bool) -> dict[str, Any]:
    """The same in fresh processes; what rank 0 found."""
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        out = Path(folder) / "case.json"
        words = ["-m", "bench.plan_against_measured", "--one", str(number), "--steps", str(steps)]
        words += ["--out", str(out), *(["--toy"] if toy else [])]
        if case.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            words = [*launcher, f"--nproc-per-node={case.ranks}", *words]
        run = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"{case.name}: failed\n{run.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--steps", type=int, default=8, help="that are timed, after three others")
    parser.add_argument("--toy", action="store_true", help="a quarter of each batch, two steps")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cases, steps = CASES, options.steps
    if options.toy:
        cases = [c._replace(batch_size=c.batch_size // 4) for c in CASES]
        steps = 2
    if options.one is not None:
        found = of_one_case(cases[options.one], steps)
        if int(os.environ.get("RANK", "0")) == 0:
            options.out.write_text(json.dumps(found))
        return 0
    results, missed = [], 0
    print("| configuration | s a step | predicted | off | MB | predicted | off |")
    print("|---|---|---|---|---|---|---|")
    for number, case in enumerate(cases):
        result = run_case(case, steps, number, toy=options.toy)
        results.append(result)
        measured, told = result["measured"], result["predicted"]
        off = {name: told[name] / measured[name] - 1 for name in ("seconds", "bytes")}
        missed += abs(off["seconds"]) > SECONDS_AIM or abs(off["bytes"]) > MEMORY_AIM
        print(
            f"| {case.name} | {measured['seconds']:.3f} | {told['seconds']:.3f} | {off['seconds']:+.1%} "
            f"| {measured['bytes'] / 1e6:.0f} | {told['bytes'] / 1e6:.0f} | {off['bytes']:+.1%} |",
            flush=True,
        )
        where = machine(torch.device("cpu"))
        write(
            options.out / "plan_against_measured.json",
            {"machine": where, "toy": options.toy, "cases": results},
        )
    print(f"{len(results) - missed} of {len(results)} within both aims")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

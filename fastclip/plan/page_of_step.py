"""The sections of a dry run's page about one rank's step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastclip.config.train_config import TrainConfig
from fastclip.plan.estimate import Estimate
from fastclip.plan.figure import Figure, between, number, size
from fastclip.plan.scaling import Times

COUNTED = "counted"
MODEL = "scaling model"


class Line(NamedTuple):
    label: str
    value: str
    source: str


class Section(NamedTuple):
    title: str
    lines: list[Line]


def sections_of_step(estimate: Estimate, config: TrainConfig) -> Iterator[Section]:
    yield _model(estimate, config)
    yield _work(estimate)
    yield _memory(estimate)
    if estimate.transfers:
        yield _communication(estimate)
    yield _rates(estimate)
    yield _step(estimate)


def samples_per_second(estimate: Estimate) -> Figure:
    """Of one rank."""
    low, high = sorted(estimate.work.samples / each.step for each in estimate.times)
    return Figure(low, high, "batch / step")


def _model(estimate: Estimate, config: TrainConfig) -> Section:
    millions = {name: f"{count / 1e6:.1f} M" for name, count in estimate.parameters.items()}
    lines = [
        Line(f"parameters, {name}", value, f"{COUNTED}: {estimate.parameters[name]:,}")
        for name, value in millions.items()
    ]
    asked = config.model.recompute == "auto" and config.model.grad_checkpointing
    why = "the least that fits, as a run chooses" if asked else "as the flags say"
    lines.append(Line("recomputed in backward", estimate.recompute, why))
    lines.append(Line("blocks", "compiled" if estimate.compiled else "not compiled", ""))
    return Section("Model", lines)


def _work(estimate: Estimate) -> Section:
    step, work = estimate.step, estimate.work
    every = {
        "products of the towers": step.tally.flops("products"),
        "attention": step.tally.flops("attention"),
        "loss": estimate.loss_flops,
    }
    everything = sum(every.values())
    every["all products"] = everything

    def line(name: str, count: float) -> Line:
        each = f"{number(count / work.samples / 1e9)} GFLOP a sample"
        return Line(name, f"{number(count / 1e12)} TFLOP", f"{COUNTED}: {each}")

    lines = [line(name, count) for name, count in every.items()]
    lines += [
        Line("all other operations", size(work.passes), f"{COUNTED}: read and written one by one"),
        Line("optimiser", size(work.update), f"{COUNTED}: read and written"),
        Line("operations", f"{work.operations:,}", COUNTED),
    ]
    return Section("Work of a step, each rank", lines)


def _memory(estimate: Estimate) -> Section:
    memory = estimate.memory
    second = memory.sorting if memory.second_gradients else 0
    parts = [
        ("parameters", memory.parameters, COUNTED),
        ("gradients", memory.gradients, f"{COUNTED}; DDP's buckets hold them"),
        ("moments of the optimiser", memory.moments, COUNTED),
        ("activations", memory.activations, f"{COUNTED}, recompute {estimate.recompute}"),
        ("work in progress", memory.work, f"{COUNTED} at the peak: casts of weights, gradients"),
        ("features of all ranks", memory.loss, f"{COUNTED}, and a chunk of logits"),
        ("batches on the device", memory.batches, f"{COUNTED}: the step's, two to come"),
        ("needed", memory.needed, "sum, or what follows if that is more"),
        ("once, without activations", second, f"{COUNTED}: gradients twice, DDP sorts its buckets"),
        ("more for long captions", memory.unusual, f"{COUNTED}: a batch with a row a caption"),
    ]
    lines = [Line(name, size(count), source) for name, count, source in parts if count]
    if memory.available is not None and memory.reserve is not None:
        reserve = "assumed: driver, NCCL, DALI 4 GB; fragmentation 6 %"
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        free = memory.available - memory.most
        lines += [
            Line("kept free", size(memory.reserve), reserve),
            Line(verdict, f"{size(memory.most)} of {size(memory.available)}", ""),
        ]
        if memory.fits:
            lines[-1] = lines[-1]._replace(source=f"{size(free)} are left")
    return Section("Memory, each rank", lines)


def _communication(estimate: Estimate) -> Section:
    ranks = estimate.work.ranks
    lines = []
    for t in estimate.transfers:
        beside = f", beside {t.beside}" if t.beside else ""
        calls = f" in {t.calls} calls" if t.calls > 1 else ""
        lines.append(
            Line(
                f"{t.what}",
                f"{t.collective} of {size(t.bytes)}",
                f"{COUNTED}: {size(t.sent(ranks))} sent by a ring{calls}{beside}",
            )
        )
    everything = sum(t.sent(ranks) for t in estimate.transfers)
    lines.append(Line("sent by each rank", size(everything), "sum"))
    return Section("Communication of a step, each rank", lines)


def _rates(estimate: Estimate) -> Section:
    rates = estimate.rates
    lines = [
        Line("products", f"{between(rates.products, 1e12)} TFLOP/s", rates.products.source),
        Line("attention", f"{between(rates.attention, 1e12)} TFLOP/s", rates.attention.source),
        Line("other operations", f"{between(rates.passes, 1e9)} GB/s", rates.passes.source),
        Line("optimiser", f"{between(rates.update, 1e9)} GB/s", rates.update.source),
        Line("host", f"{between(rates.per_operation, 1e-6)} µs", rates.per_operation.source),
    ]
    if estimate.transfers and rates.allreduce.high < float("inf"):
        lines += [
            Line("all-reduce", f"{between(rates.allreduce, 1e9)} GB/s", rates.allreduce.source),
            Line(
                "latency", f"{between(rates.per_collective, 1e-6)} µs", rates.per_collective.source
            ),
        ]
    if rates.loader is not None:
        lines.append(Line("loader", f"{between(rates.loader, 1)} samples/s", rates.loader.source))
    return Section("Rates, each rank", lines)


def _step(estimate: Estimate) -> Section:
    def line(label: str, name: str, source: str) -> Line:
        return Line(label, f"{between(_figure(name, estimate.times), 1e-3)} ms", source)

    lines = [
        line("products", "products", "work / rate"),
        line("attention", "attention", "work / rate"),
        line("other operations", "passes", "work / rate"),
        line("optimiser", "update", "work / rate"),
    ]
    if estimate.transfers:
        lines += [
            line("all-reduce of gradients", "gradients", "bytes / rate; backward hides most of it"),
            line("  of which waited for", "waits_for_gradients", MODEL),
            line("collectives of the loss", "waits_for_loss", MODEL),
        ]
    launches = "hidden unless longest" if estimate.rates.asynchronous else "added"
    lines += [
        line("host, launching", "host", launches),
        line("step", "step", MODEL),
        Line(
            "samples/s, each rank",
            between(samples_per_second(estimate), 1),
            "batch / step",
        ),
    ]
    return Section("Time of a step", lines)


def _figure(name: str, times: tuple[Times, Times]) -> Figure:
    low, high = sorted(float(getattr(each, name)) for each in times)
    return Figure(low, high, MODEL)

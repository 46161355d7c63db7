"""The page that a dry run prints: every line a figure, how it was had, and where from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastclip import __version__
from fastclip.config.train_config import TrainConfig
from fastclip.plan.figure import Figure, between, number, size
from fastclip.plan.plan import Plan, loss_flops, run_seconds
from fastclip.plan.scaling import Times

COUNTED = "counted"
_MODEL = "scaling model"


class Line(NamedTuple):
    label: str
    value: str
    source: str


class Section(NamedTuple):
    title: str
    lines: list[Line]


def page(plan: Plan, config: TrainConfig) -> Iterator[str]:
    """Lines of text, each section under its title."""
    world, nodes = plan.subject.world, config.cluster.nodes or 1
    yield (
        f"fastclip {__version__}, dry run: {config.model.name} on {nodes} node{'s' * (nodes > 1)} x "
        f"{world.local_size} {plan.subject.name} = {world.size} rank{'s' * (world.size > 1)}"
    )
    yield (
        "Nothing is trained and nothing written. Sources: counted (from the run's own step on shapes), measured, "
        "data sheet, assumed; docs/dry-run.md has the model."
    )
    for section in sections(plan, config):
        yield ""
        yield section.title
        for label, value, source in section.lines:
            yield f"  {label:<28}{value:<34}{source}".rstrip()


def sections(plan: Plan, config: TrainConfig) -> Iterator[Section]:
    yield _run(plan, config)
    yield _model(plan, config)
    yield _work(plan, config)
    yield _memory(plan)
    if plan.transfers:
        yield _communication(plan)
    yield _rates(plan)
    yield _step(plan)
    yield _whole(plan, config)


def _run(plan: Plan, config: TrainConfig) -> Section:
    loader, world, accum = plan.loader, plan.subject.world, config.optim.accum_freq
    steps = loader.num_batches // accum
    batch = config.data.batch_size * accum
    lines = [
        Line(
            "samples a step",
            f"{batch * world.size:,}",
            f"{config.data.batch_size} x {accum} micro-batch{'es' * (accum > 1)} x {world.size} ranks",
        ),
        Line("steps an epoch", f"{steps:,}", f"{COUNTED}: {loader.num_samples:,} samples"),
        Line(
            "steps of the run",
            f"{steps * max(0, config.epochs - plan.start_epoch):,}",
            f"epochs {plan.start_epoch + 1} to {config.epochs}"
            + (f", resumed from {plan.resumed_from}" if plan.resumed_from else ""),
        ),
    ]
    said = [s for s in loader.describe() if not s.startswith("decoder")]
    return Section("Run", [*lines, *(Line(sentence, "", "") for sentence in said)])


def _model(plan: Plan, config: TrainConfig) -> Section:
    millions = {name: f"{count / 1e6:.1f} M" for name, count in plan.parameters.items()}
    lines = [
        Line(f"parameters, {name}", value, f"{COUNTED}: {plan.parameters[name]:,}")
        for name, value in millions.items()
    ]
    asked = config.model.recompute == "auto" and config.model.grad_checkpointing
    why = "the least that fits, as a run chooses" if asked else "as the flags say"
    lines.append(Line("recomputed in backward", plan.recompute, why))
    lines.append(Line("blocks", "compiled" if plan.compiled else "not compiled", ""))
    return Section("Model", lines)


def _work(plan: Plan, config: TrainConfig) -> Section:
    step, work = plan.step, plan.work
    loss = loss_flops(config, step, work.ranks)
    every = {
        "products of the towers": step.tally.flops("products"),
        "attention": step.tally.flops("attention"),
        "loss": loss,
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


def _memory(plan: Plan) -> Section:
    memory = plan.memory
    parts = [
        ("parameters", memory.parameters, COUNTED),
        ("gradients", memory.gradients, f"{COUNTED}; DDP's buckets hold them"),
        ("moments of the optimiser", memory.moments, COUNTED),
        ("activations", memory.activations, f"{COUNTED}, recompute {plan.recompute}"),
        ("work in progress", memory.work, f"{COUNTED} at the peak: casts of weights, gradients"),
        ("features of all ranks", memory.loss, f"{COUNTED}, and a chunk of logits"),
        ("batches on the device", memory.batches, f"{COUNTED}: the step's, two to come"),
        ("needed", memory.needed, "sum"),
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


def _communication(plan: Plan) -> Section:
    ranks = plan.work.ranks
    lines = []
    for t in plan.transfers:
        beside = f", beside {t.beside}" if t.beside else ""
        calls = f" in {t.calls} calls" if t.calls > 1 else ""
        lines.append(
            Line(
                f"{t.what}",
                f"{t.collective} of {size(t.bytes)}",
                f"{COUNTED}: {size(t.sent(ranks))} sent by a ring{calls}{beside}",
            )
        )
    everything = sum(t.sent(ranks) for t in plan.transfers)
    lines.append(Line("sent by each rank", size(everything), "sum"))
    return Section("Communication of a step, each rank", lines)


def _rates(plan: Plan) -> Section:
    rates = plan.rates
    lines = [
        Line("products", f"{between(rates.products, 1e12)} TFLOP/s", rates.products.source),
        Line("attention", f"{between(rates.attention, 1e12)} TFLOP/s", rates.attention.source),
        Line("other operations", f"{between(rates.passes, 1e9)} GB/s", rates.passes.source),
        Line("optimiser", f"{between(rates.update, 1e9)} GB/s", rates.update.source),
        Line("host", f"{between(rates.per_operation, 1e-6)} µs", rates.per_operation.source),
    ]
    if plan.transfers and rates.allreduce.high < float("inf"):
        lines += [
            Line("all-reduce", f"{between(rates.allreduce, 1e9)} GB/s", rates.allreduce.source),
            Line(
                "latency", f"{between(rates.per_collective, 1e-6)} µs", rates.per_collective.source
            ),
        ]
    if rates.loader is not None:
        lines.append(Line("loader", f"{between(rates.loader, 1)} samples/s", rates.loader.source))
    return Section("Rates, each rank", lines)


def _step(plan: Plan) -> Section:
    fast, slow = plan.times

    def line(label: str, name: str, source: str) -> Line:
        return Line(label, f"{between(_figure(name, plan.times), 1e-3)} ms", source)

    lines = [
        line("products", "products", "work / rate"),
        line("attention", "attention", "work / rate"),
        line("other operations", "passes", "work / rate"),
        line("optimiser", "update", "work / rate"),
    ]
    if plan.transfers:
        lines += [
            line("all-reduce of gradients", "gradients", "bytes / rate; backward hides most of it"),
            line("  of which waited for", "waits_for_gradients", _MODEL),
            line("collectives of the loss", "waits_for_loss", _MODEL),
        ]
    launches = "hidden unless longest" if plan.rates.asynchronous else "added"
    lines += [
        line("host, launching", "host", launches),
        line("step", "step", _MODEL),
        Line(
            "samples/s, each rank",
            between(Figure(plan.work.samples / slow.step, plan.work.samples / fast.step, ""), 1),
            "batch / step",
        ),
    ]
    return Section("Time of a step", lines)


def _whole(plan: Plan, config: TrainConfig) -> Section:
    seconds = run_seconds(plan, config)
    ranks = plan.work.ranks
    fast, slow = plan.times
    rate = Figure(plan.work.samples / slow.step, plan.work.samples / fast.step, "")
    unit = "GPU-hours" if plan.subject.chip is not None else "CPU-hours"
    lines = [
        Line("samples/s, all ranks", between(rate.times(ranks, ranks, ""), 1), "x ranks"),
        Line("hours", between(seconds, 3600), "steps x step; no evaluation, checkpoint, restart"),
        Line(unit, between(seconds.times(ranks, ranks, ""), 3600), "x ranks"),
        Line("limited by", _limits(plan), _MODEL),
    ]
    if plan.rates.loader is None:
        need = between(rate, 1)
        lines.append(
            Line("the loader must give", f"{need} samples/s a rank", "its own rate is not known")
        )
    return Section("The whole run", lines)


def _limits(plan: Plan) -> str:
    if not plan.memory.fits:
        return "memory"
    fast, slow = plan.times
    return fast.limit if fast.limit == slow.limit else f"{fast.limit} or {slow.limit}"


def _figure(name: str, times: tuple[Times, Times]) -> Figure:
    low, high = sorted(float(getattr(each, name)) for each in times)
    return Figure(low, high, _MODEL)

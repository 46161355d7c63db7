"""The page that a dry run prints: every line a figure, how it was had, and where from."""

from __future__ import annotations

from collections.abc import Iterator

from fastclip import __version__
from fastclip.config.train_config import TrainConfig
from fastclip.plan.figure import between
from fastclip.plan.page_of_step import (
    COUNTED,
    MODEL,
    Line,
    Section,
    samples_per_second,
    sections_of_step,
)
from fastclip.plan.plan import Plan, run_seconds


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
    yield from sections_of_step(plan.estimate, config)
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


def _whole(plan: Plan, config: TrainConfig) -> Section:
    seconds = run_seconds(plan, config)
    ranks = plan.estimate.work.ranks
    rate = samples_per_second(plan.estimate)
    unit = "GPU-hours" if plan.subject.chip is not None else "CPU-hours"
    lines = [
        Line("samples/s, all ranks", between(rate.times(ranks, ranks, ""), 1), "x ranks"),
        Line("hours", between(seconds, 3600), "steps x step; no evaluation, checkpoint, restart"),
        Line(unit, between(seconds.times(ranks, ranks, ""), 3600), "x ranks"),
        Line("limited by", _limits(plan), MODEL),
    ]
    if plan.estimate.rates.loader is None:
        need = between(rate, 1)
        lines.append(
            Line("the loader must give", f"{need} samples/s a rank", "its own rate is not known")
        )
    return Section("The whole run", lines)


def _limits(plan: Plan) -> str:
    if not plan.estimate.memory.fits:
        return "memory"
    fast, slow = plan.estimate.times
    return fast.limit if fast.limit == slow.limit else f"{fast.limit} or {slow.limit}"

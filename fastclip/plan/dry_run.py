"""`fastclip train --dry-run`: print the plan of a run, and fail where it cannot work."""

from __future__ import annotations

from fastclip.config.advice import advice
from fastclip.config.train_config import TrainConfig
from fastclip.errors import UserError
from fastclip.plan.figure import size
from fastclip.plan.page import page
from fastclip.plan.plan import Plan, make_plan


def dry_run(config: TrainConfig) -> None:
    """The page goes to stdout. UserError, after it, where a step does not fit the device."""
    plan = make_plan(config)
    for line in page(plan, config):
        print(line)
    for remark in advice(config, config.cluster.ranks):
        print(f"\nNote: {remark}.")
    if not plan.estimate.memory.fits:
        raise UserError(does_not_fit(plan, config))


def does_not_fit(plan: Plan, config: TrainConfig) -> str:
    """How much is missing, and what would help."""
    memory, samples = plan.estimate.memory, config.data.batch_size
    assert memory.available is not None
    remedies = []
    if plan.estimate.recompute == "none":
        remedies.append("add --grad-checkpointing")
    elif plan.estimate.recompute == "pointwise":
        remedies.append("use --recompute full")
    fitting = memory.samples_that_fit(samples)
    if fitting:
        remedies.append(
            f"use a --batch-size of about {fitting}"
            + (" with a larger --accum-freq" if config.optim.accum_freq > 1 else "")
        )
    else:
        remedies.append("take a GPU with more memory: not even one sample fits")
    return (
        f"--batch-size {samples} does not fit {plan.subject.name}: {size(memory.most)} are needed of "
        f"{size(memory.available)}; {', or '.join(remedies)}"
    )

"""Both trainers as the commands that users type, on the bundled shards, with the flags of a user's script."""

from __future__ import annotations

from argparse import Namespace

from bench import reference_environment, whole_trainer
from bench.contest import Contest
from bench.paired import Timing
from bench.rows import OURS, REFERENCE, Work

WARM_UP = 4  # steps that are not counted


def test_whole_trainer(step_contest: Contest) -> None:
    sizes = step_contest.sizes
    pairs = sizes.trainer_pairs
    options = Namespace(
        train_data=whole_trainer.DEMO,
        rounds=sizes.trainer_rounds,
        steps=sizes.trainer_steps,
        warm_up=WARM_UP,
        batch_size=pairs,
        ours="",
        both=[
            *("--model", sizes.model, "--precision", sizes.precision),
            *("--device", step_contest.device.type),
        ],
    )
    missing = {}
    if not reference_environment.is_there():
        missing[REFERENCE] = reference_environment.MISSING
    measured = step_contest.once(lambda: whole_trainer.compare(options, without=set(missing)))
    results: dict[str, Timing | str] = {
        who: Timing(
            [whole_trainer.step_seconds(each[who]) for each in measured["rounds"]],
            max(each[who]["peak_bytes"] for each in measured["rounds"]),
        )
        for who in (OURS, REFERENCE)
        if who not in missing
    }
    step_contest.record(
        "whole trainer",
        f"{sizes.model} {pairs} pairs, steps by the log",
        results,
        Work(pairs),
        missing=missing,
        waiting={who: [each[who]["waiting"] for each in measured["rounds"]] for who in results},
        commands=measured["commands"],
        precision=sizes.precision,
    )

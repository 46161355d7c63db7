"""All sections, in the order of printing."""

from __future__ import annotations

import logging
import warnings

from fastclip.config.train_config import TrainConfig
from fastclip.doctor import (
    cpus,
    data,
    folders,
    gpus,
    links,
    memory,
    packages,
    pairing,
    parts,
    settings,
)
from fastclip.doctor.finding import Report
from fastclip.doctor.machine import Case, Machine


def examine(machine: Machine, config: TrainConfig) -> Report:
    """What is there, judged for the run that `config` describes. Nothing is written or left behind."""
    logging.disable(logging.CRITICAL)  # the trainer's functions log what is reported here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built, choices = parts.ask(machine, config)
            case = Case(machine, config, built)
            return Report(
                {
                    "driver and GPUs": gpus.check(case),
                    "links": links.check(case),
                    "torch, triton, CUDA": pairing.check(case),
                    "packages": packages.check(case),
                    "memory and files": memory.check(case),
                    "CPUs": cpus.check(case),
                    "variables": settings.check(case),
                    "folders": folders.check(case),
                    "data": data.check(case),
                    "what each part will use": choices,
                }
            )
    finally:
        logging.disable(logging.NOTSET)

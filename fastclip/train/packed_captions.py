"""Whether a run's captions are packed: decided here, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastclip.config.train_config import TrainConfig
from fastclip.data.batch import PackedText
from fastclip.data.loader import TrainLoader
from fastclip.data.packing import PackRule

logger = logging.getLogger(__name__)


def choose_packing(model: Any, teacher: Any, config: TrainConfig) -> PackRule | None:
    """How training captions are packed for `model`; None: not at all.

    A teacher that reads captions as the model does shares the packed ones, another gets dense ids beside them.
    """
    if not config.model.packed_text or not config.trains:
        return None
    config_of_text = model.packing_config
    if config_of_text is None:
        logger.info("captions are not packed: this text tower reads more than a text's end")
        return None
    shares = teacher is None or _reads_alike(teacher.packing_config, config_of_text)
    eos_id = config_of_text.eos_id if config_of_text.pool_type == "eos" else None
    return PackRule(eos_id=eos_id, keep_dense=not shares)


def _reads_alike(teacher: Any, student: Any) -> bool:
    if teacher is None or teacher.pool_type != student.pool_type:
        return False
    return teacher.pool_type != "eos" or teacher.eos_id == student.eos_id


Texts = Tensor | PackedText


def as_given(texts: Texts) -> Texts:
    return texts


def dense(texts: Texts) -> Texts:
    """The dense ids that came along with packed ones."""
    assert isinstance(texts, PackedText)
    assert texts.dense is not None
    return texts.dense


def texts_for_teacher(rule: PackRule | None) -> Callable[[Texts], Texts]:
    return dense if rule is not None and rule.keep_dense else as_given


def example_texts(loader: TrainLoader, batch_size: int, context_length: int) -> Texts:
    """Captions of one batch as shapes, on the meta device."""
    if loader.packer is None:
        return torch.empty(batch_size, context_length, dtype=torch.int64, device="meta")
    return loader.packer.shapes(batch_size, context_length)

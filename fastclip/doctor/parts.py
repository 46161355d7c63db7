"""What each part of the trainer will use, why, and what would be faster: asked of the trainer itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastclip.config.train_config import TrainConfig
from fastclip.data.build import why_not_dali
from fastclip.data.decode_dali import INSTALL as INSTALL_DALI
from fastclip.doctor.asking import Answer, Asking
from fastclip.doctor.barred import barred
from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Built, Case, Machine
from fastclip.errors import InputMissing
from fastclip.model.factory import create_training_model
from fastclip.model.pretrained import find_pretrained, is_path
from fastclip.optim.build import build_optimizer
from fastclip.train.attention import set_up_attention
from fastclip.train.compiling import set_up_compiling
from fastclip.train.distributed import usable_device_type
from fastclip.train.losses import loss_backend
from fastclip.train.packed_captions import choose_packing
from fastclip.train.parts import check_vocabulary, tokenizer_of
from fastclip.train.precision import product_dtype
from fastclip_kernels.self_attention.dispatch import choose, facts_of


def ask(machine: Machine, config: TrainConfig) -> tuple[Built, list[Finding]]:
    """The trainer's choices for these flags, and what they were made from."""
    case = Case(machine, config)
    if case.uses_gpu and not case.has_gpu:
        said = Finding("parts", "missing", "not asked: no GPU can be used, see above")
        return Built(), [said]
    device = run_device(case)
    fatal = {
        name: f"importing it ends Python: {outcome.problem}"
        for name, outcome in machine.imports.items()
        if outcome.fatal
    }
    with barred(fatal) as refused:
        asked = Asking(refused)
        model = asked("model", lambda: _model(config))
        tokenizer = asked("tokenizer", lambda: _tokenizer(config, model))
        if config.model.pretrained or config.checkpoint.resume:
            asked("weights", lambda: _weights(config))
        asked("decoder", lambda: _decoder(config, device))
        pack = None
        if model is not None:
            pack = asked("captions", lambda: _captions(model, config))
            asked("attention", lambda: _attention(model, config, device, pack is not None))
        if config.trains:
            asked("loss", lambda: _loss(config, device))
            asked("optimizer", lambda: _optimizer(config, device))
            if model is not None:
                # of a model of its own: compiled blocks would get in the way of later questions
                asked("compile", lambda: _compile(_model(config).value, config, device))
    return Built(model=model, tokenizer=tokenizer, pack=pack), asked.findings


def run_device(case: Case) -> torch.device:
    """Where the trainer would compute. UserError for a device type that torch does not know."""
    if case.asks_for_gpu:
        return torch.device("cuda", 0) if case.has_gpu else torch.device("cpu")
    return torch.device(usable_device_type(case.config.distributed.device))


def _model(config: TrainConfig) -> Answer:
    """Its shapes only: no weight is drawn or read."""
    of_shapes = replace(config.model, pretrained="", pretrained_image=False)
    with torch.device("meta"):
        model: Any = create_training_model(
            of_shapes, config.precision, "meta", config.loss.siglip, load_weights=False
        )
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if model.head_widths is not None:
        return Answer(f"{config.model.name}, native, {millions:.0f} M parameters", value=model)
    return Answer(
        f"{config.model.name} by open_clip, {millions:.0f} M parameters: no packed captions or pruned last block",
        "slower",
        "the native ViT models have these",
        model,
    )


def _weights(config: TrainConfig) -> Answer:
    """Files that are named, looked for; nothing is read or downloaded."""
    name, resume, said = config.model.pretrained, config.checkpoint.resume, []
    if name and is_path(name):
        said.append(f"--pretrained {find_pretrained(config.model.name, name, None).path}")
    elif name:
        said.append(f"--pretrained {name}, a tag: downloaded unless it is in the cache")
    if resume is not None:
        if resume != "latest" and "://" not in resume and not Path(resume).is_file():
            raise InputMissing(f"--resume {resume}: no such file")
        said.append(f"--resume {resume}")
    return Answer(", ".join(said))


def _tokenizer(config: TrainConfig, model: Any) -> Answer:
    tokenizer = tokenizer_of(config.model)
    check_vocabulary(tokenizer, model, config.model)
    found = f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids, context {tokenizer.context_length}"
    return Answer(found, value=tokenizer)


def _decoder(config: TrainConfig, device: torch.device) -> Answer:
    if not config.trains:
        return Answer("Pillow, as evaluation always does")
    refusal = why_not_dali(config.data, device)
    if refusal is None:
        return Answer(f"DALI on the {'GPU' if device.type == 'cuda' else 'CPU'}")
    found = f"Pillow, in the loader processes ({refusal})"
    if device.type == "cpu":
        return Answer(found)
    return Answer(
        found, "slower", "drop the flag" if config.data.decoder == "pillow" else INSTALL_DALI
    )


def _captions(model: Any, config: TrainConfig) -> Answer:
    pack = choose_packing(model, None, config)
    if pack is not None:
        return Answer("packed end to end", value=pack)
    if not config.trains:
        return Answer("one a row, as evaluation always does")
    if not config.model.packed_text:
        return Answer("one a row (--no-packed-text)", "slower", "drop the flag")
    return Answer("one a row: this text tower reads more than a text's end")


def _attention(model: Any, config: TrainConfig, device: torch.device, packed: bool) -> Answer:
    line = set_up_attention(model, None, config, device, packed=packed, teacher_packed=False)
    if not packed or device.type != "cuda":
        return Answer(line)
    facts = facts_of(device, product_dtype(config.precision), model.head_widths.text)
    if not choose(config.model.attention, facts).packed.startswith("sdpa"):
        return Answer(line)
    if config.model.attention != "auto":
        return Answer(line, "slower", "drop --attention: auto takes a kernel for packed captions")
    return Answer(
        line,
        "slower",
        "torch 2.10 or newer, --precision amp_bf16 and an A100 or newer GPU: varlen_attn",
    )


def _loss(config: TrainConfig, device: torch.device) -> Answer:
    choice = loss_backend(config.loss, device, product_dtype(config.precision))
    found = f"{choice.backend}: {choice.reason}"
    if choice.backend == "torch" and device.type == "cuda" and not config.loss.distill:
        remedy = (
            "drop --loss-backend" if config.loss.backend == "torch" else "see triton and cuda above"
        )
        return Answer(found, "slower", remedy)
    return Answer(found)


def _optimizer(config: TrainConfig, device: torch.device) -> Answer:
    optimizer = build_optimizer(config.optim, smallest_model(device))
    kind = type(optimizer)
    fused = ", fused" if optimizer.defaults.get("fused") else ""
    if config.optim.optimizer_impl == "apex":
        return Answer("NVIDIA apex's FusedAdam")
    return Answer(f"{kind.__name__} of {kind.__module__.split('.')[0]}{fused}")


def smallest_model(device: torch.device) -> nn.Module:
    """One weight, one bias, on the device itself: apex tries a step there."""
    return nn.Linear(1, 1, device=device)


def _compile(model: Any, config: TrainConfig, device: torch.device) -> Answer:
    line = set_up_compiling(model, config, device)
    if "are not compiled" in line and device.type == "cuda":
        return Answer(line, "slower", "blocks compiled, which is the default where it works")
    return Answer(line)

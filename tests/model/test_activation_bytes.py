"""The account of activations beside what a forward pass leaves in memory, counted twice."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any, NamedTuple, get_args

import open_clip
import pytest
import torch
from torch import Tensor

from fastclip.config.train_config import Precision
from fastclip.data.packing import PackRule, TextPacker
from fastclip.model.activation_bytes import activation_bytes
from fastclip.model.clip import CLIP
from fastclip.model.model_config import parse_config
from fastclip.model.precision import cast_parameters, layer_norm_for
from fastclip.model.recompute import Recompute
from fastclip.train.precision import product_dtype
from fastclip_kernels.self_attention.dispatch import choose, facts_of
from tests.model.live_storages import bytes_left
from tests.model.model_pairs import captions

SAMPLES = 3


class Case(NamedTuple):
    config: str
    packed: bool = False
    pruned: bool = True
    fused: bool = False  # the patch embedding
    vision: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    text: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    precisions: tuple[Precision, ...] = ("fp32", "amp_bf16")

    def model(self, precision: Precision) -> Any:
        """As the run has it, at two layers and with few words."""
        raw = copy.deepcopy(open_clip.get_model_config(self.config))
        raw["vision_cfg"] |= {"layers": 2, **self.vision}
        raw["text_cfg"] |= {"layers": 2, "vocab_size": 300, **self.text}
        model = CLIP(parse_config(raw, "test"), layer_norm_for(precision), output_dict=True)
        cast_parameters(model, precision)
        if self.fused:
            model.fuse_patch_embed()
        if self.pruned:
            model.prune_last_block()
        return model


CASES = {
    "B-32-256, packed": Case("ViT-B-32-256", packed=True, fused=True),
    "S-16, dense, whole last block": Case("ViT-S-16", pruned=False, vision={"image_size": 112}),
    "B-16-quickgelu": Case("ViT-B-16-quickgelu", vision={"image_size": 112}),
    "M-16-alt, layer scale, patches dropped": Case(
        "ViT-M-16-alt", packed=True, fused=True, vision={"patch_dropout": 0.4}
    ),
    "L-14-CLIPA": Case("ViT-L-14-CLIPA", vision={"image_size": 84}),
    "S-32, weights in bf16": Case("ViT-S-32", packed=True, precisions=("bf16", "pure_bf16")),
    "S-32, averages of norms, first tokens": Case(
        "ViT-S-32", vision={"pool_type": "avg"}, text={"pool_type": "first"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_account_is_what_is_counted(name, seed):
    case = CASES[name]
    for precision, backend in product(case.precisions, ("auto", "sdpa")):
        torch.manual_seed(seed)
        model = case.model(precision).train()
        facts = facts_of(torch.device("cpu"), product_dtype(precision), 64)
        model.use_attention(*[choose(backend, facts).attention] * 2)
        size = model.visual.image_size
        images = torch.randint(0, 256, (SAMPLES, *size, 3), dtype=torch.uint8)
        text: Any = captions(model, SAMPLES, seed)
        if case.packed:
            text = TextPacker(PackRule(eos_id=None), rows=3)(text)
        ids: Tensor = text.ids if case.packed else text
        account = activation_bytes(
            model,
            product_dtype(precision),
            torch.device("cpu"),
            samples=SAMPLES,
            text_tokens=ids.numel(),
            packed=case.packed,
        )

        def forward(
            model: Any = model, batch: Any = (images, text), amp: bool = precision == "amp_bf16"
        ) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                return model(*batch)

        given = [images, *(t for t in (text if case.packed else [text]) if t is not None)]
        others = [*model.parameters(), *model.buffers(), *given]
        kept = {}
        for way in get_args(Recompute):
            model.set_recompute(way)
            saved, alive = bytes_left(forward, others)
            kept[way] = account.kept(way)
            print(f"{precision} {way}: account {kept[way]:,}, saved {saved:,}, alive {alive:,}")
            # what is called again holds the mask itself: no hook sees it
            unseen = sum(stack.mask for stack in account.stacks) if way == "full" else 0
            assert abs(kept[way] - unseen - saved) < 0.02 * saved
            assert abs(kept[way] - alive) < 0.001 * alive
        assert kept["full"] < kept["pointwise"] < kept["none"]

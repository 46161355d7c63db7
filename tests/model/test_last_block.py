"""The last block for the pooled row only: same features, same gradients, fewer products."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from fastclip.model import pooled_rows
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.model_config import load_config, native_models, parse_config
from tests.model.counted import counted_flops
from tests.model.model_pairs import captions, pictures, tiny
from tests.model.test_towers import VARIANTS

# Relative, in the norm: of all gradients together and of the features, and of any one tensor. In
# float32 a norm's weight, a sum over all rows that nearly cancels, is apart by the order of the sum.
TOLERANCE = {torch.float32: (1e-6, 3e-6), torch.float64: (1e-13, 1e-12)}


def _families() -> dict[str, dict[str, Any]]:
    """The native configs without their sizes, each kind once, named by the first that is so."""
    found: dict[str, dict[str, Any]] = {}
    for name in native_models():
        raw = open_clip.get_model_config(name)
        vision, text = raw["vision_cfg"], raw["text_cfg"]
        vision |= {"layers": 2, "width": 2 * vision.get("head_width", 64), "patch_size": 8}
        vision["image_size"] = 32
        text |= {"layers": 2, "width": 64, "heads": 2, "vocab_size": 200}
        raw["embed_dim"] = 40
        found.setdefault(json.dumps(raw, sort_keys=True), {"name": name, "raw": raw})
    return {entry["name"]: entry["raw"] for entry in found.values()}


FAMILIES = _families()
CASES = {
    **{f"{name} reduced": raw for name, raw in FAMILIES.items()},
    **VARIANTS,
    "causal first": tiny(text={"pool_type": "first"}),
    "causal last": tiny(text={"pool_type": "last"}),
    "argmax, not causal": tiny(text={"no_causal_mask": True}),
    "patch dropout": tiny(vision={"patch_dropout": 0.5}),
}


def _model(raw: dict[str, Any], seed: int, layout: type[Any] = CLIP) -> Any:
    torch.manual_seed(seed)
    return layout(parse_config(copy.deepcopy(raw), "test"))


def _inputs(model: Any, seed: int) -> tuple[Tensor, Tensor]:
    config = model.config.text_cfg
    eos_id = config.eos_id if config.pool_type == "eos" else None
    return pictures(model, 3, seed), captions(model, 3, seed, eos_id)


def _results(model: Any, seed: int, compiled: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Features of both towers, and the gradient of every parameter that has one."""
    images, text = _inputs(model, seed)
    images = images.to(model.visual.proj.dtype)
    model.zero_grad()
    model.set_patch_dropout_seed(seed)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    image_features, text_features = run(images, text)[:2]
    weigh = torch.Generator().manual_seed(seed)
    for features in (image_features, text_features):
        weights = torch.randn(features.shape, generator=weigh, dtype=features.dtype)
        if features.requires_grad:
            (features * weights).sum().backward(retain_graph=True)
    yield "image features", image_features
    yield "text features", text_features
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not name.startswith("logit_"):
            yield name, parameter.grad


def _relative(ours: list[Tensor], wanted: list[Tensor]) -> float:
    ours_flat, flat = (torch.cat([t.flatten() for t in ts]) for ts in (ours, wanted))
    return ((ours_flat - flat).norm() / flat.norm()).item()


def _compare(model: Any, seed: int, dtype: torch.dtype, compiled: bool = False) -> None:
    """Raise AssertionError where one row gives other results than all rows."""
    whole = {k: v.detach().clone() for k, v in _results(model, seed)}
    model.prune_last_block()
    pruned = dict(_results(model, seed, compiled))
    assert pruned.keys() == whole.keys()
    together, alone = TOLERANCE[dtype]
    gradients = [k for k in whole if "features" not in k]
    assert _relative([pruned[k] for k in gradients], [whole[k] for k in gradients]) <= together
    for key in whole:
        if key in gradients and whole[key].norm() > 0:
            assert _relative([pruned[key]], [whole[key]]) <= alone, key
        elif key in gradients:
            assert pruned[key].norm() == 0, key
        else:
            assert _relative([pruned[key]], [whole[key]]) <= together, key


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_are_the_same(case: str, dtype: torch.dtype, seed: int) -> None:
    _compare(_model(CASES[case], seed).to(dtype), seed, dtype)


@pytest.mark.parametrize("layout", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize(
    "how",
    [
        "checkpointed",
        "image locked",
        "both half locked",
        "evaluated",
        "compiled",
        "compiled checkpointed",
    ],
)
def test_with_what_else_a_run_may_ask_for(how: str, layout: type[Any], seed: int) -> None:
    model = _model(CASES["plain"], seed, layout).double()
    if "checkpointed" in how:
        model.set_grad_checkpointing()
    if how == "image locked":
        model.lock_image_tower()
    if how == "both half locked":
        model.lock_image_tower(2)
        model.lock_text_tower(2)
    model.train(how != "evaluated")
    _compare(model, seed, torch.float64, compiled="compiled" in how)


def test_names_and_parameters_are_the_same() -> None:
    model = _model(tiny(), 0)
    names = list(model.state_dict())
    model.prune_last_block()
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("case", "towers"),
    [
        ("plain", ("image", "text")),
        ("avg", ("text",)),
        ("avg_then_norm", ("text",)),
        ("all_tokens", ()),
        ("first", ("image", "text")),
        ("last", ("image", "text")),
        ("eos", ("image", "text")),
    ],
)
def test_decided_from_the_config(case: str, towers: tuple[str, ...]) -> None:
    model = _model(CASES[case], 0)
    assert model.prune_last_block() == towers
    rows: list[int] = []
    for tower in (model.visual.transformer, model.transformer):
        tower.blocks[-1].mlp.register_forward_hook(lambda m, i, o: rows.append(o[..., 0].numel()))
    images, text = _inputs(model, 0)
    model(images, text)
    tokens = (3 * 17, 3 * 13)
    wanted = [3 if t in towers else n for t, n in zip(("image", "text"), tokens, strict=True)]
    assert rows == wanted


def _next_row(self: Any, x: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), (self.position + 1) % x.shape[1]]


def _sees_all(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled_rows.scaled_dot_product(q[:, None], k, v)[:, 0]


@pytest.mark.parametrize(
    ("kind", "method", "wrong"),
    [
        pytest.param(pooled_rows.RowAt, "pick", _next_row, id="the row after"),
        pytest.param(pooled_rows.RowAt, "attend", _sees_all, id="EOT sees what follows it"),
        pytest.param(pooled_rows.FirstRow, "pick", lambda self, x: x[:, 1], id="a patch"),
    ],
)
def test_planted_error_is_noticed(
    kind: type[Any], method: str, wrong: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tiny(), seed)
    # picking is also what the whole block's output goes through, so the truth comes first
    whole = {k: v.detach().clone() for k, v in _results(model, seed)}
    model.prune_last_block()
    monkeypatch.setattr(kind, method, wrong)
    pruned = dict(_results(model, seed))
    features = [k for k in whole if "features" in k]
    assert max(_relative([pruned[k]], [whole[k]]) for k in features) > 1e-3


def _flops(name: str, pruned: bool) -> tuple[int, int]:
    """Of one sample's forward and backward: image tower, text tower."""
    config = load_config(name)
    with torch.device("meta"):
        model: nn.Module = CLIP(config)
        image = torch.empty(1, 3, *config.vision_cfg.image_size_pair)
        text = torch.empty(1, config.text_cfg.context_length, dtype=torch.int64)
    if pruned:
        model.prune_last_block()  # type: ignore[operator]
    return (
        counted_flops(model, lambda m: m.encode_image(image)),
        counted_flops(model, lambda m: m.encode_text(text)),
    )


def test_products_left_out_of_vit_b_32_256() -> None:
    whole, pruned = _flops("ViT-B-32-256", False), _flops("ViT-B-32-256", True)
    for tower, before, after in zip(("image", "text"), whole, pruned, strict=True):
        print(
            f"{tower}: {before / 1e9:.2f} -> {after / 1e9:.2f} GFLOP, {1 - after / before:.1%} less"
        )
        # Of 24 D² per token in each of 12 layers, keys and values are 4 D²; attention is small.
        assert 0.06 <= 1 - after / before <= 0.075
    print(f"both: {sum(whole) / 1e9:.2f} -> {sum(pruned) / 1e9:.2f} GFLOP")

"""Blocks through torch.compile: same features and gradients, few graphs, no name changed."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from fastclip.config.train_config import DataConfig
from fastclip.data.build import build_data
from fastclip.data.packing import PackRule
from fastclip.data.tokenizer import ClipTokenizer
from fastclip.model.block import Block
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.model_config import parse_config
from fastclip_kernels import ClipLoss
from tests.distributed.launch import run_ranks
from tests.e2e.tiny_run import SHARDS
from tests.model.model_pairs import captions, pictures, tiny
from tests.model.test_packed_text import captions as captions_of_every_kind
from tests.model.test_packed_text import packed

# sums in another order
TOLERANCE = 1e-5
KINDS = {
    "plain": tiny(),
    "quick gelu, layer scale": tiny(
        vision={"ls_init_value": 0.1}, text={"ls_init_value": 0.2}, quick_gelu=True
    ),
    "average pooling, first token": tiny(vision={"pool_type": "avg"}, text={"pool_type": "first"}),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model_of(raw: dict[str, Any], seed: int, layout: type[Any] = CLIP) -> Any:
    torch.manual_seed(seed)
    model = layout(parse_config(raw, "test"), output_dict=True)
    model.prune_last_block()
    return model


def gradients(model: Any, images: Tensor, text: Any) -> dict[str, Tensor]:
    """Loss, features and the gradient of every parameter."""
    model.zero_grad()
    outputs = model(images, text)
    loss = ClipLoss()(**outputs)
    loss.backward()
    found = {k: v.detach().clone() for k, v in outputs.items() if v is not None}
    found |= {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


def compare(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise AssertionError where a tensor is apart by more than rounding."""
    assert ours.keys() == wanted.keys()
    largest = max(v.norm() for v in wanted.values())
    for name, value in wanted.items():
        # the gradient of a bias of keys is 0, and what is left of it is rounding
        allowed = TOLERANCE * max(value.norm(), 1e-3 * largest)
        assert (ours[name] - value).norm() <= allowed, name


def differences_noticed(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    try:
        compare(ours, wanted)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("case", "way", "layout", "sums"),
    [
        ("plain", "none", CLIP, True),
        ("quick gelu, layer scale", "pointwise", CustomTextCLIP, True),
        ("average pooling, first token", "full", CLIP, False),
    ],
)
def test_compiled_is_eager(case: str, way: Any, layout: type[Any], sums: bool, seed: int) -> None:
    model = model_of(KINDS[case], seed, layout)
    images = pictures(model, 3, seed)
    text: Any = captions(model, 3, seed)
    if model.packing_config is not None:
        ids = captions_of_every_kind(model.config.text_cfg, seed)
        images, text = pictures(model, len(ids), seed), packed(model.config.text_cfg, ids)
    wanted = gradients(model, images, text)
    names = list(model.state_dict())
    model.set_recompute(way)
    model.compile_blocks(backend="aot_eager", sum_biases=sums)
    compare(gradients(model, images, text), wanted)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert list(model.state_dict()) == names


def test_an_error_in_the_compiled_block_is_seen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny(), seed)
    images, text = pictures(model, 3, seed), captions(model, 3, seed)
    wanted = gradients(model, images, text)
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args: 1.0001 * forward(self, *args))
    model.compile_blocks(backend="aot_eager")
    assert differences_noticed(gradients(model, images, text), wanted)


def test_evaluation_is_not_compiled(seed: int) -> None:
    """Its batches have any number of members, and every number would be compiled."""
    model = model_of(tiny(), seed).eval()
    model.compile_blocks(backend="aot_eager")
    model(pictures(model, 3, seed), captions(model, 3, seed))
    assert not counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("packs", [False, True])
def test_whole_towers_and_the_loss_are_one_graph_each(packs: bool, seed: int) -> None:
    """On tensors without storage; a graph break would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_of(tiny({"layers": 2}, {"layers": 2}), seed)
        images = torch.empty(10, 3, *model.visual.image_size)
        ids = torch.empty(10, model.context_length, dtype=torch.int64)
    text: Any = ids
    if packs:
        layout = packed(model.config.text_cfg, captions_of_every_kind(model.config.text_cfg, seed))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        if packs:
            text = type(layout)(*(None if t is None else mode.from_tensor(t) for t in layout))
        whole = {"fullgraph": True, "backend": "aot_eager"}
        image_features = torch.compile(model.encode_image, **whole)(images)
        text_features = torch.compile(model.encode_text, **whole)(text)
        loss = torch.compile(ClipLoss(), **whole)(image_features, text_features, torch.ones(()))
        loss.backward()
        gradients = [p.grad for n, p in model.named_parameters() if not n.startswith("logit_")]
        assert all(gradient is not None for gradient in gradients)


def test_two_hundred_real_batches_need_four_graphs(seed: int) -> None:
    """Two towers, their last blocks: no layer and no batch compiles anything again."""
    text = {"context_length": 77, "vocab_size": 49408}
    model = model_of(tiny(vision={"image_size": 32}, text=text), seed)
    compiler = CompileCounterWithBackend("aot_eager")
    model.compile_blocks(backend=compiler)
    data = DataConfig(
        train_data=SHARDS, dataset_type="webdataset", batch_size=7, workers=1, decoder="pillow"
    )
    loader = build_data(
        data,
        model.preprocess_cfg,
        ClipTokenizer(context_length=77),
        seed=seed,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        pack=PackRule(eos_id=None),
    ).train
    assert loader is not None
    shapes, batches = set(), 0
    try:
        for batch in loader.epoch(0):
            model(batch.images, batch.texts)
            shapes.add((batch.images.shape, batch.texts.ids.shape))
            batches += 1
    finally:
        loader.close()
    print(f"{batches} batches of {len(shapes)} shapes, {compiler.frame_count} graphs")
    assert batches >= 200
    assert len(shapes) <= 2  # the second is that of unusually long captions
    assert compiler.frame_count == 2 + 2 * len(shapes)
    assert not counters["graph_break"]


@pytest.mark.slow  # runs the C++ compiler
@pytest.mark.parametrize("way", ["none", "pointwise"])
def test_generated_code_is_eager(way: Any, seed: int) -> None:
    model = model_of(tiny({"layers": 2}, {"layers": 2}, quick_gelu=True), seed)
    ids = captions_of_every_kind(model.config.text_cfg, seed)
    images, text = pictures(model, len(ids), seed), packed(model.config.text_cfg, ids)
    wanted = gradients(model, images, text)
    model.set_recompute(way)
    model.compile_blocks(sum_biases=True)
    compare(gradients(model, images, text), wanted)


def _three_steps(rank: int, world_size: int, compiled: bool, seed: int) -> dict[str, Tensor]:
    """Weights and losses after three steps on this rank's own batches, in DDP."""
    model = model_of(tiny(), seed)
    if compiled:
        model.compile_blocks(backend="aot_eager")
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = {}
    for step in range(3):
        number = seed + 10 * step + rank
        optimizer.zero_grad()
        total = loss(**wrapped(pictures(model, 4, number), captions(model, 4, number)))
        total.backward()
        optimizer.step()
        found[f"loss {step}"] = total.detach()
    return {**found, **{f"ddp {k}": v.clone() for k, v in wrapped.state_dict().items()}}


def both_ways(rank: int, world_size: int, seed: int) -> list[dict[str, Tensor]]:
    warnings.simplefilter("ignore")
    return [_three_steps(rank, world_size, compiled, seed) for compiled in (False, True)]


@pytest.mark.slow  # compiles on two ranks
def test_two_ranks_in_ddp(seed: int) -> None:
    for wanted, ours in run_ranks(both_ways, 2, (seed,)):
        assert all("_orig_mod" not in name for name in ours)
        assert ours.keys() == wanted.keys()
        for name, value in wanted.items():
            # three steps of products by oneDNN on one side, by MKL on the other
            torch.testing.assert_close(ours[name], value, rtol=TOLERANCE, atol=5e-6, msg=name)


def test_a_compiled_model_can_be_copied_and_pickled(seed: int) -> None:
    model = model_of(tiny(), seed)
    model.set_recompute("pointwise")
    model.compile_blocks(backend="aot_eager", sum_biases=True)
    images, text = pictures(model, 3, seed), captions(model, 3, seed)
    wanted = gradients(model, images, text)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.transformer.recompute == "pointwise"
        compare(gradients(other, images, text), wanted)
    assert model.transformer.grad_checkpointing


def test_hooks_on_a_layer_are_heard_where_biases_are_summed(seed: int) -> None:
    model = model_of(tiny(), seed)
    model.compile_blocks(backend="aot_eager", sum_biases=True)
    heard: list[bool] = []
    layer = model.visual.transformer.blocks[0].mlp.c_fc
    layer.register_forward_hook(lambda *_: heard.append(model.training))
    images, text = pictures(model, 3, seed), captions(model, 3, seed)
    with torch.no_grad():
        model.eval()(images, text)
    assert heard == [False]
    model.train()(images, text)
    assert heard == [False, True]

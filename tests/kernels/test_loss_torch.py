"""The losses among the rest of torch: autograd, compile, autocast and the scaler, memory, hard
numbers.
"""

from __future__ import annotations

import secrets

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastclip_kernels as kernels
from fastclip_kernels.loss import small, torch_chunks
from fastclip_kernels.loss.clip_alone import clip_alone, clip_alone_backward
from fastclip_kernels.loss.reference import clip_loss_reference, siglip_loss_reference
from fastclip_kernels.loss.siglip_block import siglip_block
from fastclip_kernels.testing import unit_features

LOSSES = [
    (kernels.clip_loss, clip_loss_reference),
    (kernels.siglip_loss, siglip_loss_reference),
]
both = pytest.mark.parametrize(("loss", "specification"), LOSSES, ids=["clip", "siglip"])


@pytest.fixture
def generator():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def features(rows, width, generator, dtype=torch.float32):
    return [unit_features(rows, width, generator, dtype).requires_grad_() for _ in range(2)]


@both
@pytest.mark.parametrize(
    ("chunk_bytes", "few"),
    [(4, 0), (4 * 7 * 3, 0), (4 << 20, 0), (4 << 20, 1 << 19)],
    ids=["one logit", "four by five", "one chunk", "few pairs"],
)
def test_gradients_are_derivatives(loss, specification, chunk_bytes, few, generator, monkeypatch):
    monkeypatch.setattr(torch_chunks, "CHUNK_BYTES_CPU", chunk_bytes)
    monkeypatch.setattr(small, "MOST_LOGITS", few)
    image, text = features(7, 5, generator, torch.float64)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (image, text, scale, bias))
    torch.testing.assert_close(
        loss(image, text, scale, bias), specification(image, text, scale, bias)
    )


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
def test_each_gradient_alone(loss, specification, wanted, generator):
    arguments = [*features(9, 8, generator), torch.tensor(9.0), torch.tensor(-4.0)]
    arguments = [each.detach().requires_grad_(i in wanted) for i, each in enumerate(arguments)]
    inputs = [arguments[i] for i in wanted]
    ours = torch.autograd.grad(loss(*arguments), inputs)
    theirs = torch.autograd.grad(specification(*arguments), inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@both
def test_compiled_is_eager(loss, specification, generator):
    image, text = features(33, 24, generator)
    scale = torch.tensor(14.3, requires_grad=True)
    bias = torch.tensor(-5.0, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for amp in (False, True):
        results = []
        for function in (loss, compiled):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                value = function(image, text, scale, bias)
            results.append((value, *torch.autograd.grad(value, (image, text, scale, bias))))
        torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_compiled_module_is_eager(generator):
    image, text = features(33, 24, generator)
    module = kernels.ClipLoss(local_loss=True, gather_with_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, text, 14.3), module(image, text, 14.3))


@both
def test_strides_do_not_matter(loss, specification, generator):
    image, text = (each.detach() for each in features(12, 10, generator))
    strided = [image.T.contiguous().T, torch.stack([text, -text], 2)[..., 0]]
    assert not any(each.is_contiguous() for each in strided)
    strided = [each.requires_grad_() for each in strided]
    plain = [image.requires_grad_(), text.requires_grad_()]
    ours, wanted = loss(*strided, 20.0, 0.0), loss(*plain, 20.0, 0.0)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(ours, strided), torch.autograd.grad(wanted, plain)
    )


@both
def test_scale_and_bias_as_number_tensor_or_parameter(loss, specification, generator):
    image, text = features(6, 5, generator)
    wanted = loss(image, text, 7.0, -2.0)
    for make in (
        torch.tensor,
        lambda x: torch.nn.Parameter(torch.tensor(x)),
        lambda x: torch.tensor([x], requires_grad=True),  # the reference's nonscalar_logit_scale
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
    ):
        scale, bias = make(7.0), make(-2.0)
        value = loss(image, text, scale, bias)
        assert value.shape == ()
        torch.testing.assert_close(value, wanted)
        if scale.requires_grad:
            value.backward()
            assert scale.grad.shape == scale.shape


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_is_never_hidden(loss, specification, bad, generator):
    image, text = features(6, 5, generator)
    with torch.no_grad():
        image[2, 3] = bad
    value = loss(image, text, 10.0, 0.0)
    # the log-sigmoid of the right infinity is 0
    assert value.isfinite() == specification(image, text, 10.0, 0.0).isfinite()
    assert loss is kernels.siglip_loss or not value.isfinite()
    gradients = torch.autograd.grad(value, (image, text))
    if loss is kernels.clip_loss or bad != bad:  # a sigmoid of infinity is a number
        assert all(bool(gradient.isnan().any()) for gradient in gradients)
    image, text = features(6, 5, generator)
    assert not loss(image, text, bad, 0.0).isfinite()
    assert not loss(image, text, 1.0, bad).isfinite()


@both
def test_half_precision_gradients_survive_a_gradient_scaler(loss, specification, generator):
    """Under fp16 autocast with the first scale of a scaler, as `--precision amp` runs."""
    rows = 2048
    image, text = features(rows, 64, generator)
    scale = torch.tensor(14.3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(image, text, scale, -10.0)
    assert value.dtype == torch.float32
    scaled = torch.autograd.grad(value * 65536.0, (image, text, scale))
    truth = specification(image.double(), text.double(), scale.double(), -10.0)
    for ours, wanted in zip(scaled, torch.autograd.grad(truth, (image, text, scale)), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours / 65536 - wanted).norm() / wanted.norm()) < 1e-3


def test_no_grad_and_inference(generator):
    image, text = features(6, 5, generator)
    wanted = kernels.clip_loss(image, text, 5.0).detach()
    with torch.no_grad():
        assert torch.equal(kernels.clip_loss(image, text, 5.0), wanted)
    with torch.inference_mode():
        assert torch.equal(kernels.clip_loss(image, text, 5.0), wanted)


@both
@pytest.mark.parametrize("few", [1 << 19, 0])
@pytest.mark.parametrize("by", [0, 2])
def test_a_second_derivative_raises(loss, specification, few, by, generator, monkeypatch):
    monkeypatch.setattr(small, "MOST_LOGITS", few)
    arguments = [*features(6, 5, generator), torch.tensor(5.0, requires_grad=True)]
    first = torch.autograd.grad(loss(*arguments, 0.0), arguments[by], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        first[0].square().sum().backward()


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor made under it has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_no_tensor_holds_all_logits(generator):
    """The bodies of the ops, un-wrapped: a dispatch mode does not look into an op."""
    rows, width = 4096, 16
    image, text = (each.detach() for each in features(rows, width, generator))
    scale, bias, one = torch.tensor(10.0), torch.tensor(-10.0), torch.tensor(1.0)
    how = torch.float32, "torch"
    with Largest() as largest:
        _, sums = clip_alone._init_fn(image, text, scale, *how)
        clip_alone_backward._init_fn(one, image, text, scale, sums, *how, True, True, True)
        siglip_block._init_fn(image, text, scale, bias, 0, *how, True)
    assert largest.elements >= rows * width  # it looks
    assert largest.elements <= torch_chunks.CHUNK_BYTES_CPU // 4
    assert largest.elements < rows * rows / 8

"""What the losses accept, what they return, and what they say about the rest."""

from __future__ import annotations

import inspect

import pytest
import torch

import fastclip_kernels as kernels
from fastclip_kernels.backend import resolve
from tests.kernels.parity import load_reference

NAMES = ["ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss"]


@pytest.fixture
def pair():
    return torch.randn(4, 6), torch.randn(4, 6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signatures_are_the_references(name, method):
    reference = load_reference()
    theirs = inspect.signature(getattr(getattr(reference, name), method)).parameters.values()
    ours = inspect.signature(getattr(getattr(kernels, name), method)).parameters.values()
    described = [(p.name, p.kind, p.default) for p in ours if p.name not in ("backend", "exchange")]
    assert described == [(p.name, p.kind, p.default) for p in theirs]


def test_results_are_of_the_references_kind(pair):
    reference = load_reference()
    logits, labels = torch.randn(4, 5, 9), torch.randint(0, 9, (4, 5))
    arguments = {
        "ClipLoss": ((), (*pair, 1.0)),
        "SigLipLoss": ((), (*pair, 1.0, None)),
        "CoCaLoss": ((2.0, 1.0), (*pair, logits, labels, 1.0)),
        "DistillClipLoss": ((), (*pair, 1.0, *pair, 1.0)),
    }
    for name, (made_with, called_with) in arguments.items():
        for output_dict in (False, True):
            results = [
                getattr(losses, name)(*made_with)(*called_with, output_dict=output_dict)
                for losses in (kernels, reference)
            ]
            ours, theirs = results
            assert type(ours) is type(theirs), name
            if output_dict:
                assert list(ours) == list(theirs), name
            for mine, its in zip(_tensors(ours), _tensors(theirs), strict=True):
                assert mine.shape == its.shape
                torch.testing.assert_close(mine, its)


def _tensors(result):
    if isinstance(result, dict):
        return list(result.values())
    return result if isinstance(result, tuple) else (result,)


BAD = [
    ("image_features must be a tensor, got list", TypeError, lambda i, t: ([1.0], t, 1.0)),
    (r"image_features must be \(B, D\).*got \(4,\)", ValueError, lambda i, t: (i[:, 0], t, 1.0)),
    (r"image_features must be .*got \(0, 6\)", ValueError, lambda i, t: (i[:0], t[:0], 1.0)),
    (r"image_features must be .*got \(4, 0\)", ValueError, lambda i, t: (i[:, :0], t[:, :0], 1.0)),
    (
        r"text_features must be \(4, 6\) like.*got \(3, 6\)",
        ValueError,
        lambda i, t: (i, t[:3], 1.0),
    ),
    (
        r"text_features must be \(4, 6\) like.*got \(4, 5\)",
        ValueError,
        lambda i, t: (i, t[:, :5], 1.0),
    ),
    ("image_features must be one of.*got torch.int64", TypeError, lambda i, t: (i.long(), t, 1.0)),
    (
        "text_features must be torch.float32 like.*got torch.bfloat16",
        TypeError,
        lambda i, t: (i, t.bfloat16(), 1.0),
    ),
    (
        "text_features must be on cpu like.*got meta",
        ValueError,
        lambda i, t: (i, t.to("meta"), 1.0),
    ),
    (
        r"logit_scale must hold one number, got shape \(2,\)",
        ValueError,
        lambda i, t: (i, t, torch.ones(2)),
    ),
    (
        "logit_scale must be a float tensor, got torch.int64",
        TypeError,
        lambda i, t: (i, t, torch.tensor(1)),
    ),
    (
        "logit_scale must be a number or a tensor, got NoneType",
        TypeError,
        lambda i, t: (i, t, None),
    ),
    (
        "logit_scale must be on cpu, got meta",
        ValueError,
        lambda i, t: (i, t, torch.ones((), device="meta")),
    ),
    (
        "logit_bias must be a number or a tensor, got str",
        TypeError,
        lambda i, t: (i, t, 1.0, "-10"),
    ),
]


@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss"])
@pytest.mark.parametrize(("message", "kind", "make"), BAD, ids=[m for m, _, _ in BAD])
def test_bad_input_is_one_clear_error(op, message, kind, make, pair):
    with pytest.raises(kind, match=message) as error:
        getattr(kernels, op)(*make(*pair))
    assert str(error.value).startswith(f"{op}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss"])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"rank": 1, "world_size": 1}, "rank must be in 0..world_size-1, got rank=1, world_size=1"),
        ({"rank": 0, "world_size": 0}, "rank must be in 0..world_size-1, got rank=0, world_size=0"),
        (
            {"rank": 0, "world_size": 2},
            "world_size=2 needs a process group: call torch.distributed",
        ),
    ],
)
def test_ranks_that_are_not_there_are_one_clear_error(op, where, message, pair):
    with pytest.raises(ValueError, match=message):
        getattr(kernels, op)(*pair, 1.0, **where)


def test_bad_options_are_refused_when_the_loss_is_made():
    with pytest.raises(ValueError, match="ClipLoss: use_horovod=True is not supported"):
        kernels.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="CoCaLoss: use_horovod=True is not supported"):
        kernels.CoCaLoss(1.0, 1.0, use_horovod=True)
    with pytest.raises(ValueError, match=r"ClipLoss: exchange must be one of.*got 'star'"):
        kernels.ClipLoss(exchange="star")
    with pytest.raises(ValueError, match=r"SigLipLoss: dist_impl must be one of.*got 'ring'"):
        kernels.SigLipLoss(dist_impl="ring")
    with pytest.raises(ValueError, match=r"ClipLoss: backend must be one of.*got 'cuda'"):
        kernels.ClipLoss(backend="cuda")


def test_distillation_checks_the_teacher_too(pair):
    image, text = pair
    with pytest.raises(ValueError, match="dist_image_features must have 4 rows"):
        kernels.DistillClipLoss()(image, text, 1.0, image[:3], text[:3], 1.0)
    with pytest.raises(ValueError, match="dist_text_features must be"):
        kernels.DistillClipLoss()(image, text, 1.0, image, text[:3], 1.0)


@pytest.mark.parametrize("op", ["clip_loss", "siglip_loss"])
def test_a_named_backend_never_falls_back(op, pair, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    loss = getattr(kernels, op)
    with pytest.raises(kernels.BackendUnavailable, match=r"needs a CUDA device.*are on cpu"):
        loss(*pair, 1.0, 0.0, backend="triton")
    with pytest.raises(kernels.BackendUnavailable, match="no float64 form"):
        loss(*(each.double() for each in pair), 1.0, 0.0, backend="triton")
    assert torch.equal(loss(*pair, 1.0, 0.0, backend="torch"), loss(*pair, 1.0, 0.0))


def test_distillation_has_no_triton_form(pair):
    with pytest.raises(kernels.BackendUnavailable, match="no Triton form"):
        kernels.DistillClipLoss(backend="triton")(*pair, 1.0, *pair, 1.0)


def test_auto_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve("op", "auto", cpu).backend == "torch"
    assert "CUDA" in resolve("op", "auto", cpu).reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert resolve("op", "auto", cuda, torch.bfloat16).backend == "triton"
    assert resolve("op", "auto", cuda, torch.float64).backend == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in resolve("op", "auto", cuda, torch.bfloat16).reason

"""Optimiser groups and state interchange with the reference's, both ways."""

import pytest
import torch
from torch import nn

from fastclip.config.train_config import OptimConfig
from fastclip.errors import DataError, UserError
from fastclip.optim.build import build_optimizer, load_optimizer_state, portable_state_dict
from fastclip.optim.param_groups import split_by_decay


class Tiny(nn.Module):
    """Every kind of name and shape that the decay rule looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(5, 4))
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.ln_post = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.bn_like = nn.Linear(3, 3, bias=False)
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(self.ln_post(x + self.class_embedding + self.positional_embedding))
        return self.bn_like(y).square().sum() * self.logit_scale


def _reference_adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The reference's rule, written out from its main()."""

    def excluded(name: str, p: nn.Parameter) -> bool:
        return p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if excluded(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not excluded(n, p)], "weight_decay": config.wd},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).backward()
        optimizer.step()


def test_positional_embedding_decays_and_vectors_do_not() -> None:
    model = Tiny()
    names = {id(p): n for n, p in model.named_parameters()}
    not_decayed, decayed = split_by_decay(model)
    assert [names[id(p)] for p in decayed] == ["positional_embedding", "linear.weight"]
    assert [names[id(p)] for p in not_decayed] == [
        "class_embedding",
        "logit_scale",
        "ln_post.weight",
        "ln_post.bias",
        "linear.bias",
        "bn_like.weight",
    ]


def test_state_goes_both_ways_and_training_goes_on_alike() -> None:
    """Reference 3 steps -> ours 3 steps -> reference 3 steps equals the reference alone."""
    config = OptimConfig(lr=1e-2)
    torch.manual_seed(0)
    straight, mixed = Tiny(), Tiny()
    mixed.load_state_dict(straight.state_dict())
    reference = _reference_adamw(straight, config)
    for part in range(3):
        _train(straight, reference, 3, seed=part)

    optimizer: torch.optim.Optimizer = _reference_adamw(mixed, config)
    _train(mixed, optimizer, 3, seed=0)
    ours = build_optimizer(config, mixed)
    assert load_optimizer_state(ours, optimizer.state_dict(), "file") == []
    assert ours.param_groups[0]["fused"] is True
    _train(mixed, ours, 3, seed=1)
    saved = portable_state_dict(ours)
    assert saved["param_groups"] == [
        {**group, "lr": 1e-2} for group in optimizer.state_dict()["param_groups"]
    ]
    back = _reference_adamw(mixed, config)
    back.load_state_dict(saved)
    _train(mixed, back, 3, seed=2)
    for (name, p), q in zip(straight.named_parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-7, msg=name)


def test_flags_win_over_the_checkpoint_and_say_so() -> None:
    model = Tiny()
    old = build_optimizer(OptimConfig(wd=0.2), model)
    new = build_optimizer(OptimConfig(wd=0.1), model)
    lines = load_optimizer_state(new, portable_state_dict(old), "file")
    assert lines == ["group 1: weight_decay 0.2 in the checkpoint, 0.1 from the flags"]
    assert new.param_groups[1]["weight_decay"] == 0.1


def test_state_of_other_groups_is_refused() -> None:
    state = portable_state_dict(build_optimizer(OptimConfig(), nn.Linear(2, 2)))
    with pytest.raises(DataError, match=r"groups of \[1, 1\] parameters, this run has \[6, 2\]"):
        load_optimizer_state(build_optimizer(OptimConfig(), Tiny()), state, "file.pt")


def test_timm_optimizer_and_its_misspelling() -> None:
    options = {"lr": 1e-3, "eps": 1e-8, "beta1": 0.9, "beta2": 0.95}
    assert type(build_optimizer(OptimConfig(opt="timm/lamb", **options), Tiny())).__name__ == "Lamb"
    with pytest.raises(UserError, match="timm cannot build it"):
        build_optimizer(OptimConfig(opt="timm/adamww", **options), Tiny())

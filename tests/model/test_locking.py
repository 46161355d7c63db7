"""Freezing freezes what the reference freezes."""

import pytest

from tests.model.model_pairs import tiny, tiny_pair

TOWERS = [
    tiny(),
    tiny(vision={"no_ln_pre": True}, text={"proj_type": "none"}),
    tiny(text={"proj_bias": True}),
]


def _trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("raw", TOWERS)
@pytest.mark.parametrize("groups", range(8))
def test_groups(groups, raw, custom_text):
    for tower in ("image", "text"):
        reference, ours = tiny_pair(raw, force_custom_text=custom_text)
        for model in (reference, ours):
            getattr(model, f"lock_{tower}_tower")(groups)
        assert _trainable(ours) == _trainable(reference), tower
    assert "logit_scale" in _trainable(ours)


def _is_norm(name):
    return any(part.startswith("ln_") for part in name.split("."))


@pytest.mark.parametrize("custom_text", [False, True])
def test_text_norms_can_stay_trainable(custom_text):
    """The reference's Hugging Face towers do this; its native ones fail an assertion."""
    for groups in range(6):
        reference, ours = tiny_pair(None, force_custom_text=custom_text)
        reference.lock_text_tower(groups)
        ours.lock_text_tower(groups, freeze_layer_norm=False)
        text_norms = {n for n in _trainable(tiny_pair()[1]) if _is_norm(n) and "visual" not in n}
        if custom_text:
            text_norms = {f"text.{n}" for n in text_norms}
        assert len(text_norms) == 14
        assert _trainable(ours) == _trainable(reference) | text_norms

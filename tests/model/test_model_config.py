"""Configs hold the reference's numbers, and mistakes are named."""

import json
from pathlib import Path

import open_clip
import pytest
from open_clip import factory as reference

from fastclip.errors import EnvironmentProblem, InputMissing, UserError
from fastclip.model import model_config
from fastclip.model.model_config import (
    describes_native_model,
    load_config,
    native_models,
    parse_config,
    reference_only_models,
    tokenizer_spec,
)
from tests.model.model_pairs import TINY, tiny

CONFIGS = Path(model_config.__file__).parent / "configs"


def test_names_are_the_reference_names():
    assert len(native_models()) == 45
    assert set(native_models()) | reference_only_models() == set(open_clip.list_models())
    assert not set(native_models()) & reference_only_models()


@pytest.mark.parametrize("name", native_models())
def test_config_is_the_reference_config(name):
    assert json.loads((CONFIGS / f"{name}.json").read_text()) == open_clip.get_model_config(name)
    load_config(name)


def test_native_is_decided_by_fields():
    native = {
        n for n in open_clip.list_models() if describes_native_model(open_clip.get_model_config(n))
    }
    assert native == set(native_models())


def test_slash_and_dash_name_one_model():
    assert load_config("ViT-B/32") == load_config("ViT-B-32")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (tiny(vision={"timm_pool": "avg"}), "vision_cfg.timm_pool"),
        (tiny(text={"colour": 1}), "text_cfg.colour"),
        (tiny(multimodal_cfg={}), "multimodal_cfg"),
        ({k: v for k, v in TINY.items() if k != "text_cfg"}, "no 'text_cfg'"),
        (tiny(vision={"pool_type": "max"}), "choose tok, avg, none"),
        (tiny(text={"heads": 5}), "width 48 cannot be cut into 5 heads"),
        (tiny(vision={"image_size": 8}), "smaller than one patch"),
        (tiny(vision={"patch_dropout": 1.0}), "below 1"),
    ],
)
def test_bad_config_is_one_line(raw, message):
    with pytest.raises(UserError, match=message) as error:
        parse_config(raw, "FILE")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ViT-B-3", "ViT-B-32"), ("vit-l-14-366", "ViT-L-14-336"), ("RN-50", "RN50")],
)
def test_unknown_name_offers_the_three_nearest(typed, meant):
    with pytest.raises(UserError, match="unknown model") as error:
        load_config(typed)
    offered = str(error.value).split("nearest names: ")[1].split(", ")
    assert meant in offered
    assert len(offered) == 3


def test_model_of_the_extra_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'fastclip\[openclip\]'"):
        load_config("RN50")


def _recorded(monkeypatch, name, **options):
    """What the reference's get_tokenizer would construct."""
    made = []

    def recorder(kind):
        def construct(*args, **kwargs):
            made.append((kind, args, kwargs))

        return construct

    monkeypatch.setattr(reference, "HFTokenizer", recorder("hf"))
    monkeypatch.setattr(reference, "SigLipTokenizer", recorder("siglip"))
    monkeypatch.setattr(reference, "SimpleTokenizer", recorder("clip"))
    reference.get_tokenizer(name, **options)
    return made[0]


@pytest.mark.parametrize("context_length", [None, 19])
def test_tokenizer_is_the_one_the_reference_makes(monkeypatch, context_length):
    for name in open_clip.list_models():
        kind, args, kwargs = _recorded(monkeypatch, name, context_length=context_length)
        spec = tokenizer_spec(name, context_length=context_length)
        assert spec.kind == kind, name
        assert spec.hf_name == (args[0] if args else None), name
        assert spec.context_length == kwargs.pop("context_length"), name
        kwargs.pop("cache_dir", None)
        assert spec.mode == kwargs.pop("tokenizer_mode", None), name
        assert spec.kwargs == kwargs, name


def test_tokenizer_of_an_unknown_model_or_without_the_extra(monkeypatch):
    with pytest.raises(UserError, match="nearest names"):
        tokenizer_spec("ViT-B-33")
    monkeypatch.setattr(model_config.optional, "find", lambda name: f"{name} is not installed")
    assert tokenizer_spec("ViT-H-14-CLIPA").hf_name == "bert-base-uncased"
    with pytest.raises(EnvironmentProblem, match=r"fastclip\[openclip\]"):
        tokenizer_spec("RN50")


def test_local_folder(tmp_path):
    name = f"local-dir:{tmp_path}"
    with pytest.raises(InputMissing, match=r"no open_clip_config\.json"):
        load_config(name)
    config = tmp_path / "open_clip_config.json"
    config.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_config(name)
    config.write_text("{}")
    with pytest.raises(UserError, match="no 'model_cfg'"):
        load_config(name)
    config.write_text(json.dumps({"model_cfg": tiny(text={"hf_tokenizer_name": "some/tokenizer"})}))
    assert load_config(name).text_cfg.vocab_size == 97
    spec = tokenizer_spec(name)
    assert (spec.kind, spec.file, spec.context_length) == ("hf", str(tmp_path), 13)
    with pytest.raises(InputMissing, match="no such folder"):
        load_config(f"local-dir:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match="nothing follows the colon"):
        load_config("local-dir:")

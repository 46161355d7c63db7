"""Weights go from us to the reference and back; what cannot fit is said."""

import copy
import json

import open_clip
import pytest
import torch
from open_clip import pretrained as reference_pretrained
from safetensors.torch import save_file

from fastclip.errors import DataError, EnvironmentProblem, InputMissing, UserError
from fastclip.model import pretrained as ours_pretrained
from fastclip.model.factory import create_model
from fastclip.model.state_dict import load_state
from tests.model.model_pairs import TINY, captions, each_encoder, pictures, tiny, tiny_pair


def _ours(**options):
    raw = copy.deepcopy({**TINY, **options.pop("raw", {})})
    return create_model("ViT-B-32", **options, **raw)


def _assert_same_features(reference, ours, seed):
    reference.eval()
    ours.eval()
    with torch.no_grad():
        for _, theirs, own in each_encoder(reference, ours, seed):
            torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


def _save(state, path, form):
    if form == "trainer":
        torch.save({"epoch": 2, "name": "run", "state_dict": state, "optimizer": {}}, path)
    elif form == "ddp":
        torch.save({"epoch": 2, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif form == "compiled":
        torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, path)
    elif form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("form", ["trainer", "bare", "ddp", "compiled", "safetensors"])
def test_the_reference_files_load_here(tmp_path, form, custom_text, seed):
    reference, _ = tiny_pair(None, seed, force_custom_text=custom_text)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    _save(reference.state_dict(), path, form)
    for layout in (False, True):  # CLIP <-> CustomTextCLIP; the reference can do one way only
        ours = _ours(pretrained=str(path), force_custom_text=layout)
        _assert_same_features(reference, ours, seed)


@pytest.mark.parametrize("form", ["trainer", "bare", "ddp"])
def test_our_files_load_in_the_reference(tmp_path, form, seed):
    torch.manual_seed(seed)
    ours = _ours()
    path = tmp_path / "w.pt"
    _save(ours.state_dict(), path, form)
    reference = open_clip.create_model("ViT-B-32", str(path), **copy.deepcopy(TINY))
    _assert_same_features(reference, ours, seed)


@pytest.mark.parametrize("image_size", [32, 96, [64, 112]])
@pytest.mark.parametrize("context_length", [9, 13, 30])
def test_positions_are_resized_as_the_reference_does(tmp_path, image_size, context_length, seed):
    torch.manual_seed(seed)
    path = tmp_path / "w.pt"
    _save(_ours().state_dict(), path, "bare")
    raw = tiny(vision={"image_size": image_size}, text={"context_length": context_length})
    reference = open_clip.create_model("ViT-B-32", str(path), **copy.deepcopy(raw))
    ours = _ours(pretrained=str(path), raw=raw)
    for key, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    _assert_same_features(reference, ours, seed)


def test_logit_scale_and_bias(tmp_path, caplog):
    path = tmp_path / "w.pt"
    plain, siglip = _ours(), _ours(init_logit_scale=2.3, init_logit_bias=-10.0)
    _save(plain.state_dict(), path, "bare")
    vector = _ours(pretrained=str(path), raw=tiny(nonscalar_logit_scale=True, init_logit_bias=1.0))
    assert vector.logit_scale.shape == (1,)
    assert vector.logit_scale.item() == plain.logit_scale.item()
    assert vector.logit_bias.item() == 0, "reference: a bias that the file lacks starts at zero"
    _save(siglip.state_dict(), path, "bare")
    back = _ours(pretrained=str(path))  # the reference fails with an AttributeError
    assert back.logit_bias is None
    assert back.logit_scale.item() == siglip.logit_scale.item()
    assert "logit_bias is not used" in caplog.text


def test_misfits_are_shown(tmp_path, seed):
    path = tmp_path / "w.pt"
    _save(_ours(raw=tiny(vision={"width": 64, "layers": 4})).state_dict(), path, "bare")
    with pytest.raises(DataError, match=r"w\.pt: does not fit the model") as error:
        _ours(pretrained=str(path))
    line = str(error.value)
    assert "visual.transformer.resblocks.3.ln_1.weight is not in the model" in line
    assert line.count("; ") == 4
    assert " more" in line
    assert "\n" not in line

    state = _ours().state_dict()
    del state["ln_final.bias"]
    state["visual.proj"] = torch.zeros(96, 41)
    model = _ours()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError) as error:
        load_state(model, state, "FILE")
    assert "ln_final.bias is missing" in str(error.value)
    assert "visual.proj is (96, 41), the model's (96, 40)" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(DataError, match="holds no model weights"):
        load_state(model, {"epoch": 1}, "FILE")


def test_resuming_fits_nothing(seed):
    small, large = _ours(), _ours(raw=tiny(vision={"image_size": 96}))
    with pytest.raises(DataError, match="positional_embedding"):
        load_state(large, small.state_dict(), "FILE")
    load_state(
        _ours(), {"state_dict": {f"module.{k}": v for k, v in small.state_dict().items()}}, "F"
    )


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(InputMissing, match=r"nowhere\.pt: no such file"):
        create_model("ViT-B-32", "nowhere.pt")
    with pytest.raises(InputMissing, match="no such file"):
        create_model("ViT-B-32", str(tmp_path))
    with pytest.raises(UserError, match="neither a file nor a tag of ViT-B-32; its tags: openai, "):
        create_model("ViT-B-32", "laion9b")
    with pytest.raises(UserError, match="required"):
        create_model("ViT-B-32", require_pretrained=True)

    def offline(*_, **__):
        raise OSError("no route to host\nlong story")

    monkeypatch.setattr(reference_pretrained, "download_pretrained", offline)
    with pytest.raises(InputMissing, match="cannot be downloaded: no route to host; ") as error:
        create_model("ViT-B/32", "openai")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(ours_pretrained.optional, "find", lambda name: f"{name} is not installed")
    with pytest.raises(EnvironmentProblem, match=r"openai.*fastclip\[openclip\]"):
        create_model("ViT-B-32", "openai")


@pytest.mark.parametrize("tag", ["openai", "laion2b_s34b_b79k"])
def test_a_tag_brings_its_file_and_settings(tmp_path, monkeypatch, caplog, tag, seed):
    torch.manual_seed(seed)
    path = tmp_path / "w.pt"
    source = _ours()
    _save(source.state_dict(), path, "bare")
    monkeypatch.setattr(reference_pretrained, "download_pretrained", lambda *_, **__: str(path))
    known = reference_pretrained.get_pretrained_cfg("ViT-B-32", tag)
    monkeypatch.setitem(known, "mean", (0.5, 0.4, 0.3))
    monkeypatch.setitem(known, "resize_mode", "squash")
    model = _ours(pretrained=tag, image_std=(0.3,))
    config = model.visual.preprocess_cfg
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.3,) * 3)
    assert (config.resize_mode, config.size) == ("squash", (64, 64))
    assert torch.equal(model.visual.proj, source.visual.proj)
    assert ("--force-quick-gelu" in caplog.text) == (tag == "openai")


def test_local_folder(tmp_path, caplog, seed):
    torch.manual_seed(seed)
    source = _ours()
    config = {
        "model_cfg": TINY,
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    create_model(f"local-dir:{tmp_path}")
    assert caplog.text.count("holds no weights") == 1
    save_file(source.state_dict(), tmp_path / "open_clip_model.safetensors")
    torch.save({"foreign": torch.zeros(1)}, tmp_path / "another.bin")
    ours = create_model(f"local-dir:{tmp_path}", "ignored")
    reference = open_clip.create_model(f"local-dir:{tmp_path}")
    _assert_same_features(reference, ours, seed)
    got, wanted = ours.visual.preprocess_cfg, reference.visual.preprocess_cfg
    assert (got.size, got.interpolation) == (tuple(wanted["size"]), wanted["interpolation"])
    assert (got.mean, got.std) == (tuple(wanted["mean"]), tuple(wanted["std"]))


def test_half_precision_weights_load_into_fp32(tmp_path, seed):
    torch.manual_seed(seed)
    source = _ours(precision="fp16")
    _save(source.state_dict(), tmp_path / "w.pt", "bare")
    model = _ours(pretrained=str(tmp_path / "w.pt"))
    assert model.visual.proj.dtype == torch.float32
    assert torch.equal(model.visual.proj, source.visual.proj.float())
    assert model(pictures(model, 1, seed), captions(model, 1, seed))[0].isfinite().all()

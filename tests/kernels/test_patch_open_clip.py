"""Our losses in an installed open_clip, and its own back again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import open_clip
import open_clip.factory
import open_clip.loss
import pytest
import torch

import fastclip_kernels as kernels

NAMES = ("ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss")
PLACES = (open_clip, open_clip.loss, open_clip.factory)
KERNELS = Path(__file__).parents[2] / "kernels"


def names_held() -> dict[tuple[str, str], object]:
    """Every class of these names that a module of open_clip holds."""
    return {
        (place.__name__, name): vars(place)[name]
        for place in PLACES
        for name in NAMES
        if name in vars(place)
    }


BEFORE = names_held()


@pytest.fixture
def patched():
    unpatch = kernels.patch_open_clip()
    yield unpatch
    unpatch()
    assert names_held() == BEFORE


def trainer_arguments(**changed):
    """What `create_loss` reads of the trainer's arguments."""
    given = {
        "distill": False,
        "model": "ViT-B-32",
        "siglip": False,
        "local_loss": False,
        "gather_with_grad": True,
        "rank": 0,
        "world_size": 1,
        "horovod": False,
        "coca_caption_loss_weight": 2.0,
        "coca_contrastive_loss_weight": 0.5,
        "loss_dist_impl": "shift",
    }
    return SimpleNamespace(**{**given, **changed})


KINDS = [
    ("ClipLoss", {}),
    ("CoCaLoss", {"model": "coca_ViT-B-32"}),
    ("DistillClipLoss", {"distill": True}),
    ("SigLipLoss", {"siglip": True}),
]


@pytest.mark.parametrize(("name", "changed"), KINDS, ids=[name for name, _ in KINDS])
def test_the_trainers_loss_is_ours(name, changed, patched):
    loss = open_clip.create_loss(trainer_arguments(**changed))
    assert type(loss) is getattr(kernels, name)
    assert type(loss) is getattr(open_clip.loss, name)
    if name == "SigLipLoss":
        assert loss.dist_impl == "shift"
    else:
        assert isinstance(loss, open_clip.ClipLoss)
        assert loss.gather_with_grad
    if name == "CoCaLoss":
        assert (loss.caption_loss_weight, loss.clip_loss_weight) == (2.0, 0.5)


def test_values_and_gradients_are_those_of_before():
    image, text = (torch.randn(9, 16, requires_grad=True) for _ in range(2))

    def results():
        loss = open_clip.create_loss(trainer_arguments())
        value = loss(image, text, torch.tensor(3.0), output_dict=True)["contrastive_loss"]
        return value, *torch.autograd.grad(value, (image, text))

    wanted = results()
    unpatch = kernels.patch_open_clip()
    try:
        torch.testing.assert_close(results(), wanted)
    finally:
        unpatch()


def test_every_name_that_was_there_is_replaced_and_comes_back():
    unpatch = kernels.patch_open_clip()
    held = names_held()
    assert set(held) == set(BEFORE)  # no name is added
    assert all(each is getattr(kernels, name) for (_, name), each in held.items())
    unpatch()
    assert names_held() == BEFORE
    assert type(open_clip.create_loss(trainer_arguments())) is BEFORE["open_clip.loss", "ClipLoss"]


def test_twice_is_once(patched):
    again = kernels.patch_open_clip()
    assert all(each is getattr(kernels, name) for (_, name), each in names_held().items())
    for unpatch in (again, patched, again):
        unpatch()
        assert names_held() == BEFORE


def test_an_old_unpatch_ends_a_new_patch_and_no_more():
    old = kernels.patch_open_clip()
    old()
    new = kernels.patch_open_clip()
    old()
    assert names_held() == BEFORE
    new()
    assert names_held() == BEFORE


def test_the_trainers_modules_too_and_nobody_elses(monkeypatch):
    theirs = open_clip.loss.ClipLoss
    early, late, stranger = (
        ModuleType(name) for name in ("open_clip_train.early", "open_clip_train.late", "stranger")
    )
    early.ClipLoss = stranger.ClipLoss = theirs
    early.SigLipLoss = other = object()  # of that name, and not open_clip's
    monkeypatch.setitem(sys.modules, early.__name__, early)
    monkeypatch.setitem(sys.modules, stranger.__name__, stranger)
    unpatch = kernels.patch_open_clip()
    assert early.ClipLoss is kernels.ClipLoss
    assert early.SigLipLoss is other
    assert stranger.ClipLoss is theirs
    monkeypatch.setitem(sys.modules, late.__name__, late)
    late.ClipLoss = open_clip.loss.ClipLoss  # imported while patched
    unpatch()
    assert early.ClipLoss is late.ClipLoss is theirs
    assert early.SigLipLoss is other


def test_an_unknown_version_is_refused(monkeypatch):
    monkeypatch.setattr(open_clip, "__version__", "3.4.1")
    with pytest.raises(RuntimeError, match=r"open_clip 3\.4\.1 is not .* known: 3\.3\.0$") as error:
        kernels.patch_open_clip()
    assert "\n" not in str(error.value)
    assert names_held() == BEFORE


def test_without_open_clip_the_error_says_so():
    code = (
        f"import sys; sys.path.insert(0, {str(KERNELS)!r})\n"
        "sys.meta_path.insert(0, type('Nowhere', (), {'find_spec': staticmethod(refuse)}))\n"
        "import fastclip_kernels\n"
        "try:\n    fastclip_kernels.patch_open_clip()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    hidden = (
        "def refuse(name, path=None, target=None):\n"
        "    if name == 'open_clip':\n"
        "        raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden + code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("patch_open_clip: open_clip is not installed; pip install")
    assert done.stdout.count("\n") == 1


def test_what_open_clip_itself_lacks_is_not_called_missing_open_clip(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="torchvision"):
        kernels.patch_open_clip()

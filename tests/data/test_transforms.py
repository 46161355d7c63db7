"""The users' transforms promise the reference's tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.transforms import EvalTransform, TrainTransform
from tests.data.pictures import smooth


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_evaluation_transform_is_the_references(mode, resize_mode, size):
    image = smooth(90, 70)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((70, 90)))
    elif mode == "LA":
        image = image.convert("L")
        image.putalpha(Image.linear_gradient("L").resize((70, 90)))
    else:
        image = image.convert(mode)
    preprocess = PreprocessConfig(size=size, resize_mode=resize_mode)
    theirs = image_transform(size, is_train=False, resize_mode=resize_mode)(image)
    torch.testing.assert_close(EvalTransform(preprocess)(image), theirs, rtol=0, atol=1e-5)


def test_train_transform_resizes_to_the_references_tensor():
    """With the whole picture as the only crop and nothing random left, the two agree."""
    whole = AugmentConfig(scale=(1.0, 1.0))
    image = smooth(120, 30)  # no box fits: always the central crop
    theirs = image_transform(64, is_train=True, aug_cfg={"scale": (1.0, 1.0)})(image)
    ours = TrainTransform(whole, PreprocessConfig(size=(64, 64)))(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_train_transform_is_random_and_repeatable_with_a_seed():
    augment = AugmentConfig(scale=(0.4, 1.0), color_jitter=0.3, use_timm=True, re_prob=0.5)
    preprocess = PreprocessConfig(size=(32, 32))
    image = smooth(50, 60)

    def run(seed: int | None) -> torch.Tensor:
        transform = TrainTransform(augment, preprocess, seed=seed)
        return torch.stack([transform(image) for _ in range(8)])

    first = run(5)
    assert torch.equal(first, run(5))
    assert not torch.equal(first, run(6))
    assert not torch.equal(run(None), run(None))
    assert len({picture.sum().item() for picture in first}) == 8


class _Augmented(torch.utils.data.Dataset):
    def __init__(self, transform: TrainTransform) -> None:
        self._transform = transform
        self._image = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        )

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(self._image)


def test_loader_processes_and_epochs_draw_differently():
    """A copy of the transform in each process must not repeat another's draws, nor an epoch the one before."""
    transform = TrainTransform(AugmentConfig(scale=(0.2, 1.0)), PreprocessConfig(size=(16, 16)))
    loader = torch.utils.data.DataLoader(_Augmented(transform), num_workers=2, batch_size=1)
    seen = [tuple(image.flatten().tolist()) for _ in range(2) for image in loader]
    assert len(set(seen)) == 16

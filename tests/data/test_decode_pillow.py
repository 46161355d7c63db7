"""The Pillow path promises the reference's pixels, given the same draws: bit for bit, or nearly where torch resizes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.decode_pillow import EvalDecoder, TrainDecoder
from fastclip.data.draws import UNCHANGED, AugmentSampler, Draw
from fastclip.data.image_header import BadImage, read_header
from tests.data.pictures import demo_pictures, encode, pil_rgb, reference_pixels, smooth

JITTER = AugmentConfig(scale=(0.4, 1.0), color_jitter=(0.32, 0.32, 0.32, 0.08), use_timm=True)
SIZE = (96, 112)


def drawn(
    pictures: list[bytes], augment: AugmentConfig, preprocess: PreprocessConfig
) -> list[Draw]:
    seed = int(time.time())
    print("seed", seed)
    sampler = AugmentSampler(augment, preprocess, seed)
    headers = [read_header(data) for data in pictures]
    return [sampler(0, str(i), h.height, h.width) for i, h in enumerate(headers)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_training_pixels_are_the_references(interpolation):
    preprocess = PreprocessConfig(size=SIZE, interpolation=interpolation)
    decoder = TrainDecoder(SIZE, fast_resize=False)
    pictures = demo_pictures(100)
    for i, (data, draw) in enumerate(
        zip(pictures, drawn(pictures, JITTER, preprocess), strict=True)
    ):
        draw = draw._replace(gray=i % 5 == 0)
        assert np.array_equal(decoder(data, draw), reference_pixels(pil_rgb(data), draw, SIZE))


@pytest.mark.parametrize("bilinear", [False, True])
def test_pixels_resized_by_torch_are_the_references_but_for_rounding(bilinear):
    """Noise, where rounding shows most, at sizes that Pillow takes in either order of passes; and real pictures."""
    rng = np.random.default_rng(7)
    sizes = [
        (438, 345),
        (103, 20),
        (97, 112),
        (300, 40),
        (480, 640),
        (40, 50),
        (900, 7),
        (7, 900),
        (1, 1),
    ]
    noise = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    fast = TrainDecoder(SIZE, fast_resize=True)
    for data in [encode(image, "PNG") for image in noise] + demo_pictures(100):
        header = read_header(data)
        whole = (0, 0, header.height, header.width)
        draw = Draw(whole, bilinear, UNCHANGED, (0, 1, 2, 3), False, -1)
        wanted = reference_pixels(pil_rgb(data), draw, SIZE).astype(int)
        difference = np.abs(fast(data, draw) - wanted)
        # A level of the first pass may become two in the second, whose weights are not all positive.
        assert difference.max() <= 2, whole
        assert difference.mean() < 0.06, whole  # DALI: 0.14 for real pictures


@pytest.mark.parametrize("operation", range(4))
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.7])
def test_each_operation_alone_is_the_references(operation, strength):
    factor = strength - 1.2 if operation == 3 else strength  # hue: -1.2, -0.9, 0.5
    factor = max(-0.5, factor)
    factors = tuple(factor if i == operation else UNCHANGED[i] for i in range(4))
    data = encode(smooth(60, 90, seed=operation), "PNG")
    draw = Draw((3, 5, 50, 80), False, factors, (2, 0, 3, 1), False, -1)
    decoder = TrainDecoder(SIZE, fast_resize=False)
    assert np.array_equal(decoder(data, draw), reference_pixels(pil_rgb(data), draw, SIZE))


def test_nothing_is_ever_flipped():
    """A picture that grows brighter to the right and darker downwards does so in every draw."""
    across, down = np.arange(120), np.arange(90)[::-1]
    pixels = across[None, :, None] + down[:, None, None] + np.zeros(3)
    data = encode(Image.fromarray(pixels.astype(np.uint8)), "PNG")
    preprocess = PreprocessConfig(size=(64, 64))
    decoder = TrainDecoder((64, 64), fast_resize=True)
    for draw in drawn([data] * 300, AugmentConfig(scale=(0.1, 1.0)), preprocess):
        image = decoder(data, draw).astype(int)
        assert image[:, -8:].mean() > image[:, :8].mean()
        assert image[-8:].mean() < image[:8].mean()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_evaluation_pixels_are_the_references(mode, size, interpolation):
    preprocess = PreprocessConfig(
        size=size, resize_mode=mode, interpolation=interpolation, fill_color=127
    )
    decoder = EvalDecoder(preprocess)
    reference = image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode,
        interpolation=interpolation, fill_color=127,
    )  # fmt: skip
    shapes = [(50, 333), (333, 51), (64, 64), (48, 80), (31, 30), (301, 200)]
    for seed, (height, width) in enumerate(shapes):
        data = encode(smooth(height, width, seed), "PNG")
        theirs = (reference(pil_rgb(data)) * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(decoder(data), theirs), (height, width)


def test_a_picture_thinner_than_its_resized_self_is_bad_not_a_crash():
    data = encode(smooth(2000, 1), "PNG")
    with pytest.raises(BadImage, match="too thin"):
        EvalDecoder(PreprocessConfig(size=(64, 64), resize_mode="longest"))(data)


def test_bad_bytes_raise_bad_image():
    data = encode(smooth(40, 40), "JPEG")[:-40]
    draw = Draw((0, 0, 40, 40), False, UNCHANGED, (0, 1, 2, 3), False, -1)
    with pytest.raises(BadImage, match="truncated"):
        TrainDecoder(SIZE, fast_resize=True)(data, draw)
    with pytest.raises(BadImage, match="truncated"):
        EvalDecoder(PreprocessConfig(size=SIZE))(data)

"""The DALI path promises the reference's pixels within a few levels; a bad picture costs itself."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastclip import optional
from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data import decode_dali
from fastclip.data.dali_form import dali_form
from fastclip.data.decode_dali import BadImages, DaliTrainDecoder, available
from fastclip.data.draws import UNCHANGED, AugmentSampler, Draw
from fastclip.data.erase import RandomErasing
from fastclip.data.image_header import read_header
from fastclip.errors import EnvironmentProblem
from tests.data.loaders import CPU, needs_dali
from tests.data.pictures import (
    close,
    demo_pictures,
    encode,
    encoded_batch,
    pil_rgb,
    reference_pixels,
    smooth,
    without_tables,
)

SIZE = (112, 96)
PREPROCESS = PreprocessConfig(size=SIZE)
JITTER = AugmentConfig(scale=(0.4, 1.0), color_jitter=(0.32, 0.32, 0.32, 0.08), use_timm=True)


def drawn(
    pictures: list[bytes],
    augment: AugmentConfig = JITTER,
    preprocess: PreprocessConfig = PREPROCESS,
) -> list[Draw]:
    seed = int(time.time())
    print("seed", seed)
    sampler = AugmentSampler(augment, preprocess, seed)
    headers = [read_header(data) for data in pictures]
    return [sampler(0, str(i), h.height, h.width) for i, h in enumerate(headers)]


def decode(pictures, draws, size=SIZE, batch_size=32, augment=JITTER):
    pictures = [dali_form(data) for data in pictures]  # as the loader process does
    decoder = DaliTrainDecoder(
        PreprocessConfig(size=size), augment, batch_size, CPU, threads=1, fast_resize=False
    )

    def fail(*_):  # else a DALI that always failed would pass
        raise AssertionError("DALI failed on a picture that it should decode")

    decoder._with_pillow = decoder._tell_helped = fail
    parts = [slice(i, i + batch_size) for i in range(0, len(pictures), batch_size)]
    images = [decoder(encoded_batch(pictures[p], draws[p])) for p in parts]
    return torch.cat(images).numpy()


def reference(pictures, draws, size=SIZE):
    return np.stack(
        [reference_pixels(pil_rgb(p), d, size) for p, d in zip(pictures, draws, strict=True)]
    )


@needs_dali
@pytest.mark.parametrize("operation", ["crop", 0, 1, 2, 3, "gray", "all"])
def test_pixels_are_the_references(operation):
    pictures = demo_pictures(200)
    draws = drawn(pictures)
    if operation != "all":
        draws = [
            d._replace(
                factors=tuple(
                    f if operation == k else UNCHANGED[k] for k, f in enumerate(d.factors)
                ),
                gray=operation == "gray",
            )
            for d in draws
        ]
    close(decode(pictures, draws), reference(pictures, draws))


@needs_dali
def test_interpolation_is_each_pictures_own():
    pictures = [encode(smooth(40, 30, seed), "PNG") for seed in range(20)]
    draws = [
        Draw((2, 3, 30, 25), row % 2 == 0, UNCHANGED, (0, 1, 2, 3), False, -1) for row in range(20)
    ]
    close(decode(pictures, draws), reference(pictures, draws), mean=0.5, level=2)


@needs_dali
def test_nothing_from_outside_the_box_is_blended_in():
    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[20:60, 30:90] = (200, 100, 50)
    draw = Draw((20, 30, 40, 60), False, UNCHANGED, (0, 1, 2, 3), False, -1)
    for size in ((16, 16), (224, 224)):
        images = decode([encode(Image.fromarray(pixels), "PNG")], [draw], size)
        assert np.ptp(images, axis=(1, 2)).max() == 0
        assert images[0, 0, 0].tolist() == [200, 100, 50]


@needs_dali
def test_nothing_is_ever_flipped():
    across, down = np.arange(120), np.arange(90)[::-1]
    pixels = across[None, :, None] + down[:, None, None] + np.zeros(3)
    pictures = [encode(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=95)] * 200
    augment = AugmentConfig(scale=(0.1, 1.0), use_timm=True)
    images = decode(pictures, drawn(pictures, augment), augment=augment).astype(int)
    assert (images[:, :, -8:].mean((1, 2, 3)) > images[:, :, :8].mean((1, 2, 3))).all()
    assert (images[:, -8:].mean((1, 2, 3)) < images[:, :8].mean((1, 2, 3))).all()


def png16(color: bool) -> bytes:
    """A 16-bit PNG, grey or RGB, by hand: Pillow writes no 16-bit RGB."""
    rows = np.asarray(smooth(60, 80)).astype(">u2") * 3
    rows = rows if color else rows[..., 0]
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 80, 60, 16, 2 if color else 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def unusual() -> dict[str, bytes]:
    picture = smooth(60, 80)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((80, 60)))
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    return {
        "jpeg 4:2:0": encode(picture, "JPEG", quality=80, subsampling=2),
        "progressive": encode(picture, "JPEG", progressive=True),
        "gray jpeg": encode(picture.convert("L"), "JPEG"),
        "cmyk jpeg": encode(picture.convert("CMYK"), "JPEG"),
        "turned by exif": encode(picture, "JPEG", exif=turned),
        "trailing bytes": encode(picture, "JPEG") + b"\0more",
        "png": encode(picture, "PNG"),
        "gray png": encode(picture.convert("L"), "PNG"),
        "palette": encode(picture.quantize(40), "PNG"),
        "clear palette": encode(picture.quantize(40), "PNG", transparency=3),
        "rgba": encode(clear, "PNG"),
        "gray alpha": encode(clear.convert("LA"), "PNG"),
        # Not dithered: beside single black and white pixels Pillow clips the overshoot of a bicubic
        # resize between its two passes and DALI after them.
        "one bit": encode(picture.convert("1", dither=Image.Dither.NONE), "PNG"),
        "16-bit gray": png16(color=False),
        "16-bit rgb": png16(color=True),
        "png without end": encode(picture, "PNG")[:-12],
        "webp": encode(picture, "WEBP"),
        "lossless rgba webp": encode(clear, "WEBP", lossless=True),
        "gif": encode(picture, "GIF"),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "one pixel": encode(picture.resize((1, 1)), "PNG"),
    }


@needs_dali
@pytest.mark.parametrize("kind", unusual())
def test_every_kind_of_file_is_decoded_as_the_reference_does(kind):
    pictures = [unusual()[kind], encode(smooth(33, 44), "JPEG")]
    draws = drawn(pictures)
    ours = decode(pictures, draws)
    close(ours, reference(pictures, draws))


@needs_dali
def test_a_bad_picture_costs_itself_and_the_decoder_goes_on():
    pictures = demo_pictures(12)
    draws = drawn(pictures)
    whole = reference(pictures, draws)
    bad = {
        2: pictures[2][: len(pictures[2]) // 2],
        5: b"<html>not found</html>",
        7: encode(smooth(30, 30), "GIF")[:-20],
        11: b"",
    }
    decoder = DaliTrainDecoder(PREPROCESS, JITTER, 16, CPU, threads=2, fast_resize=False)
    close(decoder(encoded_batch(pictures, draws)).numpy(), whole)
    for _ in range(2):
        good, found = list(range(12)), set()
        while found != bad.keys():  # as `Refill` does: DALI tells of one at a time
            mixed = encoded_batch([bad.get(r, pictures[r]) for r in good], [draws[r] for r in good])
            with pytest.raises(BadImages) as caught:
                decoder(mixed)
            assert all(caught.value.bad.values())
            found |= {good[row] for row in caught.value.bad}
            good = [row for row in range(12) if row not in found]
        rest = encoded_batch([pictures[r] for r in good], [draws[r] for r in good])
        close(decoder(rest).numpy(), whole[good])


@needs_dali
def test_a_picture_that_dali_alone_refuses_costs_itself(caplog, monkeypatch):
    """No whole batch by Pillow, and said only now and then."""
    odd = encode(smooth(60, 80), "TIFF")  # DALI is not given such by the loader process
    pictures = [*demo_pictures(7), odd]
    draws = drawn(pictures)
    decoder = DaliTrainDecoder(PREPROCESS, JITTER, 8, CPU, threads=1, fast_resize=False)
    cropped = decoder._cropped

    def refusing(given, draws):
        decoder._failure = "Failed to decode sample #7 :"
        return None if given[7].tobytes() == odd else cropped(given, draws)

    monkeypatch.setattr(decoder, "_cropped", refusing)
    monkeypatch.setattr(decoder, "_with_pillow", None)
    for _ in range(12):
        ours = decoder(encoded_batch(pictures, draws)).numpy()
    close(ours, reference(pictures, draws))
    assert [record.args[0] for record in caplog.records] == [1, 10]


@needs_dali
def test_a_refusal_that_names_no_picture_is_pillows_whole_batch(caplog):
    odd = encode(smooth(60, 80), "PNG")[:-12]
    (draw,) = drawn([odd])
    decoder = DaliTrainDecoder(PREPROCESS, JITTER, 1, CPU, threads=1, fast_resize=False)
    for _ in range(12):
        close(decoder(encoded_batch([odd], [draw])).numpy(), reference([odd], [draw]))
    assert [record.args[0] for record in caplog.records] == [1, 10]
    with pytest.raises(ValueError, match="batch of 2"):
        decoder(encoded_batch([odd] * 2, [draw] * 2))


@needs_dali
def test_what_dali_says_of_a_bad_picture_names_it():
    """The wording that the decoder looks for is this DALI's."""
    pictures = demo_pictures(6)
    draws = drawn(pictures)
    pictures[4] = without_tables(pictures[4])
    decoder = DaliTrainDecoder(PREPROCESS, JITTER, 6, CPU, threads=1, fast_resize=False)
    decoder._with_pillow = None
    with pytest.raises(BadImages) as caught:
        decoder(encoded_batch(pictures, draws))
    assert caught.value.bad.keys() == {4}


@needs_dali
def test_batches_do_not_share_memory():
    pictures = demo_pictures(8)
    draws = drawn(pictures)
    decoder = DaliTrainDecoder(PREPROCESS, JITTER, 4, CPU, threads=1, fast_resize=False)
    first = decoder(encoded_batch(pictures[:4], draws[:4]))
    kept = first.clone()
    for _ in range(5):
        decoder(encoded_batch(pictures[4:], draws[4:]))
    assert torch.equal(first, kept)


@needs_dali
def test_with_erasing_the_batch_is_normalised_floats():
    augment = AugmentConfig(scale=(0.4, 1.0), use_timm=True, re_prob=0.5)
    pictures = demo_pictures(12)
    draws = drawn(pictures, augment)
    batch = encoded_batch(pictures, draws)
    ours = DaliTrainDecoder(PREPROCESS, augment, 16, CPU, threads=1, fast_resize=False)(batch)
    plain = DaliTrainDecoder(PREPROCESS, JITTER, 16, CPU, threads=1, fast_resize=False)(batch)
    assert torch.equal(ours, RandomErasing(PREPROCESS, augment)(plain, batch.draws.erase))
    assert ours.shape == (12, 3, *SIZE)


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_dali_cannot_use_is_one_line():
    picture = encode(smooth(30, 30), "JPEG")
    decoder = DaliTrainDecoder(
        PREPROCESS, JITTER, 1, torch.device("cuda", 0), threads=1, fast_resize=False
    )
    with pytest.raises(EnvironmentProblem, match=r"cannot start on cuda:0: .+ --decoder pillow"):
        decoder(encoded_batch([picture], drawn([picture])))


def test_without_dali_the_reason_and_the_remedy_are_said(monkeypatch):
    monkeypatch.setattr(optional, "find", lambda name: f"{name} is not installed")
    assert available() == "nvidia.dali is not installed"
    with pytest.raises(EnvironmentProblem, match=r"fastclip\[dali\]"):
        DaliTrainDecoder(PREPROCESS, JITTER, 4, CPU, threads=1, fast_resize=False)


def test_the_decoy_package_is_told_apart(monkeypatch):
    monkeypatch.setattr(optional, "find", lambda name: torch)  # a module, and not DALI
    assert "not DALI" in str(available())


def test_the_module_imports_without_dali():
    code = "import sys, fastclip.data.decode_dali; print('nvidia.dali' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
    assert decode_dali.INSTALL.startswith("pip install")

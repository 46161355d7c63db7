"""The header promises: size and kind without decoding, and a cause for what cannot be used."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from fastclip.data.image_header import BadImage, decode_rgb, read_header
from tests.data.pictures import encode, pil_rgb, smooth

PICTURE = smooth(45, 70)
KINDS = {
    "jpeg": encode(PICTURE, "JPEG"),
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "gray jpeg": encode(PICTURE.convert("L"), "JPEG"),
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "png": encode(PICTURE, "PNG"),
    "palette": encode(PICTURE.quantize(30), "PNG"),
    "rgba": encode(PICTURE.convert("RGBA"), "PNG"),
    "webp": encode(PICTURE, "WEBP"),
    "gif": encode(PICTURE, "GIF"),
    "bmp": encode(PICTURE, "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_header_says_what_decoding_finds(kind):
    header = read_header(KINDS[kind])
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        assert (header.format, header.mode) == (image.format, image.mode)
    assert (header.height, header.width) == (45, 70)
    assert np.array_equal(decode_rgb(KINDS[kind]), pil_rgb(KINDS[kind]))


def test_rotation_by_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    header = read_header(encode(PICTURE, "JPEG", exif=exif))
    assert (header.height, header.width) == (45, 70)


def reference_keeps(data: bytes) -> bool:
    try:
        pil_rgb(data)
    except Exception:  # webdataset's handler takes any
        return False
    return True


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "gray jpeg", "cmyk"])
def test_a_jpeg_is_kept_or_dropped_as_the_reference_does(kind):
    """Cut anywhere it is dropped, from the header alone; bytes after the end marker do no harm."""
    data = KINDS[kind]
    seed = int(time.time())
    print("seed", seed)
    # Not within the last bytes: with every pixel there and only the end marker cut, Pillow may still decode.
    for cut in np.random.default_rng(seed).integers(1, len(data) - 32, 30):
        with pytest.raises(BadImage):
            read_header(data[:cut])
        assert not reference_keeps(data[:cut])
    assert read_header(data + b"\0trailing").width == 70
    assert reference_keeps(data + b"\0trailing")


def test_the_end_marker_of_a_thumbnail_does_not_count():
    thumbnail = encode(smooth(8, 8), "JPEG")
    segment = b"\xff\xe5" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    data = KINDS["jpeg"][:2] + segment + KINDS["jpeg"][2:]
    assert read_header(data).width == 70
    with pytest.raises(BadImage, match="no end marker"):
        read_header(data[:-2])


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty file"),
        (b"<html><body>404</body></html>", "not a picture"),
        (b"\0" * 1000, "not a picture"),
        ("déjà vu".encode(), "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (KINDS["jpeg"][:3], "picture|header"),
        (KINDS["png"][:20], "picture|header"),
        (KINDS["webp"][:-9], "header"),
    ],
)
def test_what_is_no_picture_is_named(data, cause):
    with pytest.raises(BadImage, match=cause):
        read_header(data)
    with pytest.raises(BadImage, match=cause):
        decode_rgb(data)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_raise_nothing_but_bad_image(kind):
    seed = int(time.time())
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        data = bytearray(KINDS[kind])
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(256)
        with contextlib.suppress(BadImage):
            read_header(bytes(data))
            decode_rgb(bytes(data))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_from_the_header():
    jpeg = bytearray(KINDS["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    for bomb in (png_header(20_000, 20_000), bytes(jpeg)):
        with pytest.raises(BadImage, match="more than 178,956,970 pixels"):
            read_header(bomb)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_allowed_picture_is_not_refused():
    assert read_header(png_header(178_956_970, 1)).width == 178_956_970
    with pytest.raises(BadImage, match="more than"):
        read_header(png_header(178_956_971, 1))


def test_bad_image_crosses_processes():
    error = pickle.loads(pickle.dumps(BadImage("empty file")))
    assert error.cause == str(error) == "empty file"

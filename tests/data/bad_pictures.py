"""Pictures that web data holds beside plain JPEGs, by kind: those that training can use, and those it cannot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.data.pictures import encode, smooth, without_tables

Maker = Callable[[int], bytes]  # of a number, so that no two pictures are the same


def usable_pictures() -> dict[str, Maker]:
    """Kind to maker of pictures that the reference decodes."""
    return {
        "CMYK JPEG": lambda n: encode(_picture(n).convert("CMYK"), "JPEG"),
        "grey JPEG": lambda n: encode(_picture(n).convert("L"), "JPEG"),
        "progressive JPEG": lambda n: encode(_picture(n), "JPEG", progressive=True),
        "JPEG turned by EXIF": _turned,
        "JPEG with bytes after its end": lambda n: encode(_picture(n), "JPEG") + b"\0more",
        "several pictures in one JPEG (MPO)": lambda n: _animated(n, "MPO"),
        "16-bit grey PNG": lambda n: png(24, 24, depth=16, color=0),
        "16-bit RGB PNG": lambda n: png(24, 24, depth=16, color=2),
        "PNG with transparent palette": lambda n: encode(
            _picture(n).quantize(20), "PNG", transparency=3
        ),
        "PNG of one bit": lambda n: encode(_picture(n).convert("1"), "PNG"),
        "PNG without its last chunk": lambda n: encode(_picture(n), "PNG")[:-12],
        "PNG named .jpg": lambda n: encode(_picture(n), "PNG"),
        "animated PNG": lambda n: _animated(n, "PNG"),
        "GIF named .jpg": lambda n: encode(_picture(n), "GIF"),
        "animated GIF": lambda n: _animated(n, "GIF"),
        "WebP named .jpg": lambda n: encode(_picture(n), "WEBP"),
        "lossless WebP with alpha": lambda n: encode(
            _picture(n).convert("RGBA"), "WEBP", lossless=True
        ),
        "animated WebP": lambda n: _animated(n, "WEBP"),
        "BMP named .jpg": lambda n: encode(_picture(n), "BMP"),
        "TIFF named .jpg": lambda n: encode(_picture(n), "TIFF"),
        "1 x 1 pixel": lambda n: encode(_picture(n).resize((1, 1)), "PNG"),
        "65,500 pixels wide": lambda n: encode(smooth(2, 65_500, n), "JPEG"),
    }


def unusable_pictures() -> dict[str, Maker]:
    """Kind to maker of what nothing can be decoded from, or must not be."""
    return {
        "JPEG cut short": lambda n: encode(smooth(64, 64, n), "JPEG")[:-60],
        "JPEG cut inside its header": lambda n: encode(_picture(n), "JPEG")[:20],
        "JPEG of 12 bits": _twelve_bits,
        "PNG cut short": lambda n: encode(_picture(n), "PNG")[:300],
        "PNG with a wrong checksum": _wrong_checksum,
        "WebP cut short": lambda n: encode(_picture(n), "WEBP")[:-30],
        "GIF cut short": lambda n: encode(smooth(64, 64, n), "GIF")[:-200],
        "HTML instead of a picture": lambda n: b"<!DOCTYPE html><html><title>404</title></html>",
        "JSON instead of a picture": lambda n: b'{"error": "gone"}',
        "SVG": lambda n: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "EPS, which would run another program": lambda n: (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"
        ),
        "PDF": lambda n: b"%PDF-1.4\n%%EOF\n",
        "ICO": lambda n: encode(_picture(n).resize((16, 16)), "ICO"),
        "picture of zero bytes": lambda n: b"",
        "random bytes": lambda n: bytes((i * 7919 + n) % 251 for i in range(1, 400)),
        "decompression bomb (PNG)": lambda n: bomb_png(),
        "decompression bomb (JPEG header)": lambda n: _claims_size(n, 65_500, 65_500),
        "decompression bomb (GIF)": lambda n: (
            b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + encode(_picture(n), "GIF")[10:]
        ),
    }


def found_by_the_decoder_alone() -> dict[str, Maker]:
    """Unusable pictures whose header and end are whole."""
    return {"JPEG without its tables": lambda n: without_tables(encode(_picture(n), "JPEG"))}


def bomb_png(width: int = 50_000, height: int = 50_000) -> bytes:
    """7.5 GB of RGB zeros when decoded, about 0.4 MB encoded: whole rows, of which there are too few."""
    return png(width, height, depth=8, color=2, rows=2_000)


def png(width: int, height: int, depth: int, color: int, rows: int | None = None) -> bytes:
    """A black PNG of `depth` bits and colour type `color` (0 grey, 2 RGB), with the first `rows` rows of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    row = bytes(1 + width * (depth // 8) * (1 if color == 0 else 3))
    packer, packed = zlib.compressobj(1), []
    for _ in range(height if rows is None else rows):
        packed.append(packer.compress(row))
    packed.append(packer.flush())
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


def _picture(number: int) -> Image.Image:
    return smooth(24, 24, number)


def _turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return encode(_picture(number), "JPEG", exif=exif)


def _animated(number: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    _picture(number).save(buffer, kind, save_all=True, append_images=[_picture(number + 1)])
    return buffer.getvalue()


def _frame(jpeg: bytes) -> int:
    """Where the frame header of a baseline JPEG starts."""
    return jpeg.index(b"\xff\xc0")


def _twelve_bits(number: int) -> bytes:
    data = bytearray(encode(_picture(number), "JPEG"))
    data[_frame(data) + 4] = 12
    return bytes(data)


def _claims_size(number: int, width: int, height: int) -> bytes:
    data = bytearray(encode(_picture(number), "JPEG"))
    struct.pack_into(">HH", data, _frame(data) + 5, height, width)
    return bytes(data)


def _wrong_checksum(number: int) -> bytes:
    data = bytearray(encode(_picture(number), "PNG"))
    data[len(data) // 2] ^= 4
    return bytes(data)

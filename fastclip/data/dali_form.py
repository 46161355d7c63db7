"""What DALI is given of a picture: the file itself, or its pixels where DALI would refuse it or read it otherwise.

Told from the bytes, in the loader process that has the sample: DALI fails a whole batch for one file, so what
it may refuse is decoded by Pillow there and handed on as PPM, the plainest format.
"""

from __future__ import annotations

import io
import zlib

from fastclip.data.image_header import decode_rgb

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND"


def dali_form(data: bytes) -> bytes:
    """`data`, or the same picture as 8-bit RGB PPM. Raises BadImage where Pillow was needed and cannot decode it."""
    return data if _usual(data) else as_ppm(data)


def as_ppm(data: bytes) -> bytes:
    """The picture as Pillow decodes it, 3 bytes a pixel and a short header. Raises BadImage."""
    buffer = io.BytesIO()
    decode_rgb(data).save(buffer, "PPM")
    return buffer.getvalue()


def _usual(data: bytes) -> bool:
    """Whether DALI decodes this file to the pixels that Pillow makes of it, as far as is plain without decoding."""
    if data[:3] == b"\xff\xd8\xff" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return True
    # Bytes 24 and 25 are bit depth and colour type. 16-bit grey: Pillow clips to 8 bits, DALI
    # scales.
    return data[:8] == _PNG and data[24:26] != b"\x10\x00" and _png_is_whole(data)


def _png_is_whole(data: bytes) -> bool:
    """Whether every chunk up to the last one is there with the right checksum (PNG specification, section 5)."""
    position, view = len(_PNG), memoryview(data)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(view[position : position + 4], "big")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        if view[position + 4 : position + 8] == _PNG_END:
            return True
        position = end + 4
    return False

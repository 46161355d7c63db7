"""One picture as a packed shard holds it."""

from __future__ import annotations

import io

from PIL import Image

from fastclip.data.image_header import decode_rgb, read_header

# Pillow's names of what is kept as it is, and the suffix that it gets.
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def shrink(data: bytes, edge: int | None, quality: int) -> tuple[bytes, str]:
    """The picture and its suffix: unchanged where its shorter edge is at most `edge` pixels, else a JPEG of that size.

    A picture that is not JPEG, PNG or WebP becomes a PNG. Every picture is decoded: raises BadImage if it cannot be.
    Like training, this pays no heed to the rotation that EXIF asks for; a shrunk picture has no EXIF.
    """
    header = read_header(data)
    image = decode_rgb(data)
    buffer = io.BytesIO()
    if edge is not None and min(image.size) > edge:
        scale = edge / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image.resize((width, height), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=quality
        )
        return buffer.getvalue(), "jpg"
    if header.format in _KEPT:
        return data, _KEPT[header.format]
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png"

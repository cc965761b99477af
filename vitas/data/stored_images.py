"""What a pack holds of an image: its file as it is, a smaller one, or its pixels."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vitas.data.pictures import read_image


def stored_image(path: str | Path, size: int | None, quality: int, uncompressed: bool) -> bytes:
    """The content of an image file that shows the image of a file.

    size: of the shorter side, to which a larger image is reduced; None is none. quality: of a JPEG that is made anew.
    uncompressed: as a binary PPM, which is read by little more than a copy.

    Raises `BadImage`, and `OSError`.
    """
    image = read_image(path)
    resized = _resized(image, size)
    if uncompressed:
        return _as_ppm(resized)
    content = Path(path).read_bytes()
    return content if resized is image else _encoded(resized, content, quality)


def _resized(image: Image.Image, size: int | None) -> Image.Image:
    """A larger image with a shorter side of `size`, as torchvision's `Resize` makes it; others as they are."""
    short = min(image.size)
    if size is None or short <= size:
        return image
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _as_ppm(image: Image.Image) -> bytes:
    """As a binary PPM file: its size, then its pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    return buffer.getvalue()


def _encoded(image: Image.Image, before: bytes, quality: int) -> bytes:
    """As a JPEG file where it was one, or WebP; otherwise as PNG, which loses nothing."""
    buffer = io.BytesIO()
    if before.startswith(b"\xff\xd8\xff") or (before[:4] == b"RIFF" and before[8:12] == b"WEBP"):
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()

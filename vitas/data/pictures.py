"""Reading one image file: the one way in which every program does it, and the one exception for all that can be wrong.

A decoded image is what an image viewer shows. Ordinary RGB, grey and palette images are, bit for bit, what Pillow's
`convert("RGB")` makes of them, which is what torchvision and timm do with every file. Other files differ from those:

- EXIF orientation is applied.
- What is transparent is laid over white; torchvision and timm show the colours below it, which nobody has seen.
- 16-bit grey becomes its high byte, as Pillow reads 16-bit colour; `convert` would clip it at 255, to white.
- CMYK with an embedded ICC profile is converted by it to sRGB. (Profiles of RGB and grey images are not applied.)

The formats are `FORMATS`; of several images in a file it is the first. Pillow says what a file is, and decodes it; of
JPEGs, which most training images are, libjpeg-turbo by itself gives the same bits sooner, and as pixels.

Who needs a smaller image may have a JPEG reduced while it is decoded, which takes a fraction of the time: each pixel is
then the mean of a square of 2, 4 or 8 pixels along a side, to rounding, taken before the colours are computed.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from vitas.costs import Array

# By Pillow's names, the most frequent first; JPEG has several in one file, too. It knows others, which images for
# training seldom are in, and would have Ghostscript run what is PostScript.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):
    # Since Pillow 11.3.
    FORMATS += ("AVIF",)

# What is wrong with this process or its machine, not with the file.
_NOT_THE_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# What passes on a network's file system. Seconds to wait after each such failure: a file that is bad by chance would be
# replaced by chance, and what a run ends with may not depend on that.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_WAITS = (0.1, 1, 5)

# Bytes of a file that is read at once; of a JPEG.
_SMALL, _SMALL_JPEG = 2**20, 2**26
# The head of a binary PPM of 8 bits, as Pillow writes it.
_PPM = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")

# How viewers turn an image, by its EXIF orientation; 1 is as it is.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those that exchange width and height.
_SWAPPING = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}

# Pixels that are converted at once.
_BAND = 2**20

# A decoded image, in RGB: Pillow's, or its pixels uint8 [H, W, 3].
Picture: TypeAlias = Image.Image | Array
# Left, top, right and bottom of a part of an image, in pixels.
Box: TypeAlias = tuple[int, int, int, int]
# Width and height of an image as it is shown -> by how much it may be reduced along each side: 1, 2, 4 or 8.
Reduction: TypeAlias = Callable[[tuple[int, int]], int]


class BadImage(Exception):  # noqa: N818 (of the file, not of the program)
    """A file that cannot be read as an image. reason: a phrase to follow its path, such as `is not an image`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """The image in a file as Pillow's, in RGB. Parameters and exceptions are those of `read_picture`."""
    picture = read_picture(path, content)
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def size_of(picture: Picture) -> tuple[int, int]:
    """Its width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def pixels_of(picture: Picture, box: Box) -> Array:
    """The pixels of a part of it, uint8 [H, W, 3], which may share its memory."""
    left, top, right, bottom = box
    if not isinstance(picture, Image.Image):
        return picture[top:bottom, left:right]
    # Pillow copies what is asked for, some times over: so as little as that, and of a large image some rows at a time.
    rows = max(1, _BAND // (right - left))
    if bottom - top <= rows:
        return np.asarray(picture if box == (0, 0, *picture.size) else picture.crop(box))
    pixels = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
    for first in range(top, bottom, rows):
        end = min(first + rows, bottom)
        pixels[first - top : end - top] = np.asarray(picture.crop((left, first, right, end)))
    return pixels


def read_picture(path: str | Path, content: bytes | None = None, reduction: Reduction | None = None) -> Picture:
    """The image in a file, as RGB; what differs from Pillow's `convert("RGB")` stands at the head of this module.

    content: the file's bytes, where they are at hand already; `path` then only names them.
    reduction: is asked before a JPEG's pixels are decoded, and again where reading failed and is tried anew. Of a JPEG
        of W x H pixels comes one of ceil(W / r) x ceil(H / r); other images are never reduced, nor is it asked.

    Raises `BadImage` for all that can be wrong with a file: it is gone or no regular file, holds no image or a damaged
    one, or has more pixels than Pillow holds for safe (`Image.MAX_IMAGE_PIXELS`, 89 million).
    """
    try:
        for wait in _WAITS:
            try:
                return _decode(path, content, reduction)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                time.sleep(wait)
        return _decode(path, content, reduction)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(path, "is not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(path, f"is too large ({error})") from None
    except OSError as error:
        if error.errno in _NOT_THE_FILES:
            raise
        # Pillow's own have no number, and are about what the file holds.
        kind = "is a damaged image" if error.errno is None else "cannot be read"
        raise BadImage(path, f"{kind} ({error.strerror or error})") from None
    except Exception as error:
        # A damaged file makes Pillow's readers raise many kinds of exceptions.
        raise BadImage(path, f"is a damaged image ({error})") from None


def _decode(path: str | Path, content: bytes | None, reduction: Reduction | None) -> Picture:
    if content is not None:
        if not content:
            raise BadImage(path, "is empty")
        if (pixels := _from_pixels(content)) is not None:
            _check_size(pixels, path)
            return pixels
        return _decode_stream(io.BytesIO(content), path, reduction)
    # Before it is opened: opening a FIFO waits for a writer, for ever.
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(path, "is not a regular file")
    if not status.st_size:
        raise BadImage(path, "is empty")
    with _File(path, status.st_size) as file:
        # Pillow reads heads in many small pieces.
        stream = file if status.st_size > _SMALL else io.BytesIO(file.read(status.st_size))
        return _decode_stream(stream, path, reduction)


def _from_pixels(content: bytes) -> Array | None:
    """The pixels of a binary PPM as packs hold it, which are not copied; None for all else."""
    head = _PPM.match(content)
    if head is None:
        return None
    width, height = map(int, head.groups())
    pixels = memoryview(content)[head.end() :]
    # What is too short, or empty, Pillow refuses; what is longer it cuts off.
    if not 0 < 3 * width * height == len(pixels):
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


class _File(io.BufferedReader):
    """A file that is never asked for more than it holds: Pillow asks for lengths that stand in the file, for which
    memory would be set aside first."""

    def __init__(self, path: str | Path, size: int) -> None:
        super().__init__(io.FileIO(path))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, self._size))


def _decode_stream(file: IO[bytes], path: str | Path, reduction: Reduction | None) -> Picture:
    image = Image.open(file, formats=FORMATS)
    _check_size(image, path)
    # A file of several JPEGs has another format, and is never reduced.
    return _from_jpeg(image, file, path, reduction) if image.format == "JPEG" else _as_rgb(image, path)


def _from_jpeg(image: Image.Image, file: IO[bytes], path: str | Path, reduction: Reduction | None) -> Picture:
    """image: of which Pillow has read the head. The EXIF of a JPEG, unlike that of a PNG, lies before the pixels."""
    width, height = image.size
    turn = _TURNS.get(_orientation(image))
    by = reduction((height, width) if turn in _SWAPPING else (width, height)) if reduction else 1
    if image.mode in ("RGB", "L") and (pixels := _by_turbo(file, (width, height), by)) is not None:
        return pixels if turn is None else Image.fromarray(pixels).transpose(turn)
    if by > 1:
        # Pillow takes the largest of 1, 2, 4 and 8 that leaves this size.
        image.draft(None, (width // by, height // by))
    return _as_rgb(image, path)


def _by_turbo(file: IO[bytes], size: tuple[int, int], by: int) -> Array | None:
    """The pixels of a JPEG of this size, reduced by 1, 2, 4 or 8. None where anything is out of the ordinary, or the
    file is very large: then Pillow decides what comes of it."""
    before = file.tell()
    file.seek(0)
    content = file.read(_SMALL_JPEG + 1)
    file.seek(before)
    width, height = size
    try:
        if len(content) > _SMALL_JPEG or simplejpeg.decode_jpeg_header(content)[:2] != (height, width):
            return None
        # It takes the smallest scale that leaves this size. Strict is what refuses a file with warnings.
        height, width = -(-height // by), -(-width // by)
        pixels: Array = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError:
        return None
    return pixels


def _check_size(picture: Picture, path: str | Path) -> None:
    width, height = size_of(picture)
    if not width * height:
        raise BadImage(path, f"has no pixels ({width} x {height})")
    # Above it Pillow only warns, and refuses twice as many.
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BadImage(path, f"is too large ({width} x {height} pixels)")


def _as_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    # PNG may say of transparency and orientation after the pixels.
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        rgb = _in_bands(image, partial(_from_deep_grey, path=path))
    elif image.has_transparency_data:
        rgb = _in_bands(image, _over_white)
    elif image.mode == "CMYK":
        rgb = _from_cmyk(image)
    else:
        # Nothing else has a hold on the image, so it need not be copied.
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        # Viewers show an image with damaged EXIF as it is.
        return None


def _in_bands(image: Image.Image, converted: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image as RGB, some rows after the other: what becomes of a large one on the way takes no memory then."""
    rows = max(1, _BAND // image.width)
    if image.height <= rows:
        return converted(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(converted(image.crop(box)), box)
    return rgb


def _from_deep_grey(image: Image.Image, path: str | Path) -> Image.Image:
    """16-bit grey (I;16, and I as Pillow reads PGM) as RGB. What has more bits says nowhere which value is white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise BadImage(path, "has 32-bit pixels, of which nothing says what is white; convert it to 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """An image with transparency over white."""
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    transform = _cmyk_to_srgb(profile) if (profile := image.info.get("icc_profile")) else None
    converted = ImageCms.applyTransform(image, transform) if transform else None
    return image.convert("RGB") if converted is None else converted


@lru_cache(maxsize=4)
def _cmyk_to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """None for a profile that is damaged or none of CMYK, and where Pillow was built without LittleCMS."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "CMYK", "RGB")
    except (ImageCms.PyCMSError, OSError, ImportError):
        return None

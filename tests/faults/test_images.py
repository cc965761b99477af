"""Image files with anything in them: read as RGB, alike each time, or bad; by every way that reads them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.faults.fuzz import MESSAGE, Result, bounded, changed_bytes, fuzzed
from tests.vitas.conftest import cmyk_profile
from vitas.data import pictures
from vitas.data.augmentation import training_transform
from vitas.data.folders import Augmentation
from vitas.data.images import decode
from vitas.data.pictures import FORMATS, BadImage, read_image, read_picture, size_of

# Of the images that networks get here.
SIDE = 16
# The largest image that Pillow holds for safe, of four bytes a pixel, what becomes of it, and what is small beside.
BYTES = 2 * 4 * Image.MAX_IMAGE_PIXELS + 2**28


def _colours(width: int = 40, height: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    # A copy: what one format was told stays with an image, and upsets the next.
    image.copy().save(file, form, **options)
    return file.getvalue()


def _png(head: bytes, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = ((b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _interlaced() -> bytes:
    """A PNG in seven passes, each of the pixels of a coarser grid, as Pillow writes none."""
    values = np.asarray(_colours())
    height, width, _ = values.shape
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in values[y::dy, x::dx])
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1), rows)


def _exif(thumbnail: bytes = b"") -> bytes:
    """An orientation, and in a second directory a thumbnail, as cameras write it."""
    first = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 26 if thumbnail else 0)
    second = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + first + (second + thumbnail if thumbnail else b"")


def _bmp_of_runs() -> bytes:
    """A BMP of 8 x 2 pixels in runs of equal ones, as Pillow writes none."""
    palette = bytes(4) + b"\xff\0\0\0"
    runs = b"\x05\x01\x03\0\0\0" + b"\0\x04\x01\0\x01\0\x04\x01\0\x01"
    head = struct.pack("<IiiHHIIiiII", 40, 8, 2, 1, 8, 1, len(runs), 0, 0, 2, 0)
    at = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(runs), 0, 0, at) + head + palette + runs


def _seeds() -> dict[str, bytes]:
    """Images of all kinds that are read, by name."""
    rgb = _colours()
    grey, palette, ink = rgb.convert("L"), rgb.quantize(16), rgb.convert("CMYK")
    alpha = rgb.copy()
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    other = rgb.transpose(Image.Transpose.ROTATE_180)
    thumbnail = _saved(rgb.resize((10, 6)), "JPEG")
    seeds = {
        "png": _saved(rgb, "PNG"),
        "png_grey": _saved(grey, "PNG"),
        "png_deep": _saved(deep, "PNG"),
        "png_palette": _saved(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "png_key": _saved(rgb, "PNG", transparency=(1, 2, 3)),
        "png_alpha": _saved(alpha, "PNG"),
        "png_grey_alpha": _saved(alpha.convert("LA"), "PNG"),
        "png_bits": _saved(rgb.convert("1"), "PNG"),
        "png_interlaced": _interlaced(),
        "png_animated": _saved(alpha, "PNG", save_all=True, append_images=[alpha.rotate(90)], default_image=True),
        "png_turned": _saved(rgb, "PNG", exif=_exif(), icc_profile=cmyk_profile()),
        "jpeg": _saved(rgb, "JPEG"),
        "jpeg_grey": _saved(grey, "JPEG"),
        "jpeg_progressive": _saved(rgb, "JPEG", progressive=True),
        "jpeg_restarts": _saved(rgb, "JPEG", subsampling="4:2:0", restart_marker_blocks=1),
        "jpeg_cmyk": _saved(ink, "JPEG", icc_profile=cmyk_profile()),
        "jpeg_turned": _saved(rgb, "JPEG", exif=_exif(), comment=b"a comment"),
        "jpeg_thumbnail": _saved(rgb, "JPEG", exif=_exif(thumbnail)),
        "jpeg_several": _saved(rgb, "MPO", save_all=True, append_images=[other], exif=_exif()),
        "gif": _saved(palette, "GIF"),
        "gif_transparent": _saved(palette, "GIF", transparency=3, interlace=0),
        "gif_animated": _saved(palette, "GIF", save_all=True, append_images=[other.quantize(16)], disposal=2),
        "bmp": _saved(rgb, "BMP"),
        "bmp_palette": _saved(palette, "BMP"),
        "bmp_alpha": _saved(alpha, "BMP"),
        "bmp_bits": _saved(rgb.convert("1"), "BMP"),
        "bmp_runs": _bmp_of_runs(),
        "tiff_alpha": _saved(alpha, "TIFF"),
        "tiff_deep": _saved(deep, "TIFF", compression="tiff_lzw"),
        "tiff_palette": _saved(palette, "TIFF", compression="packbits"),
        "tiff_cmyk": _saved(ink, "TIFF", icc_profile=cmyk_profile()),
        "tiff_float": _saved(grey.convert("F"), "TIFF"),
        "tiff_several": _saved(rgb, "TIFF", save_all=True, append_images=[grey]),
        "webp": _saved(rgb, "WEBP"),
        "webp_lossless": _saved(alpha, "WEBP", lossless=True, exif=_exif()),
        "webp_animated": _saved(rgb, "WEBP", save_all=True, append_images=[other]),
        "jpeg_2000": _saved(rgb, "JPEG2000"),
        "jpeg_2000_alpha": _saved(alpha, "JPEG2000", irreversible=True, tile_size=(16, 16)),
        "jpeg_2000_stream": _saved(deep, "JPEG2000", no_jp2=True),
        "ppm": _saved(rgb, "PPM"),
        "pgm": _saved(grey, "PPM"),
        "pgm_deep": _saved(deep, "PPM"),
        "pbm": _saved(rgb.convert("1"), "PPM"),
        "pfm": _saved(grey.convert("F"), "PPM"),
        "ppm_plain": b"P3 # as words\n4 2 255\n" + b" ".join(b"%d" % value for value in range(24)),
    }
    if "AVIF" in FORMATS:
        seeds["avif"] = _saved(rgb, "AVIF", exif=_exif())
        seeds["avif_animated"] = _saved(alpha, "AVIF", save_all=True, append_images=[other.convert("RGBA")])
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"):
        seeds[f"tiff_{compression}"] = _saved(rgb, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        seeds[f"tiff_{compression}"] = _saved(rgb.convert("1"), "TIFF", compression=compression)
    return seeds


SEEDS = _seeds()


def _signed(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that fit them, as a stranger can make it."""
    changed, at = bytearray(content), 8
    while at + 12 <= len(changed):
        end = at + 8 + int.from_bytes(changed[at : at + 4], "big")
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(changed)


@st.composite
def changed_images(draw) -> bytes:
    name = draw(st.sampled_from(list(SEEDS)))
    changed = draw(changed_bytes(SEEDS[name]))
    return _signed(changed) if name.startswith("png") and draw(st.booleans()) else changed


def read_or_bad(read: Callable[[], Result]) -> Result | None:
    """What `read` returns; None where it raises `BadImage`. Any other exception fails the test, as the bounds do."""
    with bounded(BYTES):
        try:
            return read()
        except BadImage as error:
            reason = error.reason
    assert reason.strip()
    assert len(reason) < MESSAGE
    return None


def read_every_way(path: Path) -> None:
    """What training, evaluation and packs do with a file, and that each of them fits the image."""
    content = path.read_bytes()
    image = read_or_bad(lambda: read_image(path))
    again = read_or_bad(lambda: read_image(path, content))
    assert (image is None) == (again is None)
    if image is not None:
        assert image.mode == "RGB"
        assert min(image.size) > 0
        assert (again.size, again.tobytes()) == (image.size, image.tobytes())
    for by in (2, 8):
        reduced = read_or_bad(partial(read_picture, path, content, lambda _, by=by: by))
        if image is not None and reduced is not None:
            assert size_of(reduced) in (image.size, tuple(-(-side // by) for side in image.size))
    # What Pillow refuses, or reads as something else, is nothing that libjpeg-turbo reads.
    with without_turbo():
        pillows = read_or_bad(lambda: read_image(path, content))
    assert (pillows and pillows.tobytes()) == (image and image.tobytes())
    augmented = read_or_bad(lambda: TRANSFORM(partial(read_picture, path, content), 1))
    assert augmented is None or (augmented[0].shape, augmented[0].dtype) == ((3, SIDE, SIDE), torch.uint8)
    (batch,) = read_or_bad(lambda: list(decode([path], SIDE, 0.875, 1, 0)))
    if path in batch.refused:
        assert batch.refused[path].strip()
    else:
        assert (batch.paths, batch.images.shape) == ([path], (1, 3, SIDE, SIDE))


@contextmanager
def without_turbo() -> Iterator[None]:
    """Within it, Pillow decodes all that it can."""
    with mock.patch.object(pictures, "_by_turbo", return_value=None):
        yield


TRANSFORM = training_transform(Augmentation(), SIDE, [0.5, 0.5, 0.5])


@pytest.mark.parametrize("name", SEEDS)
def test_an_image_that_nobody_changed_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SEEDS[name])
    if name in ("tiff_float", "pfm"):
        with pytest.raises(BadImage, match="32-bit"):
            read_image(path)
    else:
        assert read_image(path).size in ((40, 24), (24, 40), (8, 2), (4, 2))
    read_every_way(path)


@pytest.mark.filterwarnings("ignore")
def test_any_image_is_read_or_bad(tmp_path, capfd):
    path = tmp_path / "image"

    @fuzzed()
    @given(changed_images())
    def check(content):
        path.write_bytes(content)
        read_every_way(path)
        # libtiff says there what it finds, which nobody is to keep.
        capfd.readouterr()

    check()

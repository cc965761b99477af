"""One way to read an image file: as viewers show it, and one exception for all that can be wrong."""

import errno
import os
import pickle
import signal
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from torchvision.datasets.folder import pil_loader

from tests.vitas.conftest import cmyk_profile, write_bad_images
from vitas.data import pictures
from vitas.data.pictures import BadImage, pixels_of, read_image, read_picture

TURN = 0x0112
RNG = np.random.default_rng(0)
COLOURS = Image.fromarray(RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _no_test_waits_for_ever():
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for a file for ever"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_ordinary_images_are_what_convert_makes_of_them_bit_for_bit(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    # JPEG has no palettes.
    COLOURS.convert("L" if (mode, suffix) == ("P", "jpg") else mode).save(path)
    assert read_image(path).tobytes() == pil_loader(path).tobytes()


JPEGS = {
    "4:2:0": {}, "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2}, "rgb": {"keep_rgb": True}, "of low quality": {"quality": 5},
}  # fmt: skip


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", JPEGS)
def test_a_jpeg_that_pillow_does_not_decode_is_bit_for_bit_what_it_decodes(tmp_path, monkeypatch, how, mode, by):
    path = tmp_path / "image.jpg"
    COLOURS.resize((131, 77)).convert(mode).save(path, **JPEGS[how])
    found = read_picture(path, reduction=lambda size: by)
    assert isinstance(found, np.ndarray), "Pillow decoded it"
    monkeypatch.setattr(pictures, "_by_turbo", lambda *_: None)
    expected = read_picture(path, reduction=lambda size: by)
    assert isinstance(expected, Image.Image)
    assert np.array_equal(found, np.asarray(expected))


def test_a_jpeg_with_warnings_is_what_pillow_makes_of_it(tmp_path):
    """libjpeg mends what it can, and warns; Pillow does not ask for warnings, unless data are missing."""
    path = tmp_path / "image.jpg"
    photo = Image.effect_noise((200, 200), 50)
    photo.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with Image.open(path) as image:
        expected = image.convert("RGB")
    assert expected.getchannel(0).tobytes() != photo.tobytes()
    found = read_picture(path)
    assert isinstance(found, Image.Image), "decoded strictly"
    assert found.tobytes() == expected.tobytes()


def test_pixels_of_a_part_are_its_pixels_also_some_rows_at_a_time(monkeypatch):
    image, box = COLOURS.resize((53, 41)), (3, 5, 51, 40)
    expected = np.asarray(image)[5:40, 3:51]
    assert np.array_equal(pixels_of(np.asarray(image), box), expected)
    for at_once in (2**20, 48 * 4, 1):
        monkeypatch.setattr(pictures, "_BAND", at_once)
        assert np.array_equal(pixels_of(image, box), expected)
        assert np.array_equal(pixels_of(image, (0, 0, 53, 41)), np.asarray(image))


def test_a_very_large_file_is_left_to_pillow(tmp_path, monkeypatch):
    path = tmp_path / "image.jpg"
    COLOURS.save(path)
    monkeypatch.setattr(pictures, "_SMALL_JPEG", path.stat().st_size - 1)
    assert isinstance(read_picture(path), Image.Image)


def test_a_cmyk_jpeg_without_a_profile_is_what_convert_makes_of_it_bit_for_bit(tmp_path):
    path = tmp_path / "image.jpg"
    COLOURS.convert("CMYK").save(path)
    assert read_image(path).tobytes() == pil_loader(path).tobytes()


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_ppm_from_memory_is_what_its_file_is_bit_for_bit_whole_or_not(tmp_path, monkeypatch):
    path = tmp_path / "image.ppm"
    COLOURS.save(path)
    whole = path.read_bytes()
    commented = whole.replace(b"P6\n", b"P6\n# a comment\n", 1)
    for content in (whole, whole + b"more", commented):
        path.write_bytes(content)
        read = read_image("a name", content)
        assert (read.mode, read.size) == ("RGB", COLOURS.size)
        assert read.tobytes() == read_image(path).tobytes() == COLOURS.tobytes()
        # An image of its own: writing to it changes no bytes of the pack.
        read.putpixel((0, 0), (1, 2, 3))
    assert read_image("a name", whole).tobytes() == COLOURS.tobytes()
    for content in (whole[:-1], whole[:20], b"P6\n0 24\n255\n", b"P6\n99999 99999\n255\n", b"P6\n-3 4\n255\n"):
        path.write_bytes(content)
        with pytest.raises(BadImage) as from_memory:
            read_image(path, content)
        with pytest.raises(BadImage) as from_file:
            read_image(path)
        assert from_memory.value.reason.partition("(")[0] == from_file.value.reason.partition("(")[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", COLOURS.width * COLOURS.height - 1)
    with pytest.raises(BadImage, match="is too large"):
        read_image("a name", whole)


def test_16_bit_grey_keeps_its_range(tmp_path):
    values = np.arange(0, 0x10000, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "little.tiff")
    (tmp_path / "grey.pgm").write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    (tmp_path / "big.tiff").write_bytes(big_endian_tiff(values))
    modes = set()
    for path in tmp_path.iterdir():
        modes.add(Image.open(path).mode)
        found = pixels(path)
        assert found.mean() == pytest.approx(127.5), path
        assert (found == (values >> 8)[:, :, None]).all(), path
    assert modes >= {"I;16", "I;16B", "I"}


def big_endian_tiff(values: np.ndarray) -> bytes:
    height, width = values.shape
    entries = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    data = values.astype(">u2").tobytes()
    entries += [(279, len(data))]
    table = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in entries)
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(entries)) + table + bytes(4)


def test_what_is_transparent_is_laid_over_white(tmp_path):
    half = Image.new("RGBA", (2, 1), (100, 0, 0, 0))
    half.putpixel((1, 0), (100, 0, 0, 128))
    half.save(tmp_path / "rgba.png")
    Image.merge("LA", (Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0))).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert pixels(tmp_path / "rgba.png").tolist() == [[[255, 255, 255], [177, 127, 127]]]
    assert pixels(tmp_path / "la.png").tolist() == [[[255, 255, 255]]]
    assert pixels(tmp_path / "palette.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(tmp_path / "key.png").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB", "I;16", "I;16B", "I"])
def test_a_large_image_that_is_converted_in_bands_is_that_of_one_piece(tmp_path, monkeypatch, kind):
    path, grey = tmp_path / "image.png", np.asarray(COLOURS.convert("L")).astype(np.uint16) * 257
    alpha = COLOURS.copy()
    alpha.putalpha(COLOURS.convert("L").rotate(180))
    if kind == "I;16B":
        path.write_bytes(big_endian_tiff(grey))
    elif kind == "I":
        path.write_bytes(b"P5 40 24 65535\n" + grey.astype(">u2").tobytes())
    elif kind == "I;16":
        Image.fromarray(grey).save(path)
    elif kind == "P":
        COLOURS.quantize(16).save(path, transparency=bytes(range(0, 256, 16)))
    elif kind == "RGB":
        COLOURS.save(path, transparency=COLOURS.getpixel((3, 3)))
    else:
        alpha.convert(kind).save(path)
    assert Image.open(path).mode == kind
    whole = read_image(path)
    # Of which the last is smaller.
    monkeypatch.setattr(pictures, "_BAND", 5 * 40)
    assert read_image(path).tobytes() == whole.tobytes()
    if kind == "RGBA":
        expected = Image.alpha_composite(Image.new("RGBA", alpha.size, "white"), alpha).convert("RGB")
        assert whole.tobytes() == expected.tobytes()


def test_what_is_opaque_keeps_its_colours(tmp_path):
    opaque = COLOURS.convert("RGBA")
    opaque.save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").tobytes() == COLOURS.tobytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_images_are_turned_as_their_exif_says(tmp_path, suffix):
    # Smooth, so that what is lost in compression is less than what is turned.
    ramp = np.linspace(0, 255, 32 * 16).reshape(16, 32).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp, ramp], axis=2))
    upright = {
        1: ramp, 2: ramp[:, ::-1], 3: ramp[::-1, ::-1], 4: ramp[::-1], 5: ramp.T, 6: np.rot90(ramp, -1),
        7: ramp[::-1, ::-1].T, 8: np.rot90(ramp),
    }  # fmt: skip
    for turn, expected in upright.items():
        exif = Image.Exif()
        exif[TURN] = turn
        path = tmp_path / f"{turn}.{suffix}"
        image.save(path, exif=exif)
        found = pixels(path)[:, :, 0]
        assert found.shape == expected.shape, turn
        assert np.abs(found - expected).max() < 12, turn


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_damaged_exif_is_shown_as_it_is(tmp_path):
    path = tmp_path / "image.jpg"
    COLOURS.save(path, exif=b"Exif\0\0MM\0*\0\0\xff\xffnonsense")
    assert read_image(path).tobytes() == pil_loader(path).tobytes()


def test_cmyk_is_converted_by_its_profile(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "plain.jpg")
    cyan.save(tmp_path / "profile.jpg", icc_profile=cmyk_profile())
    cyan.save(tmp_path / "damaged.jpg", icc_profile=cmyk_profile()[:200])
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg", icc_profile=cmyk_profile())
    plain, profile, damaged, white = (
        pixels(tmp_path / f"{name}.jpg")[0, 0] for name in ("plain", "profile", "damaged", "white")
    )
    assert plain.tolist() == damaged.tolist()
    assert plain[0] < 10 < 245 < plain[1]
    # The profile says that this cyan is a middle grey: L* 50 is 119 in sRGB.
    assert np.abs(profile - 119).max() <= 3
    assert white.min() >= 252


def test_a_jpeg_in_ycck_has_its_colours(tmp_path):
    """Photoshop's CMYK: inverted, and as luminance and chroma. Pillow writes none, but the bytes of one are known."""
    ink = (30, 200, 90, 60)
    expected = np.asarray(Image.new("CMYK", (1, 1), ink).convert("RGB")).astype(int)[0, 0]
    luminance = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (8, 8), (*(255 - value for value in luminance), ink[3])).save(path, quality=100)
    data = bytearray(path.read_bytes())
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0, "the marker's last byte says how the channels are meant"
    data[adobe + 11] = 2
    path.write_bytes(data)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(pixels(path)[0, 0] - expected).max() <= 4


@pytest.mark.filterwarnings("ignore:Image size")
def test_all_that_can_be_wrong_with_a_file_is_one_exception_that_names_it(tmp_path):
    reasons = {}
    for path in write_bad_images(tmp_path):
        with pytest.raises(BadImage) as raised:
            read_image(path)
        assert str(raised.value) == f"{path} {raised.value.reason}"
        # As workers send it.
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
        reasons[path.stem] = raised.value.reason
    assert reasons["text"] == "is not an image"
    assert reasons["empty"] == "is empty"
    for name in ("fifo", "device", "folder"):
        assert reasons[name] == "is not a regular file"
    assert reasons["gone"] == "cannot be read (No such file or directory)"
    for name in ("cut_jpeg", "cut_png", "broken_png"):
        assert reasons[name].startswith("is a damaged image ("), name
    for name in ("bomb", "small_bomb"):
        assert reasons[name].startswith("is too large ("), name
    for name in ("float", "deep"):
        assert "32-bit pixels" in reasons[name], name


def test_no_file_is_a_program_that_is_run(tmp_path, monkeypatch):
    """Pillow has Ghostscript draw what is PostScript, whatever the file is called."""
    path, ran = tmp_path / "image.jpg", tmp_path / "ran"
    COLOURS.save(path, "EPS")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(BadImage, match="is not an image"):
        read_image(path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["JPEG2000", "WEBP", "AVIF"])
def test_newer_formats_are_read(tmp_path, kind):
    if kind not in pictures.FORMATS:
        pytest.skip("Pillow is too old")
    Image.new("RGB", (24, 16), (200, 100, 50)).save(tmp_path / "image", kind)
    assert np.abs(pixels(tmp_path / "image") - (200, 100, 50)).max() < 6


def test_a_length_that_a_file_states_sets_no_memory_aside(tmp_path):
    path = tmp_path / "image.png"
    COLOURS.save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"IDAT") - 4
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        # Of the pixels, which are whole, nothing is missing.
        assert read_image(path).tobytes() == COLOURS.tobytes()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_wrong_with_the_process_is_not_the_files_fault(tmp_path, monkeypatch):
    COLOURS.save(tmp_path / "image.png")

    def no_files_left(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "stat", no_files_left)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(tmp_path / "image.png")


def test_what_passes_on_a_network_makes_no_image_bad(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    COLOURS.save(path)
    failures, stat = [], os.stat

    def failing(path):
        if len(failures) < times:
            failures.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path)

    monkeypatch.setattr(pictures, "_WAITS", (0, 0))
    monkeypatch.setattr(os, "stat", failing)
    times = 2
    assert read_image(path).tobytes() == COLOURS.tobytes()
    failures.clear()
    times = 3
    with pytest.raises(BadImage, match=r"cannot be read \(Stale file handle\)"):
        read_image(path)

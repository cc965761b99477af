"""What becomes of a training image: the pixels that it always became, JPEGs that are decoded no larger than needed."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from vitas.data import pictures
from vitas.data.augmentation import training_transform
from vitas.data.cropping import RandomResizedCrop, Rectangle
from vitas.data.folders import Augmentation, TrainingData
from vitas.data.pictures import BadImage, Picture, read_image, read_picture, size_of
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.seeds import stream_seed

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROP = RandomResizedCrop(32, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic")
PLAIN = {"auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0}
ORIENTATION = 0x0112


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with an edge: a JPEG keeps them, also reduced."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    pixels = np.stack([255 * x, 255 * y, 128 + 100 * (x > y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def jpeg(tmp_path) -> Callable[..., Path]:
    def save(width: int = 400, height: int = 300, mode: str = "RGB", **how: object) -> Path:
        path = tmp_path / "photo.jpg"
        photo(width, height).convert(mode).save(path, quality=90, **how)
        return path

    return save


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture).astype(int)


def resized_by_pillow(crop: RandomResizedCrop, picture: Picture, box: Rectangle, reduction: int = 1) -> torch.Tensor:
    """What timm and torchvision make of a crop of a whole image."""
    assert reduction == 1
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    part = image.crop(box.box)
    resized = part.resize((crop.side, crop.side), Image.Resampling[crop.interpolation.upper()])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


@pytest.fixture
def by_pillow(monkeypatch) -> None:
    """Crops are resized by Pillow: then all else can be compared bit for bit with those who do so."""
    monkeypatch.setattr(RandomResizedCrop, "resized", resized_by_pillow)


# What it always was

# Of the first two batches of digits: recipes without erasing. First by Pillow, from the code that normalised in the
# workers, and for which results were published; then as it is now.
DIGESTS = {
    "weak": (PLAIN, "2b217797034089073243fd579b70cead", "ddaa1e92bd557ff032c3ee5bdf12867d"),
    "flip alone": (PLAIN | {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]},
                   "0c20cf5d31f20a0814ca139fa95decfb", "0c20cf5d31f20a0814ca139fa95decfb"),
    "jitter": (PLAIN | {"color_jitter": 0.4}, "2256a9c129eb78808ef07ec742d5f116", "3b1528c7d14bf7bdfefa05818b21ed11"),
    "DeiT's": ({"random_erasing": 0.0}, "60b853352da766424d74f26b899e9122", "d1f4f6181545bf36d11c88a0b50a25a2"),
    "bilinear": (PLAIN | {"flip": 0.0, "scale": [0.7, 1.0], "interpolation": "bilinear"},
                 "79e1b55ecc1c5ae94d2ab33600eaa968", "79e1b55ecc1c5ae94d2ab33600eaa968"),
    "three augment": (PLAIN | {"auto_augment": "3a", "color_jitter": 0.4},
                      "7d3920928f936376fe837097191c9d42", "fcac030d3d87c1dcec829537ee274e93"),
    "augmix": (PLAIN | {"auto_augment": "augmix-m5-w4-d2", "color_jitter": 0.4, "interpolation": "nearest"},
               "c6ee46558dd177c5a8b6112afddca2d9", "c6ee46558dd177c5a8b6112afddca2d9"),
}  # fmt: skip


@pytest.mark.parametrize("recipe", DIGESTS)
def test_batches_are_bit_for_bit_what_results_were_published_with(digits, recipe, by_pillow):
    settings, published, _ = DIGESTS[recipe]
    assert digest_of_batches(digits, settings) == published


@pytest.mark.parametrize("recipe", DIGESTS)
def test_batches_are_bit_for_bit_what_they_were_since(digits, recipe):
    settings, _, since = DIGESTS[recipe]
    assert digest_of_batches(digits, settings) == since


def digest_of_batches(digits: Path, settings: dict) -> str:
    data = TrainingData(data_dir=str(digits / "train"), workers=0, augmentation=Augmentation(**settings))
    digest = hashlib.sha256()
    for images, labels in TrainingLoader(data, 32, MEAN, STD, 64, World(), seed=3, repeats=2).batches(0, 2):
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:32]


WHOLE = PLAIN | {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
JITTER = PLAIN | {"color_jitter": 0.4}


@pytest.mark.parametrize(
    ("settings", "kind", "mode", "shape"),
    [
        # Crops of the JPEGs are smaller than twice the output.
        (PLAIN, "jpg", "RGB", (90, 110)),
        ({"random_erasing": 0.0}, "jpg", "RGB", (90, 110)),
        ({"random_erasing": 0.0}, "png", "RGB", (200, 150)),
        # The image whole: as large as the output, of another size, of another shape.
        (WHOLE, "png", "RGB", (64, 64)),
        (WHOLE, "png", "L", (64, 64)),
        (WHOLE, "bmp", "RGB", (28, 28)),
        (WHOLE, "gif", "P", (70, 50)),
        (WHOLE | {"ratio": [1.4, 1.4]}, "ppm", "RGB", (70, 50)),
        (WHOLE | {"color_jitter": 0.4, "flip": 0.3}, "png", "RGB", (64, 64)),
        (WHOLE | {"auto_augment": "rand-m9-n4", "flip": 1.0}, "png", "L", (64, 64)),
        (JITTER | {"flip": 0.0, "interpolation": "nearest"}, "webp", "RGB", (64, 40)),
    ],
)
def test_an_image_that_is_not_reduced_becomes_what_timm_makes_of_it(tmp_path, by_pillow, settings, kind, mode, shape):
    """In floats, normalised: so that both steps on the device are the ones that timm's workers make."""
    augmentation = Augmentation(**settings)
    path, size = tmp_path / f"image.{kind}", 64
    photo(*shape).convert(mode).save(path, quality=90)
    recipe = augmentation.model_dump() | {"hflip": augmentation.flip, "mean": tuple(MEAN), "std": tuple(STD)}
    recipe = {key: value for key, value in recipe.items() if key not in ("flip", "random_erasing")}
    recipe["color_jitter"] = recipe["color_jitter"] or None
    timms, ours = create_transform(size, is_training=True, **recipe), training_transform(augmentation, size, MEAN)
    for seed in range(20):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = timms(Image.open(path).convert("RGB"))
        image, _ = ours(lambda reduction: read_picture(path, reduction=reduction), seed)
        floats = (image.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert torch.equal(floats, expected), seed


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("read_as", [np.asarray, lambda image: image], ids=["pixels", "image"])
def test_a_crop_is_resized_along_rows_and_then_columns_with_bytes_between(interpolation, read_as):
    """As Pillow did before 13, for which results were published; since then it takes columns first for some crops."""
    crop, rng = RandomResizedCrop(32, (0.08, 1.0), (3 / 4, 4 / 3), interpolation), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    random.seed(0)
    for box in [crop.draw(image.size) for _ in range(20)] + [Rectangle(3, 5, 32, 32), Rectangle(0, 0, 120, 90)]:
        found = crop.resized(read_as(image), box)
        assert (found.dtype, found.shape, found.is_contiguous()) == (torch.uint8, (3, 32, 32), True)
        if interpolation == "nearest" or (box.width, box.height) == (32, 32):
            assert torch.equal(found, resized_by_pillow(crop, image, box))
            continue
        part = torch.from_numpy(pixels(image)[box.top : box.top + box.height, box.left : box.left + box.width])
        exact = part.permute(2, 0, 1)[None].double()
        for size in ((box.height, 32), (32, 32)):
            exact = torch.nn.functional.interpolate(exact, size, mode=interpolation, antialias=True)
            exact = (exact.clamp(0, 255) + 0.5).floor()
        differences = (found - exact[0]).abs()
        assert differences.max() <= 2
        # Of noise, in which many values lie half-way between two bytes. Columns first would change 15%.
        assert (differences > 0).double().mean() < 0.06


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (1, 50)])
def test_images_of_a_pixel_or_two_are_cropped_though_the_draw_gives_no_pixel(tmp_path, size):
    """Of an empty crop Pillow, and so timm, makes a black image; torch refuses it."""
    path, transform = tmp_path / "image.png", training_transform(Augmentation(**PLAIN), 32, MEAN)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    drawn = set()
    for seed in range(60):
        image, _ = transform(lambda reduction: read_picture(path, reduction=reduction), seed)
        assert image.flatten(1).unique(dim=1).tolist() == [[200], [100], [50]]
        random.seed(seed)
        drawn.add(min(transform.crop.draw(size)[2:]))
    assert (0 in drawn) == (max(size) < 3)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([(0.08, 1.0), (1.0, 1.0), (0.9, 1.0)]),
    st.sampled_from([(3 / 4, 4 / 3), (1.25, 1.25), (2.0, 3.0)]),
    st.integers(0, 2**32),
)
def test_the_crop_is_drawn_from_the_size_as_timm_draws_it_from_the_image(width, height, scale, ratio, seed):
    random.seed(seed)
    top, left, h, w = RandomResizedCropAndInterpolation.get_params(Image.new("L", (width, height)), scale, ratio)
    after = random.random()
    random.seed(seed)
    assert RandomResizedCrop(32, scale, ratio, "bicubic").draw((width, height)) == (left, top, w, h)
    assert random.random() == after


# Reduced while it is decoded


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0, 0, 63, 400), 1), ((0, 0, 64, 64), 2), ((9, 9, 127, 500), 2), ((0, 0, 128, 128), 4), ((0, 0, 1000, 256), 8),
     ((0, 0, 9000, 9000), 8), ((0, 0, 5, 5), 1)],
)  # fmt: skip
def test_an_image_is_reduced_as_far_as_its_crop_stays_as_large_as_the_output(box, expected):
    assert CROP.reduction(Rectangle(*box)) == expected


@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}], ids=["plain", "progressive", "444"])
def test_a_reduced_jpeg_is_the_image_in_small(jpeg, by, mode, how):
    path = jpeg(401, 299, mode, **how)
    whole, reduced = read_image(path), read_picture(path, reduction=lambda size: by)
    assert size_of(reduced) == (-(-401 // by), -(-299 // by))
    means = pixels(whole.crop((0, 0, 400 // by * by, 296)).reduce(by))
    assert np.abs(means - pixels(reduced)[: means.shape[0], : means.shape[1]]).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_reduction_is_asked_of_the_image_as_it_is_shown(jpeg, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = jpeg(400, 296, exif=exif)
    asked = []
    reduced = read_picture(path, reduction=lambda size: asked.append(size) or 4)
    whole = read_image(path)
    assert asked == [whole.size]
    assert np.abs(pixels(whole.reduce(4)) - pixels(reduced)).mean() < 2


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "gif"])
def test_other_files_come_whole(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    photo(200, 100).save(path)
    assert read_picture(path, reduction=lambda size: pytest.fail("is asked")).size == (200, 100)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_crop_of_a_reduced_jpeg_shows_what_the_crop_of_the_whole_one_shows(jpeg, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = jpeg(601, 403, exif=exif)
    transform = training_transform(Augmentation(**PLAIN), 32, MEAN)
    reductions = []

    def reduced(reduction):
        return read_picture(path, reduction=lambda size: reductions.append(reduction(size)) or reductions[-1])

    for seed in range(10):
        image, _ = transform(reduced, seed)
        whole, _ = transform(lambda reduction: read_image(path), seed)
        assert (image.int() - whole.int()).abs().float().mean() < 3, (seed, reductions[-1])
    assert set(reductions) == {4, 8}


def test_a_file_that_cannot_be_read_for_a_moment_is_cropped_as_if_it_could(jpeg, monkeypatch):
    path, transform = jpeg(), training_transform(Augmentation(), 32, MEAN)

    def read(reduction):
        return read_picture(path, reduction=reduction)

    expected, erased = transform(read, 5)
    monkeypatch.setattr(pictures, "_WAITS", (0,))
    failing, decode = [OSError(5, "Input/output error")], pictures.simplejpeg.decode_jpeg

    def fail_after_the_draw(*arguments, **keywords):
        if failing:
            raise failing.pop()
        return decode(*arguments, **keywords)

    monkeypatch.setattr(pictures.simplejpeg, "decode_jpeg", fail_after_the_draw)
    again = transform(read, 5)
    assert not failing
    assert torch.equal(again[0], expected)
    assert again[1] == erased


def test_bytes_are_read_as_the_file_that_holds_them_and_named_by_it(jpeg):
    path = jpeg()
    content = path.read_bytes()
    for reduction in (None, lambda size: 2):
        assert (
            pixels(read_picture("a name", content, reduction)).tolist()
            == pixels(read_picture(path, reduction=reduction)).tolist()
        )
    with pytest.raises(BadImage, match="a name is a damaged image"):
        read_picture("a name", content[:-2000], lambda size: 2)
    with pytest.raises(BadImage, match="a name is empty"):
        read_picture("a name", b"")


@pytest.mark.parametrize("cut", [10, 2000])
def test_a_truncated_jpeg_is_bad_also_where_it_is_reduced(jpeg, cut):
    path = jpeg()
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(BadImage, match="is a damaged image"):
        read_image(path)
    with pytest.raises(BadImage, match="is a damaged image"):
        read_picture(path, reduction=lambda size: 8)


@pytest.mark.filterwarnings("ignore:Image size")
def test_what_is_too_large_is_refused_before_it_is_reduced(jpeg, monkeypatch):
    path = jpeg()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 300 - 1)
    with pytest.raises(BadImage, match="is too large"):
        read_picture(path, reduction=lambda size: pytest.fail("is asked"))


def test_the_augmentation_is_a_function_of_its_seed(jpeg):
    path, transform = jpeg(), training_transform(Augmentation(random_erasing=1.0), 32, MEAN)

    def augmented(seed: int) -> tuple:
        image, erased = transform(lambda reduction: read_picture(path, reduction=reduction), stream_seed(0, seed))
        return image.numpy().tobytes(), erased

    assert augmented(1) == augmented(1)
    assert len({augmented(seed) for seed in range(10)}) == 10

"""Small sets of real images to try the pipeline on, as image folders: scikit-learn's digits and Fashion-MNIST."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from vitas.costs import Array
from vitas.errors import UserError

DIGITS_SIZE = 32
DIGITS_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}

# Where Debian's package dataset-fashion-mnist puts the four files (Xiao, Rasul and Vollgraf, arXiv 1708.07747).
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
FASHION_TRAIN_IMAGES = 60_000

# Of train, val or test: images [n, H, W], uint8, their labels [n], and the numbers [n] that name their files.
Part = tuple[Array, Array, Array]


def write_digits(folder: Path, seed: int = 0) -> None:
    """Write scikit-learn's 1,797 digits to `folder/train`, `val` and `test`, as 32 x 32 PNG: a stratified split.

    Does nothing where the folder is there already. Raises `UserError` without scikit-learn.
    """
    if folder.exists():
        return
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("the digits come with scikit-learn; pip install 'vitas[quickstart]'") from None
    digits = load_digits()
    images = np.stack([_enlarged(image) for image in digits.images])
    indices = np.arange(len(digits.target))
    shares = DIGITS_SHARES
    train, rest = train_test_split(indices, train_size=shares["train"], stratify=digits.target, random_state=seed)
    val, test = train_test_split(
        rest,
        train_size=shares["val"] / (shares["val"] + shares["test"]),
        stratify=digits.target[rest],
        random_state=seed,
    )
    indices_of = {"train": train, "val": val, "test": test}
    parts = {name: (images[part], digits.target[part], part) for name, part in indices_of.items()}
    _write_folders(folder, parts, [str(digit) for digit in range(10)])


def _enlarged(image: Array) -> Array:
    pixels = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(pixels.resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC))


def write_fashion(
    folder: Path, train: int = 50_000, val: int = 10_000, seed: int = 0, source: Path | None = None
) -> None:
    """Write Fashion-MNIST to `folder/train`, `val` and `test`, as 28 x 28 PNG.

    train, val: how many images each gets of the official 60,000 train images,
        as many of each class; `test` is the official test set, 10,000 images.
    source: a folder with the four official files. By default that of Debian's
        package, or what torchvision downloads where that is not installed.

    Does nothing where the folder is there already. Raises `UserError` for
    counts that cannot be drawn, and where the files can be found nowhere.
    """
    if folder.exists():
        return
    classes = len(FASHION_CLASSES)
    for name, count in (("train", train), ("val", val)):
        if count < classes or count % classes:
            raise UserError(f"{name}: found {count}; it must be a multiple of the {classes} classes")
    if train + val > FASHION_TRAIN_IMAGES:
        raise UserError(f"train, val: found {train} and {val}; there are {FASHION_TRAIN_IMAGES:,} images for both")
    with TemporaryDirectory() as downloads:
        if source is None:
            source = FASHION_FOLDER if FASHION_FOLDER.is_dir() else _download_fashion(Path(downloads))
        (images, labels), test = (_read_idx(source, name) for name in ("train", "t10k"))
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == label] for label in range(classes)]
    indices_of = {
        "train": np.concatenate([indices[: train // classes] for indices in by_class]),
        "val": np.concatenate([indices[train // classes :][: val // classes] for indices in by_class]),
    }
    parts = {name: (images[part], labels[part], part) for name, part in indices_of.items()}
    parts["test"] = (*test, np.arange(len(test[1])))
    _write_folders(folder, parts, FASHION_CLASSES)


def _download_fashion(folder: Path) -> Path:
    """Let torchvision download the four files; returns where they are."""
    # Imported here: it loads torch, and what Debian has needs no download.
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folder), download=True)
    except Exception as error:
        # A download fails in as many ways as there are networks.
        raise UserError(
            f"Fashion-MNIST is not in {FASHION_FOLDER} (apt-get install dataset-fashion-mnist), "
            f"and torchvision cannot download it: {str(error).splitlines()[0]}"
        ) from None
    return folder / "FashionMNIST" / "raw"


def _read_idx(source: Path, name: str) -> tuple[Array, Array]:
    """The images and labels of a part in the IDX format of MNIST."""
    arrays = []
    for kind, header in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8)):
        path = source / f"{name}-{kind}.gz"
        try:
            data = gzip.decompress(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}; Fashion-MNIST comes with Debian's package dataset-fashion-mnist "
                "(apt-get install dataset-fashion-mnist), or give a folder that holds its four files"
            ) from None
        arrays.append(np.frombuffer(data, np.uint8, offset=header))
    images, labels = arrays
    return images.reshape(len(labels), 28, 28), labels


def _write_folders(folder: Path, parts: Mapping[str, Part], class_names: Sequence[str]) -> None:
    """Write `folder/PART/CLASS/INDEX.png`, under another name first: a folder that exists is whole."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part, (images, labels, numbers) in parts.items():
        for class_name in class_names:
            (unfinished / part / class_name).mkdir(parents=True)
        for image, label, number in zip(images, labels, numbers, strict=True):
            Image.fromarray(image).convert("RGB").save(unfinished / part / class_names[label] / f"{number:05}.png")
    unfinished.rename(folder)

"""Fashion-MNIST as image folders: what each part holds, and what is refused."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitas.data.example_images import FASHION_CLASSES, write_fashion
from vitas.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The four files with 60 train images of each class and 2 test images of each, told apart by their first pixels."""
    folder = tmp_path_factory.mktemp("idx")
    for name, per_class in (("train", 60), ("t10k", 2)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        images[:, 0, 0] = labels
        images[:, 0, 1] = np.arange(len(labels)) // 10
        for kind, dims, array in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
            header = bytes([0, 0, 8, dims]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def images_in(folder):
    """(class index, number of the image within its class) of every image below a folder."""
    found = []
    for path in sorted(folder.rglob("*.png")):
        image = Image.open(path)
        assert (image.size, image.mode) == ((28, 28), "RGB")
        pixels = np.asarray(image.convert("L"))
        assert FASHION_CLASSES[pixels[0, 0]] == path.parent.name
        found.append((int(pixels[0, 0]), int(pixels[0, 1])))
    return found


def test_train_and_val_are_cut_from_train_with_as_many_of_each_class_and_test_is_whole(source, tmp_path):
    write_fashion(tmp_path / "fashion", 300, 100, source=source)
    parts = {part: images_in(tmp_path / "fashion" / part) for part in ("train", "val", "test")}
    for part, per_class in (("train", 30), ("val", 10), ("test", 2)):
        assert np.bincount([label for label, _ in parts[part]]).tolist() == [per_class] * 10
    assert not set(parts["train"]) & set(parts["val"])
    assert len(set(parts["train"])) == 300


def test_a_seed_decides_the_cut_and_a_folder_that_is_there_stays(source, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_fashion(tmp_path / name, 100, 100, seed=seed, source=source)
    one, again, other = (images_in(tmp_path / name / "train") for name in ("one", "again", "other"))
    assert one == again
    assert one != other
    write_fashion(tmp_path / "one", 200, 200, source=source)
    assert images_in(tmp_path / "one" / "train") == one


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (105, 100, "train: found 105; it must be a multiple of the 10 classes"),
        (100, 5, "val: found 5"),
        (60_000, 10, "found 60000 and 10; there are 60,000 images"),
    ],
)
def test_counts_that_cannot_be_cut_are_refused(source, tmp_path, train, val, message):
    with pytest.raises(UserError, match=message):
        write_fashion(tmp_path / "fashion", train, val, source=source)
    assert not (tmp_path / "fashion").exists()


def test_missing_files_are_refused_with_where_they_come_from(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: No such file.*dataset-fashion-mnist"):
        write_fashion(tmp_path / "fashion", source=tmp_path)


def test_without_debians_package_torchvision_downloads_the_files(source, tmp_path, monkeypatch):
    def download(root: str, download: bool) -> None:
        assert download
        shutil.copytree(source, Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr("vitas.data.example_images.FASHION_FOLDER", tmp_path / "none")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    write_fashion(tmp_path / "downloaded", 300, 100)
    write_fashion(tmp_path / "given", 300, 100, source=source)
    for part in ("train", "val", "test"):
        assert images_in(tmp_path / "downloaded" / part) == images_in(tmp_path / "given" / part)


def test_images_that_can_be_found_nowhere_are_told_with_the_reason(tmp_path, monkeypatch):
    def fail(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried ...")

    monkeypatch.setattr("vitas.data.example_images.FASHION_FOLDER", tmp_path / "none")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    with pytest.raises(UserError, match=r"dataset-fashion-mnist\).*cannot download it: Error downloading train"):
        write_fashion(tmp_path / "fashion")
    assert not (tmp_path / "fashion").exists()

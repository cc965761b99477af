"""The file of predictions: what comes back, what it takes, what is refused."""

from __future__ import annotations

import dataclasses
import os
import zipfile

import numpy as np
import pytest

from vitas.errors import UserError
from vitas.predictions import MAX_BYTES, WORST, Predictions


def made(images: int = 40, classes: int = 7, side: int = 8) -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    top = np.argsort(rng.random((images, classes)), 1)[:, :5]
    count = min(WORST, images)
    return Predictions(
        about={"checkpoint": "x.pth", "weights": "model"},
        classes=tuple(f"class {i}" for i in range(classes)),
        # A name that is no UTF-8, and one that no shell likes.
        files=(os.fsdecode(b"a/\xff\xfe.png"), "b/</script>\n.png", *(f"a/{i}.png" for i in range(2, images))),
        labels=labels,
        top=top,
        probabilities=np.sort(rng.random(top.shape))[:, ::-1],
        losses=rng.random(images) * 8,
        ranks=rng.integers(0, classes, images),
        worst=np.arange(count),
        pixels=rng.integers(0, 256, (count, side, side, 3)),
        attention=rng.random((count, 4, 4)),
    )


def test_what_was_written_is_read(tmp_path):
    predictions = made()
    predictions.write(tmp_path / "p.npz")
    found = Predictions.read(tmp_path / "p.npz")
    assert (found.about, found.classes, found.files) == (predictions.about, predictions.classes, predictions.files)
    for name in ("labels", "top", "ranks", "worst", "pixels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(predictions, name))
    for name in ("probabilities", "losses", "attention"):
        np.testing.assert_allclose(getattr(found, name), getattr(predictions, name), rtol=1e-3)
    np.testing.assert_array_equal(found.right(), predictions.top[:, 0] == predictions.labels)


def test_the_same_predictions_are_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        made().write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_those_of_imagenet_take_megabytes_and_not_gigabytes(tmp_path):
    made(50_000, 1000, side=224).write(tmp_path / "p.npz")
    assert (tmp_path / "p.npz").stat().st_size < 6e6
    assert len(Predictions.read(tmp_path / "p.npz").files) == 50_000


@pytest.mark.parametrize("part", ["labels", "top", "losses", "worst", "pixels", "attention", "files"])
def test_parts_that_do_not_fit_each_other_are_refused(tmp_path, part):
    short = getattr(made(), part)[:-1]
    dataclasses.replace(made(), **{part: short}).write(tmp_path / "p.npz")
    with pytest.raises(UserError, match="do not fit"):
        Predictions.read(tmp_path / "p.npz")


def test_a_class_that_is_not_there_is_refused(tmp_path):
    dataclasses.replace(made(), labels=np.full(40, 7)).write(tmp_path / "p.npz")
    with pytest.raises(UserError, match="do not fit"):
        Predictions.read(tmp_path / "p.npz")


def test_any_other_file_is_refused(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match="holds no predictions"):
        Predictions.read(path)
    whole = tmp_path / "whole.npz"
    made().write(whole)
    for content in (b"", b"no zip", whole.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="holds no predictions"):
            Predictions.read(path)
    np.savez(path, classes=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="holds no predictions"):
        Predictions.read(path)


def test_a_file_that_unfolds_without_end_is_refused_before_it_does(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("labels.npy", "w") as member,
    ):
        for _ in range(MAX_BYTES // 2**20 + 1):
            member.write(bytes(2**20))
    with pytest.raises(UserError, match="unfolds"):
        Predictions.read(tmp_path / "p.npz")

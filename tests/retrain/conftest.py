"""Few images, for what is true of any."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def write_few_digits(digits: Path, folder: Path, part: str = "train") -> Path:
    """16 images of each digit: 8 steps an epoch, in batches of 20."""
    for images in (digits / part).iterdir():
        (folder / images.name).mkdir(parents=True)
        for image in sorted(images.iterdir())[:16]:
            shutil.copy(image, folder / images.name)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits, tmp_path_factory) -> Path:
    return write_few_digits(digits, tmp_path_factory.mktemp("few") / "digits")


@pytest.fixture
def path(make_config, few_digits) -> Path:
    """A configuration whose trainings take them."""
    return make_config(
        {f"{stage}.data.data_dir": str(few_digits) for stage in ("search", "retrain")}
        | {f"{stage}.batch_size": 20 for stage in ("search", "retrain")}
    )

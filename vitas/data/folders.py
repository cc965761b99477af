"""Image folders: one sub-folder a class, as ImageNet is usually laid out."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import ImageFolder

from vitas.errors import UserError


def check_image_folder(data_dir: str, num_classes: int) -> None:
    """Raise `UserError` unless `data_dir` is a folder of `num_classes` class folders."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"found {data_dir!r}, which is no folder; it must hold one folder of images per class")
    classes = len(class_names(data_dir))
    if classes != num_classes:
        raise UserError(f"found {data_dir!r}, which holds {classes} class folders; model.num_classes is {num_classes}")


def class_names(data_dir: str) -> list[str]:
    """The names of the class folders, in the order of the labels."""
    return sorted(entry.name for entry in Path(data_dir).iterdir() if entry.is_dir())


def open_image_folder(data_dir: str) -> ImageFolder:
    """The images of a folder, undecoded. Raises `UserError` for a class without images."""
    try:
        return ImageFolder(data_dir)
    except FileNotFoundError as error:
        raise UserError(f"data_dir {data_dir!r}: {error}") from None

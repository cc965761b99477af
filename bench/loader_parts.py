"""What `loader` does to an image of 500 x 375, part by part, beside what it is without ours: on one core, per image.

Decoding beside Pillow, resizing the crop beside Pillow (`resizing` has the values), normalising a batch beside torch's
operations over all of it. RandAugment is Pillow's in both; it stands beside all that timm's loader does, which bounds
what any loader of that recipe can gain.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vitas.config import Model
from vitas.data.augmentation import training_transform
from vitas.data.images import channels, normalize
from vitas.data.pictures import read_image, read_picture, size_of

from .loader import BATCH, RECIPES, SIZE, steps_of_timm
from .photos import write_photos
from .rounds import in_turn, ratio


def measure(images: int = 200, rounds: int = 5) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    recipe, model = RECIPES["DeiT's recipe"], Model()
    transform = training_transform(recipe, SIZE, model.mean)
    vary = transform.vary
    assert vary is not None
    mean, std = channels(model.mean), channels(model.std)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images)
        paths = sorted(Path(folder).rglob("*.jpg"))
        files = [path.read_bytes() for path in paths]
        pictures = [read_picture(path) for path in paths]
        random.seed(0)
        crops = [transform.crop.draw(size_of(picture)) for picture in pictures]
        pillows = [read_image(path).crop(crop.box) for path, crop in zip(paths, crops, strict=True)]
        resized = [transform.crop.resized(*each) for each in zip(pictures, crops, strict=True)]
        batch = torch.stack(resized[:BATCH])
        squares = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in resized]
        bicubic, square = Image.Resampling.BICUBIC, (SIZE, SIZE)
        turns = images // BATCH
        seconds = in_turn(
            {
                "decoding": lambda: drop(read_picture(*each) for each in zip(paths, files, strict=True)),
                "decoding, peer": lambda: drop(Image.open(io.BytesIO(file)).convert("RGB") for file in files),
                "resizing": lambda: drop(transform.crop.resized(*each) for each in zip(pictures, crops, strict=True)),
                "resizing, peer": lambda: drop(part.resize(square, bicubic) for part in pillows),
                "normalising": lambda: drop(normalize(batch, mean, std) for _ in range(turns)),
                "normalising, peer": lambda: drop((batch / 255).sub_(mean).div_(std) for _ in range(turns)),
                "RandAugment": lambda: drop(map(vary, squares)),
                "RandAugment, peer": steps_of_timm(folder, recipe, turns),
            },
            rounds,
        )
    peers = {"decoding": "Pillow", "resizing": "Pillow", "normalising": "all at once", "RandAugment": "all of timm's"}
    per_image = {name: [each / images for each in times] for name, times in seconds.items()}
    return [
        {"what": f"{part}, over {peer}", **ratio(per_image[part], per_image[f"{part}, peer"]), "goal": None}
        for part, peer in peers.items()
    ]


def drop(results: Iterable[object]) -> None:
    """Have all computed. A result stays until the next one is there, as a batch does in a training."""
    for _ in results:
        pass

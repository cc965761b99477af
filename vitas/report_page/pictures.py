"""The test images that a network got most wrong, with what it took them for and where it looked."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from vitas.costs import Array
from vitas.predictions import Predictions
from vitas.report_page.html import text

# Pixels along a side up to which pictures are kept exactly, and shown with their pixels seen.
_SMALL = 64
_ORANGE = (255, 150, 0)


def worst_pictures(predictions: Predictions) -> str:
    """The pictures as HTML, the most wrong first; empty where every image was got right."""
    return "".join(
        _picture(predictions, place, int(index))
        for place, index in enumerate(predictions.worst)
        if predictions.ranks[index] > 0
    )


def _picture(predictions: Predictions, place: int, index: int) -> str:
    pixels = predictions.pixels[place]
    images = [_image(pixels, "the test image")]
    if len(predictions.attention):
        images.append(_image(lit(pixels, predictions.attention[place]), "orange where the network looked"))
    classes, said = predictions.classes, predictions.top[index]
    right = predictions.labels[index]
    beside = int(predictions.ranks[index]) + 1
    likely = np.exp(-float(predictions.losses[index]))
    return (
        f'<figure><div class="pair">{"".join(images)}</div><figcaption><b>{text(classes[right])}</b>, taken for '
        f"<b>{text(classes[said[0]])}</b> with {_percent(predictions.probabilities[index][0])}; the right class is "
        f"number {beside}, with {_percent(likely)}.<br><code>{text(predictions.files[index])}</code></figcaption>"
        "</figure>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.1g}%"


def lit(pixels: Array, attention: Array) -> Array:
    """A picture [H, W, 3] in faint grey, with orange where attention [rows, columns] was, the stronger the more."""
    most = float(attention.max()) or 1.0
    small = Image.fromarray((255 * attention / most).astype(np.uint8))
    strength = (
        np.asarray(small.resize(pixels.shape[1::-1], Image.Resampling.BILINEAR), dtype=np.float32)[..., None] / 255
    )
    grey = 40 + 0.55 * np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[..., None]
    found: Array = ((1 - 0.8 * strength) * grey + 0.8 * strength * np.array(_ORANGE)).astype(np.uint8)
    return found


def _image(pixels: Array, told: str) -> str:
    buffer = io.BytesIO()
    small = pixels.shape[0] <= _SMALL
    Image.fromarray(pixels).save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    encoded = base64.b64encode(buffer.getvalue()).decode()
    kind = (
        f'class="pixels" src="data:image/png;base64,{encoded}"' if small else f'src="data:image/jpeg;base64,{encoded}"'
    )
    return f'<img {kind} alt="{text(told)}" loading="lazy">'

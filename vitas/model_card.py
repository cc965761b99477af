"""The model card of an exported network: README.md with the metadata that the Hugging Face Hub reads.

A card says what is known, and says what is not. Names come from folders of
other people, so they are data in it: no markup, no line breaks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import yaml

from vitas.architecture import Architecture
from vitas.errors import printable
from vitas.intervals import Accuracy

# A licence of the Hub's list. Whose images and weights a network was made of is not ours to know.
UNKNOWN_LICENSE = "unknown"
_CLASSES_LISTED = 100


@dataclass(frozen=True)
class ImagesRead:
    """What a network reads. crop_fraction: side of the central crop over the side of the resized image."""

    channels: int
    size: int
    crop_fraction: float


@dataclass(frozen=True)
class Measured:
    """What the test of exactly these weights gave.

    data: what the images are called. images: how many. left_out: bad ones beside them.
    top1, top5: in percent. loss: mean cross-entropy.
    """

    data: str
    images: int
    top1: float
    top5: float
    loss: float
    left_out: int = 0


@dataclass(frozen=True)
class Trained:
    """How the weights came about.

    data: what the train images are called. images, classes: how many, where the checkpoint says it.
    epochs: finished, of `of_epochs`. supernet: whether they are a supernet's, shared with other networks.
    started_from, teacher: where there are any. changes: whether the recipe was changed on the way.
    """

    data: str | None
    images: int | None
    epochs: int
    of_epochs: int | None
    supernet: bool = False
    started_from: str | None = None
    teacher: str | None = None
    changes: bool = False


def model_card(
    name: str,
    architecture: Architecture,
    images: ImagesRead,
    class_names: Sequence[str],
    facts: Mapping[str, object],
    measured: Measured | None = None,
    trained: Trained | None = None,
    license_name: str = UNKNOWN_LICENSE,
) -> str:
    """The text of a README.md.

    name: of the network. facts: further plain data, listed as it is.
    license_name: of the weights, by its name on the Hub.
    """
    head = yaml.safe_dump(_metadata(name, measured, license_name), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{head}---\n",
        f"# {_inline(name)}\n",
        "An image classifier: a vision transformer, as a folder for timm and the Hugging Face Hub.\n",
        _use(images),
        _architecture(architecture, images, len(class_names), facts),
        _accuracy(measured),
        _training(trained),
        _limits(images, class_names, measured, license_name),
    ]
    return "\n".join(parts)


def _metadata(name: str, measured: Measured | None, license_name: str) -> dict[str, object]:
    data: dict[str, object] = {
        "library_name": "timm",
        "license": license_name,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "vision-transformer", "vitas"],
    }
    if measured is None:
        return data
    metrics = [
        {
            "type": "accuracy",
            "name": label,
            "value": round(value, 2),
            "args": {
                "interval_95": [round(end, 2) for end in _interval(value, measured)],
                "images": measured.images,
            },
        }
        for label, value in (("top-1", measured.top1), ("top-5", measured.top5))
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "imagefolder", "name": printable(measured.data)},
        "metrics": metrics,
    }
    return data | {
        "metrics": ["accuracy"],
        "model-index": [{"name": printable(name), "results": [result]}],
    }


def _use(images: ImagesRead) -> str:
    picture = "PIL image in RGB" if images.channels == 3 else f"PIL image of {images.channels} channel(s)"
    return f"""## Use

In this folder; of the Hub, the name is `hf-hub:OWNER/NAME`:

```python
import timm, vitas.timm
network = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
```

`network(transform(image).unsqueeze(0))`, of a {picture}, gives the logits. The names of the classes are
`network.pretrained_cfg["label_names"]`, in their order.
"""


def _architecture(architecture: Architecture, images: ImagesRead, num_classes: int, facts: Mapping[str, object]) -> str:
    costs = architecture.costs(images.size, num_classes)
    rows = [
        ("text form", f"`{architecture}`"),
        ("patch size", f"{architecture.patch_size}"),
        ("embedding dim", f"{architecture.embed_dim}"),
        ("blocks", f"{architecture.depth}"),
        ("images", f"{images.channels} x {images.size} x {images.size}"),
        ("classes", f"{num_classes:,}"),
    ]
    if images.channels == 3:
        # Costs are counted for RGB.
        rows.append(("multiply-adds of an image", f"{costs['macs']:,}"))
        rows.append(("parameters", f"{costs['parameters']:,}"))
    # What stands elsewhere in the card, or in the table already.
    told = {"architecture", "class_names", "image_size", "num_classes", "crop_fraction", *costs}
    rows += [(key, _inline(value)) for key, value in facts.items() if key not in told]
    table = "".join(f"| {_inline(key)} | {value} |\n" for key, value in rows)
    return f"## Architecture\n\n| | |\n|---|---|\n{table}"


def _interval(percent: float, measured: Measured) -> tuple[float, float]:
    found = Accuracy.of(percent, measured.images)
    return found.low, found.high


def _accuracy(measured: Measured | None) -> str:
    if measured is None:
        return "## Accuracy\n\nNo test of exactly these weights is known.\n"
    rows = []
    for label, value in (("top-1", measured.top1), ("top-5", measured.top5)):
        low, high = _interval(value, measured)
        rows.append(f"| {label} | {value:.2f}% | {low:.2f} to {high:.2f}% |\n")
    left_out = f"; {measured.left_out:,} that could not be read are left out" if measured.left_out else ""
    return (
        f"## Accuracy\n\nOn {measured.images:,} images of {_inline(measured.data)}{left_out}:\n\n"
        f"| | | 95% interval |\n|---|--:|--:|\n{''.join(rows)}| loss | {measured.loss:.4f} | |\n\n"
        "The interval (Wilson) is that of so few test images; another training, or other images, differ by more.\n"
    )


def _training(trained: Trained | None) -> str:
    if trained is None:
        return "## Training\n\nNot known: the weights come from a file that does not say it.\n"
    images = f"{trained.images:,} images" if trained.images is not None else "images"
    data = f"{images} of {_inline(trained.data)}" if trained.data is not None else images
    of_all = f" of {trained.of_epochs}" if trained.of_epochs not in (None, trained.epochs) else ""
    lines = [f"Trained on {data}, for {trained.epochs}{of_all} epochs."]
    if trained.supernet:
        lines.append(
            "The weights are those of a supernet, which were trained for many networks and not for this alone."
        )
    if trained.started_from is not None:
        lines.append(f"The training started from the weights of {_inline(trained.started_from)}.")
    if trained.teacher is not None:
        lines.append(f"It learned from a teacher beside the labels: {_inline(trained.teacher)}.")
    if trained.changes:
        lines.append("The recipe was changed on the way: the result is that of no single one.")
    return "## Training\n\n" + "\n".join(lines) + "\n"


def _limits(images: ImagesRead, class_names: Sequence[str], measured: Measured | None, license_name: str) -> str:
    names = ", ".join(printable(name) for name in class_names[:_CLASSES_LISTED])
    more = len(class_names) - _CLASSES_LISTED
    listed = "\n".join("    " + line for line in wrap(names + (f" and {more:,} more" if more > 0 else ""), 100))
    lines = [
        f"- It reads images of {images.size} x {images.size} pixels: the shorter side is resized to "
        f"{round(images.size / images.crop_fraction)}, and the centre cropped.",
        "- It answers with one of its classes whatever the picture shows.",
        "- How well its probabilities are calibrated, and what it does on images of another kind than those that it "
        "was trained on, was not measured.",
    ]
    if measured is None:
        lines.append("- Its accuracy is not known.")
    if license_name == UNKNOWN_LICENSE:
        lines.append(
            "- Under which licence the weights are is for whoever trained them to say (`license` in the head of this "
            "file); the train images, and weights that it started from, may restrict it."
        )
    return "## Limits\n\n" + "\n".join(lines) + f"\n\nIts classes:\n\n{listed}\n"


def _inline(value: object) -> str:
    """A value as code within a line, or a cell of a table, whatever it holds."""
    text = value if isinstance(value, str) else json.dumps(value)
    # A backtick ends code, and a bar a cell, also within code.
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"

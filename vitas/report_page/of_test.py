"""Figures of the test: the classes that are got wrong, and what they are taken for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vitas.costs import Array
from vitas.intervals import Accuracy
from vitas.predictions import Predictions
from vitas.report_page.figure import BLUE, Figure, Spec, layered, shown, values

# Classes that a figure has room for.
MOST_CLASSES = 12


def figures(predictions: Predictions) -> Iterator[Figure]:
    """Accuracy of the worst classes with its intervals, and the confusions among them."""
    right, labels = predictions.right(), predictions.labels
    counts = np.bincount(labels, minlength=len(predictions.classes))
    hits = np.bincount(labels[right], minlength=len(predictions.classes))
    there = np.flatnonzero(counts)
    if not len(there):
        return
    predictions = replace(predictions, classes=tuple(map(shown, predictions.classes)))
    worst = there[np.argsort(hits[there] / counts[there], kind="stable")][:MOST_CLASSES]
    yield _by_class(predictions, worst, hits, counts, len(there))
    if confusion := _confusion(predictions, worst, counts):
        yield confusion


def _by_class(predictions: Predictions, worst: Array, hits: Array, counts: Array, there: int) -> Figure:
    rows = []
    for label in worst:
        accuracy = Accuracy.of(100 * hits[label] / counts[label], int(counts[label]))
        rows.append(
            {
                "name": predictions.classes[label],
                "y": round(accuracy.percent, 2),
                "low": round(accuracy.low, 2),
                "high": round(accuracy.high, 2),
                "images": accuracy.images,
            }
        )
    x = {"type": "quantitative", "title": "top-1, %", "scale": {"zero": False}}
    names = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 140}}
    spec = layered(
        [
            {
                "mark": {"type": "rule", "strokeWidth": 1.4},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": names},
            },
            {
                "mark": {"type": "circle", "size": 60, "color": BLUE, "opacity": 1},
                "encoding": {
                    "x": x | {"field": "y"},
                    "y": names,
                    "tooltip": [
                        {"field": "name", "title": "class"},
                        {"field": "y", "title": "top-1, %"},
                        {"field": "low", "title": "from"},
                        {"field": "high", "title": "to"},
                        {"field": "images", "title": "images", "format": ","},
                    ],
                },
            },
        ],
        max(90, 22 * len(rows)),
        data=values(rows),
    )
    which = (
        f"The {len(rows)} worst of {there:,} classes" if there > len(rows) else f"All {there} classes, the worst first"
    )
    return Figure(
        "classes", "The worst classes", f"{which}: top-1 of their test images, with 95% intervals.", spec, half=True
    )


def _confusion(predictions: Predictions, worst: Array, counts: Array) -> Figure | None:
    said = predictions.top[:, 0]
    # What the worst are taken for may be classes that are not among the worst.
    wrong = np.isin(predictions.labels, worst) & (said != predictions.labels)
    if not wrong.any():
        return None
    taken = np.bincount(said[wrong], minlength=len(predictions.classes))
    columns = [label for label in np.argsort(-taken, kind="stable")[:MOST_CLASSES] if taken[label]]
    columns = sorted(columns, key=lambda label: (list(worst).index(label) if label in worst else len(worst), label))
    rows: list[Spec] = []
    for label in worst:
        for other in columns:
            number = int(((predictions.labels == label) & (said == other)).sum())
            if number and other != label:
                share = number / int(counts[label])
                rows.append(
                    {
                        "is": predictions.classes[label],
                        "said": predictions.classes[other],
                        "share": share,
                        "images": number,
                    }
                )
    names, others = ([predictions.classes[label] for label in group] for group in (worst, columns))
    most = max(row["share"] for row in rows)
    y = {"field": "is", "type": "nominal", "title": "class", "sort": names, "axis": {"labelLimit": 140}}
    x: Spec = {"field": "said", "type": "nominal", "title": "taken for", "sort": others}
    x["axis"] = {"labelAngle": -45, "labelLimit": 90, "labelOverlap": False}
    tooltip = [
        {"field": "is", "title": "class"},
        {"field": "said", "title": "taken for"},
        {"field": "images", "format": ","},
        {"field": "share", "title": "of the class", "format": ".1%"},
    ]
    colour = {"field": "share", "type": "quantitative", "scale": {"domain": [0, most]}, "legend": None}

    def numbers(style: str, test: str) -> Spec:
        return {
            "transform": [{"filter": f"datum.share >= 0.005 && {test}"}],
            "mark": {"type": "text", "fontSize": 10, "style": style},
            "encoding": {"x": x, "y": y, "text": {"field": "share", "format": ".0%"}, "tooltip": tooltip},
        }

    spec = layered(
        [
            {
                "mark": {"type": "rect", "cornerRadius": 2},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip},
            },
            numbers("on-weak", f"datum.share <= {most / 2}"),
            numbers("on-strong", f"datum.share > {most / 2}"),
        ],
        max(90, 22 * len(names)),
        data=values(rows),
    )
    return Figure(
        "confusion",
        "What they are taken for",
        "Of each class's test images, the share that is taken for another class.",
        spec,
        half=True,
    )

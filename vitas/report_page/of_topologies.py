"""Figures of As-ViT's search: the path of both scores, the policy's entropy, and the series that was grown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vitas.asvit.genotype import Genotype
from vitas.report_page.figure import BLUE, GREY, Figure, Spec, curve, layered, quantitative, values
from vitas.report_page.read import RunRecord, thinned

# As the search's own rewards and log lines.
WINDOW = 20


def figures(run: RunRecord) -> Iterator[Figure]:
    scores = {
        "length_distortion": (
            "length-distortion",
            "Length distortion",
            "The larger, the more expressive: it should rise.",
        ),
        "ntk_condition": ("ntk-condition", "Condition of the NTK", "The smaller, the easier to train: it should fall."),
    }
    for field, (name, title, text) in scores.items():
        points = [(i, getattr(topology, field)) for i, topology in enumerate(run.topologies, 1)]
        points = [(i, value) for i, value in points if math.isfinite(value)]
        if points:
            what = f"{text} A point is a topology in the order of the search, the line a mean over {WINDOW}."
            yield Figure(f"asvit-{name}", title, what, _path(points, title), half=True)
    if entropy := run.curves.get("search", {}).get("asvit/entropy"):
        rows = [{"step": step, "y": value, "series": "entropy"} for step, _, value in entropy]
        yield Figure(
            "asvit-entropy",
            "Entropy of the policy",
            "In nats, of all choices together. It falls as the policy settles; one that stays level learns nothing.",
            curve(rows, "step", "step", "entropy", height=200),
            half=True,
        )
    grown = [(name, a) for name, a in reversed(run.found.items()) if isinstance(a, Genotype)]
    if run.is_asvit and len(grown) > 1:
        series = _series(run, grown)
        if series:
            yield series


def _path(points: Sequence[tuple[int, float]], title: str) -> Spec:
    means = []
    for at in range(1, len(points) + 1):
        window = [value for _, value in points[max(0, at - WINDOW) : at]]
        means.append({"x": points[at - 1][0], "y": round(sum(window) / len(window), 5)})
    x, y = quantitative("x", "topologies scored", nice=False), quantitative("y", title.lower().replace("ntk", "NTK"))
    ratio = max(v for _, v in points) / max(min(v for _, v in points), 1e-9)
    if ratio > 50 and min(v for _, v in points) > 0:
        y["scale"] = {"type": "log", "nice": True}
    return layered(
        [
            {
                "data": values([{"x": i, "y": round(value, 5)} for i, value in thinned(list(points))]),
                "mark": {"type": "circle", "color": GREY, "size": 18, "opacity": 0.7},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [{"field": "x", "title": "topology"}, {"field": "y", "title": title}],
                },
            },
            {
                "data": values(thinned(means)),
                "mark": {"type": "line", "color": BLUE, "strokeWidth": 2},
                "encoding": {"x": x, "y": y},
            },
        ],
        220,
    )


def _series(run: RunRecord, grown: Sequence[tuple[str, Genotype]]) -> Figure | None:
    rows: list[Spec] = [
        {"name": name, "x": costs[0], "y": costs[1], "architecture": str(genotype)}
        for name, genotype in grown
        if (costs := run.costs(genotype))
    ]
    if not rows:
        return None
    x, y = (
        quantitative(field, title, axis={"format": "~s"}, scale={"domain": [0, 1.05 * max(row[field] for row in rows)]})
        for field, title in (("x", "MACs of an image"), ("y", "parameters"))
    )
    tooltip = [
        {"field": "name"},
        {"field": "x", "title": "MACs", "format": ","},
        {"field": "y", "title": "parameters", "format": ","},
        {"field": "architecture"},
    ]
    spec = layered(
        [
            {"mark": {"type": "line", "color": BLUE, "strokeWidth": 1.3}, "encoding": {"x": x, "y": y}},
            {
                "mark": {"type": "circle", "color": BLUE, "size": 70, "opacity": 1, "cursor": "pointer"},
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
        ],
        220,
        data=values(rows),
    )
    return Figure(
        "asvit-series",
        "The grown series",
        f"{len(rows)} networks, each with a block more than the one before, and wider.",
        spec,
        pins=True,
        hint="Click one to draw it below.",
        half=True,
    )

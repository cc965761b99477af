"""Figures of trainings: the supernet's, with its panel and what it saw, and the found network's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from vitas.report_page.figure import BLUE, GREY, ORANGE, Figure, Spec, curve, layered, quantitative, values
from vitas.report_page.read import RunRecord

# Names of scalars: what a line is called.
_TOP1 = {"val/top1": "val", "val/raw_top1": "val, weights in training"}


def curves(run: RunRecord, stage: str) -> Iterator[Figure]:
    """Loss, val top-1 and learning rate of a training, where its metrics have them."""
    found = run.curves.get(stage, {})
    of = "the supernet" if stage == "search" else "the found network"
    loss = {"train/loss": "training", "val/loss": "val"}
    if rows := _rows(found, loss):
        text = f"Cross-entropy while {of} trains" + (
            "; each step trains other subnets, so it is a mean over them." if stage == "search" else "."
        )
        yield Figure(f"{stage}-loss", "Loss", text, _curve(rows, "loss"), half=True)
    if rows := _rows(found, _TOP1):
        averaged = " The solid line is of the averaged weights, which are tested." if "val/raw_top1" in found else ""
        yield Figure(
            f"{stage}-top1", "Top-1 on val images", f"In percent.{averaged}", _curve(rows, "top-1, %"), half=True
        )
    if rows := _rows(found, {"train/lr": "learning rate"}):
        text = "Warm-up, then down along a cosine; a jump that is not in the schedule is a change on resume."
        yield Figure(f"{stage}-lr", "Learning rate", text, _curve(rows, "learning rate", axis="~g"), half=True)


def _rows(found: Mapping[str, Sequence[tuple[int, float | None, float]]], names: Mapping[str, str]) -> list[Spec]:
    # By epochs, which trainings of any batch size share; by steps where a point has none.
    points = [(name, *point) for name in names for point in found.get(name, ())]
    by_epoch = all(epoch is not None for _, _, epoch, _ in points)
    return [
        {"at": epoch if by_epoch else step, "unit": "epoch" if by_epoch else "step", "y": value, "series": names[name]}
        for name, step, epoch, value in points
    ]


def _curve(rows: list[Spec], title: str, axis: str | None = None) -> Spec:
    unit = rows[0]["unit"]
    spec = curve([{k: row[k] for k in ("at", "y", "series")} for row in rows], "at", unit, title, height=220)
    if axis:
        for layer in spec["layer"]:
            layer["encoding"]["y"] = layer["encoding"]["y"] | {"axis": {"format": axis}}
    return spec


def panel(run: RunRecord) -> Figure | None:
    """The subnets of the panel, each a line, and their mean."""
    if not run.panel:
        return None
    rows: list[Spec] = [{"epoch": e, "y": top1, "architecture": a} for e, a, top1 in run.panel]
    epochs = sorted({row["epoch"] for row in rows})
    means = []
    for epoch in epochs:
        of = [row["y"] for row in rows if row["epoch"] == epoch]
        means.append({"epoch": epoch, "y": sum(of) / len(of)})
    x, y = quantitative("epoch", "epoch", axis={"tickMinStep": 1}), quantitative("y", "top-1, %")
    tooltip = [{"field": "architecture"}, {"field": "epoch"}, {"field": "y", "title": "top-1, %", "format": ".2f"}]
    spec = layered(
        [
            {
                "data": values(rows),
                "mark": {
                    "type": "line",
                    "color": GREY,
                    "opacity": 0.6,
                    "strokeWidth": 1,
                    "point": {"size": 14, "color": GREY},
                },
                "encoding": {"x": x, "y": y, "detail": {"field": "architecture"}, "tooltip": tooltip},
            },
            {
                "data": values(means),
                "mark": {"type": "line", "color": BLUE, "strokeWidth": 2.2},
                "encoding": {"x": x, "y": y},
            },
        ],
        220,
    )
    count = len({a for _, a, _ in run.panel})
    return Figure(
        "panel",
        "The panel",
        f"Val top-1 of {count} subnets of the budget, drawn once, while the supernet trains; in blue their mean. Lines "
        "that cross less and less mean a ranking that has settled.",
        spec,
        half=True,
    )


def seen(run: RunRecord, budget: tuple[float, float] | None) -> Iterator[Figure]:
    """What training saw: costs against the budget, depths, patch sizes."""
    costs: Any = run.seen.get("costs")
    if _is_histogram(costs):
        bars = [
            {"from": a, "to": b, "share": share}
            for (a, b), share in zip(pairwise(costs["edges"]), costs["share"], strict=True)
        ]
        x = {
            "field": "from",
            "type": "quantitative",
            "title": "MACs of a subnet",
            "axis": {"format": "~s"},
            "scale": {"zero": False},
        }
        layers: list[Spec] = []
        layers.append(
            {
                "data": values(bars),
                "mark": {"type": "bar", "color": BLUE, "opacity": 0.85, "binSpacing": 1},
                "encoding": {
                    "x": x | {"bin": "binned"},
                    "x2": {"field": "to"},
                    "y": quantitative("share", "share of the subnets", zero=True, axis={"format": "%"}),
                    "tooltip": [
                        {"field": "from", "title": "from", "format": ".3s"},
                        {"field": "to", "title": "to", "format": ".3s"},
                        {"field": "share", "format": ".1%"},
                    ],
                },
            }
        )
        if budget:
            layers.append(
                {
                    "data": values([{"from": budget[0], "to": budget[1]}]),
                    "mark": {"type": "rect", "color": ORANGE, "opacity": 0.45},
                    "encoding": {"x": x, "x2": {"field": "to"}},
                }
            )
        inside = run.seen.get("in_budget")
        told = (
            f" {inside:.0%} of the subnets were in the budget (the band)."
            if isinstance(inside, float) and budget
            else ""
        )
        yield Figure(
            "seen-costs",
            "What training saw: cost",
            f"The subnets that steps trained, by MACs.{told}",
            layered(layers, 180),
            half=True,
        )
    depths = run.seen.get("depths")
    rows = [{"what": str(k), "share": v} for k, v in depths.items()] if isinstance(depths, Mapping) else []
    if rows and all(isinstance(row["share"], int | float) for row in rows):
        yield Figure(
            "seen-depths",
            "What training saw: depth and patches",
            _patches(run.seen),
            layered(
                [
                    {
                        "mark": {"type": "bar", "color": BLUE, "opacity": 0.85},
                        "encoding": {
                            "x": {
                                "field": "what",
                                "type": "ordinal",
                                "title": "blocks",
                                "sort": None,
                                "axis": {"labelAngle": 0},
                            },
                            "y": quantitative("share", "share of the subnets", zero=True, axis={"format": "%"}),
                            "tooltip": [{"field": "what", "title": "blocks"}, {"field": "share", "format": ".1%"}],
                        },
                    }
                ],
                180,
                data=values(rows),
            ),
            half=True,
        )


def _patches(seen: Mapping[str, Any]) -> str:
    shares = [
        f"{value:.0%} patches of {key.removeprefix('patch_size_')}"
        for key, value in seen.items()
        if key.startswith("patch_size_") and isinstance(value, int | float)
    ]
    return f"The subnets that steps trained, by the number of blocks; {', '.join(shares)}." if shares else "By blocks."


def _is_histogram(costs: object) -> bool:
    return (
        isinstance(costs, Mapping)
        and all(isinstance(costs.get(key), list) for key in ("edges", "share"))
        and len(costs["edges"]) == len(costs["share"]) + 1
        and all(isinstance(value, int | float) for value in (*costs["edges"], *costs["share"]))
    )

"""Figures of the search: every scored subnet, how the best got better, and what the good ones have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitas.architecture import Architecture, Block
from vitas.catalog import PUBLISHED_ACCURACY, zoo
from vitas.errors import UserError
from vitas.hypervolume import Hypervolume
from vitas.intervals import Accuracy
from vitas.report_page.figure import BLUE, GREY, ORANGE, RED, Figure, Spec, curve, layered, quantitative, values
from vitas.report_page.read import RunRecord, Scored, thinned

# More points are not told apart, and a page of them is slow; the front and the best are always shown.
MOST_POINTS = 8000


def last_rung(scored: Sequence[Scored]) -> list[Scored]:
    """What the search compared: scores on all val images, after adaptation where there is any; in order of time."""
    for rung in ("adapted", "supernet"):
        if found := [s for s in scored if s.rung == rung]:
            return found
    # Nothing has come through a race yet.
    return [s for s in scored if s.rung == "race"]


def front(scored: Sequence[Scored], cost: Callable[[Scored], float]) -> list[Scored]:
    """Those that no other one beats in cost and top-1, by cost."""
    found: list[Scored] = []
    for each in sorted(scored, key=lambda s: (cost(s), -s.top1)):
        if not found or each.top1 > found[-1].top1:
            found.append(each)
    return found


class SearchView:
    """A run's scores, with their costs as its budget counts them."""

    def __init__(self, run: RunRecord) -> None:
        self.run, self.scored = run, last_rung(run.scored)
        budget = run.setting("sample.budget") or {}
        ends = [budget.get(end) for end in ("minimum", "maximum")]
        self.convention = "released" if budget.get("convention") == "released" else "true"
        has_macs = budget.get("convention") in ("true", "released", True)
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        self.budget = (float(ends[0] or 0), float(ends[1] or 0)) if has_macs and numbers else None
        self.cost_title = "MACs of an image" + (", released convention" if self.convention == "released" else "")
        self.front = front(self.scored, self.cost)
        # Where figures begin: some subnets are far below all others, and would leave these no room.
        tops = sorted(s.top1 for s in self.scored)
        if tops:
            low, high = tops[len(tops) // 4], tops[3 * len(tops) // 4]
            self.floor = max(tops[0], low - 3 * (high - low), 0.0)

    def cost(self, scored: Scored) -> int:
        released = scored.macs_released if self.convention == "released" else None
        return scored.macs if released is None else released

    @property
    def is_inside(self) -> Callable[[Scored], bool]:
        low, high = self.budget or (0, float("inf"))
        return lambda scored: low <= self.cost(scored) <= high

    def row(self, scored: Scored) -> Spec:
        return {
            "x": self.cost(scored),
            "y": round(scored.top1, 3),
            "generation": scored.generation,
            "loss": None if scored.loss is None else round(scored.loss, 4),
            "parameters": scored.parameters,
            "architecture": str(scored.architecture),
        }


def scatter(view: SearchView) -> Figure:
    """Every scored subnet as a point, with the front, the budget and published networks for scale."""
    run = view.run
    shown = view.scored
    left_out = len(shown) - MOST_POINTS
    if left_out > 0:
        best = sorted(shown, key=lambda s: -s.top1)[:500]
        shown = list(dict.fromkeys([*thinned(shown, MOST_POINTS - 500 - len(view.front)), *view.front, *best]))
    rows = [view.row(s) for s in shown]
    low, high = min(row["x"] for row in rows), max(row["x"] for row in rows)
    if view.budget:
        low, high = min(low, view.budget[0]), max(high, view.budget[1])
    around = 0.03 * (high - low) or 0.05 * high
    x = quantitative(
        "x",
        view.cost_title,
        axis={"format": "~s", "tickCount": 8},
        scale={"domain": [low - around, high + around], "nice": False},
    )
    floor, best_top1 = view.floor, max(row["y"] for row in rows)
    above = 0.05 * (best_top1 - floor) or 0.5
    for row in rows:
        row |= {"at": max(row["y"], floor), "below": row["y"] < floor}
    domain = {"domain": [floor - above, best_top1 + above], "nice": False}
    y = quantitative("at", "top-1 of the subnet, %", scale=domain)
    tooltip = [
        {"field": "y", "title": "top-1, %", "format": ".2f"},
        {"field": "loss", "title": "loss", "format": ".4f"},
        {"field": "x", "title": "MACs", "format": ","},
        {"field": "parameters", "title": "parameters", "format": ","},
        {"field": "generation", "title": "generation"},
        {"field": "architecture", "title": "architecture"},
    ]
    layers: list[Spec] = []
    if view.budget:
        layers.append(
            {
                "data": values([{"from": view.budget[0], "to": view.budget[1]}]),
                "mark": {"type": "rect", "color": GREY, "opacity": 0.09},
                "encoding": {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}},
            }
        )
    layers.append(
        {
            "data": values([{"x": view.cost(s), "at": max(round(s.top1, 3), floor)} for s in view.front]),
            "mark": {"type": "line", "interpolate": "step-after", "color": RED, "strokeWidth": 1.3},
            "encoding": {"x": x, "y": y},
        }
    )
    # Last, so that the pointer meets the points.
    layers.append(
        {
            "data": values(rows),
            "mark": {"type": "point", "filled": True, "size": 42, "opacity": 0.8, "cursor": "pointer"},
            "encoding": {
                "x": x,
                "y": y,
                "color": quantitative("generation", "generation", legend={"tickMinStep": 1, "format": "d"}),
                "shape": {"condition": {"test": "datum.below", "value": "triangle-down"}, "value": "circle"},
                "tooltip": tooltip,
            },
        }
    )
    references, told = _references(view, low, high)
    layers[1:1] = references
    count = f"{len(view.scored):,} subnets"
    if left_out > 0:
        count += f", {len(rows):,} of them shown (all of the front and the best 500, others evenly)"
    others = len(run.scored) - len(view.scored) - sum(s.rung == "unseen" for s in run.scored)
    on = f" on {run.searched_on:,} val images" if run.searched_on else ""
    far = sum(row["below"] for row in rows)
    told_others = f" {others:,} more scores are of races, or before adaptation." if others > 0 else ""
    told_far = f" {far:,} far below all others are triangles at the lower edge." if far else ""
    inside = f" The band is the budget; {sum(map(view.is_inside, view.scored)):,} are in it." if view.budget else ""
    text = (
        f"{count}, scored with the supernet's weights{on}. The line is the front: no other one is better and cheaper."
    )
    return Figure(
        "search",
        "Every architecture that was scored",
        f"{text}{told_far}{told_others}{inside}{_noise(view)} {told}".strip(),
        layered(layers, 380),
        pins=True,
        hint="Hover over a point to see it, click to draw it below.",
    )


def _noise(view: SearchView) -> str:
    if not view.run.searched_on or not view.scored:
        return ""
    best = Accuracy.of(max(s.top1 for s in view.scored), view.run.searched_on)
    return f" The 95% interval of the best is {best.low:.1f} to {best.high:.1f}: nearer ones are not told apart."


def _references(view: SearchView, low: float, high: float) -> tuple[list[Spec], str]:
    """Layers for the published networks that fit between two costs, and a sentence about those and the others."""
    if view.run.size is None:
        return [], ""
    image_size, classes = view.run.size
    inside: list[Spec] = []
    beyond: dict[str, int] = {}
    for name, network in zoo().items():
        try:
            network.check_image_size(image_size)
            cost = network.macs(image_size, classes, view.convention)
        except UserError:
            # Its patches do not tile images of this size, or it has no count in this convention.
            continue
        if low <= cost <= high:
            told = f", {PUBLISHED_ACCURACY[name][0]}% trained alone" if view.run.size == (224, 1000) else ""
            inside.append({"x": cost, "name": f"{name.replace('_', ' ')}{told}"})
        else:
            beyond[name] = cost
    told = ""
    if beyond and "deit_tiny" in beyond:
        told = f"For scale: DeiT-Ti would have {beyond['deit_tiny'] / 1e6:,.4g}M MACs on these images."
    if not inside:
        return [], told
    x = {"field": "x", "type": "quantitative"}
    label = {"text": {"field": "name"}, "x": x}
    rules: list[Spec] = [
        {"data": values(inside), "mark": {"type": "rule", "strokeDash": [2, 3]}, "encoding": {"x": x}},
        {
            "data": values(inside),
            "mark": {
                "type": "text",
                "style": "label",
                "angle": 270,
                "align": "left",
                "dx": 4,
                "dy": -5,
                "fontSize": 10,
            },
            "encoding": {**label, "y": {"value": {"expr": "height"}}},
        },
    ]
    return rules, f"Dotted lines: published networks, by what they cost on these images. {told}".strip()


def best_so_far(view: SearchView) -> Figure:
    """The best top-1 in the budget over evaluations, and the mean of each generation."""
    rows: list[Spec] = []
    best = float("-inf")
    inside = [s for s in view.scored if view.is_inside(s)] or view.scored
    for number, scored in enumerate(inside, 1):
        best = max(best, scored.top1)
        rows.append({"evaluations": number, "y": round(best, 3), "series": "best so far"})
    rows = _steps(rows)
    number, first = 0, sum(s.generation == inside[0].generation for s in inside)
    for generation in sorted({s.generation for s in inside}):
        of_it = [s.top1 for s in inside if s.generation == generation]
        number += len(of_it)
        mean = round(sum(of_it) / len(of_it), 3)
        rows.append({"evaluations": number, "y": mean, "series": "mean of a generation"})
    least = min(row["y"] for row in rows if row["evaluations"] >= min(len(inside), first))
    domain = {"domain": [least - 0.5, best + 0.5], "nice": False, "clamp": True}
    spec = curve(rows, "evaluations", "subnets scored", "top-1, %", height=220, y_scale=domain)
    return Figure(
        "best",
        "How the best got better",
        "The best top-1 in the budget after so many scores, and the mean of each generation's children.",
        spec,
        half=True,
    )


def _steps(rows: list[Spec]) -> list[Spec]:
    """The rows where the value changes, the ones before, and the last."""
    return [
        row
        for i, row in enumerate(rows)
        if i in (0, len(rows) - 1) or row["y"] != rows[i - 1]["y"] or row["y"] != rows[i + 1]["y"]
    ]


def hypervolume(scored: Sequence[Scored], cost: Callable[[Scored], float]) -> list[tuple[int, float]]:
    """How many were scored after each generation, and the hypervolume of cost and top-1 up to there."""
    volume, found = Hypervolume(), []
    for generation in sorted({s.generation for s in scored}):
        objectives = [(cost(s), -s.top1) for s in scored if s.generation == generation]
        found.append((sum(s.generation <= generation for s in scored), volume.add(np.array(objectives))))
    return found


def hypervolume_so_far(view: SearchView) -> Figure | None:
    points = hypervolume(view.scored, view.cost)
    if len(points) < 2:
        return None
    rows = [{"evaluations": n, "y": round(volume, 4), "series": "hypervolume"} for n, volume in points]
    spec = curve(rows, "evaluations", "subnets scored", "hypervolume", height=220, interpolate="step-after")
    return Figure(
        "hypervolume",
        "How the front grew",
        "How much the front of cost and top-1 dominates: 1 is one subnet as cheap as the cheapest and as good as the "
        "best of the first generation. A search that has found all there is stays level.",
        spec,
        half=True,
    )


# Of a position, what was chosen there; a genome's identities come last.
_OF_BLOCKS: dict[str, Callable[[Block], int]] = {
    "heads": lambda block: block.heads,
    "qkv dim": lambda block: block.qkv_dim,
    "MLP dim": lambda block: block.mlp_dim,
}
_OF_NETWORK: dict[str, Callable[[Architecture], int]] = {
    "patch": lambda a: a.patch_size,
    "dim": lambda a: a.embed_dim,
    "blocks": lambda a: a.depth,
}
_FIRST, _LAST = "first generation", "last generation"
NO_BLOCK = "no block"
_RINGS = "Rings: shares in the first generation. Discs: in the best."


class Choices:
    """What the first generation chose, and what the survivors of the last one have: the best of all scores."""

    def __init__(self, view: SearchView) -> None:
        inside = [s for s in view.scored if view.is_inside(s)] or view.scored
        population = view.run.setting("sample.population")
        self._first = [s.architecture for s in inside if s.generation == 0]
        size = max(5, min(population if isinstance(population, int) else len(self._first), len(inside) // 2))
        ranked = sorted(inside, key=lambda s: (s.loss is None, s.loss or 0, -s.top1))
        self._last = [s.architecture for s in ranked[:size]] if len({s.generation for s in inside}) > 1 else []

    def __bool__(self) -> bool:
        return bool(self._first and self._last)

    @property
    def text(self) -> str:
        return (
            f"Rings: the {len(self._first)} subnets of the first generation. Discs: the {len(self._last)} best of all, "
            "which the last generation is bred from. A disc larger than its ring was chosen more often than by chance."
        )

    def figures(self) -> Iterator[Figure]:
        if of_network := self._of_network():
            yield of_network
        for what, read in _OF_BLOCKS.items():
            yield self._of_blocks(what, read)

    def _shares(self, read: Callable[[Architecture], int]) -> Iterator[tuple[int, str, float]]:
        """(value, group, share) of each value that either group has."""
        found = {group: [read(a) for a in of] for group, of in ((_FIRST, self._first), (_LAST, self._last))}
        for value in sorted(set(found[_FIRST]) | set(found[_LAST])):
            for group, values_of in found.items():
                yield value, group, values_of.count(value) / len(values_of)

    def _of_network(self) -> Figure | None:
        rows: list[Spec] = [
            {
                "choice": f"{what} {value}" if what != "blocks" else f"{value} block{'s' * (value > 1)}",
                "group": group,
                "share": share,
            }
            for what, read in _OF_NETWORK.items()
            for shares in [list(self._shares(read))]
            # What had to be is no choice.
            if len({value for value, _, _ in shares}) > 1
            for value, group, share in shares
        ]
        if not rows:
            return None
        order = list(dict.fromkeys(row["choice"] for row in rows))
        x = {"field": "share", "type": "quantitative", "title": "share", "axis": {"format": "%", "tickCount": 5}}
        y = {"field": "choice", "type": "nominal", "title": None, "sort": order, "axis": {"grid": True}}
        spec = layered(
            [
                {
                    "mark": {"type": "rule", "strokeWidth": 1},
                    "encoding": {
                        "y": y,
                        "x": x | {"aggregate": "min"},
                        "x2": {"field": "share", "aggregate": "max"},
                    },
                },
                *_marks(
                    {
                        "x": x | {"scale": {"domain": [0, 1]}},
                        "y": y,
                        "tooltip": _tooltip("choice"),
                        "size": {"value": 70},
                    }
                ),
            ],
            15 * len(order),
            data=values(rows),
        )
        return Figure("choices-network", "Patch size, embedding dim, depth", "", spec, half=True, legend=_RINGS)

    def _of_blocks(self, what: str, read: Callable[[Block], int]) -> Figure:
        depth = max(a.depth for a in (*self._first, *self._last))
        rows: list[Spec] = []
        for position in range(depth):
            chosen = self._shares(lambda a, i=position: read(a.blocks[i]) if i < len(a.blocks) else 0)  # type: ignore[misc]  # the default binds it
            rows += [{"block": position + 1, "value": v, "group": g, "share": share} for v, g, share in chosen]
        order = [str(value) if value else NO_BLOCK for value in sorted({row["value"] for row in rows}, reverse=True)]
        for row in rows:
            row["choice"] = str(row.pop("value")) if row["value"] else NO_BLOCK
        size = {
            "field": "share",
            "type": "quantitative",
            "scale": {"domain": [0, 1], "range": [0, 340]},
            "legend": None,
        }
        encoding = {
            "x": {"field": "block", "type": "ordinal", "title": "block", "axis": {"labelAngle": 0}},
            "y": {"field": "choice", "type": "nominal", "title": None, "sort": order, "axis": {"grid": False}},
            "size": size,
            "tooltip": _tooltip("choice"),
        }
        name = f"choices-{what.replace(' ', '-').lower()}"
        title = f"{what[0].upper()}{what[1:]} of each block"
        return Figure(
            name, title, "", layered(_marks(encoding), 26 * len(order), data=values(rows)), half=True, legend=_RINGS
        )


def _tooltip(choice: str) -> list[Spec]:
    return [{"field": choice}, {"field": "group", "title": "of"}, {"field": "share", "format": ".0%"}]


def _marks(encoding: Spec) -> list[Spec]:
    """Discs for the last generation, and over them rings for the first."""
    return [
        {
            "transform": [{"filter": {"field": "group", "equal": _LAST}}],
            "mark": {"type": "circle", "color": ORANGE, "opacity": 0.9},
            "encoding": encoding,
        },
        {
            "transform": [{"filter": {"field": "group", "equal": _FIRST}}],
            "mark": {"type": "point", "color": BLUE, "strokeWidth": 1.5, "filled": False, "opacity": 1},
            "encoding": encoding,
        },
    ]

"""`Figure`: a Vega-Lite specification with its title and what it says, and the parts that all figures share.

One specification serves the page, the SVG and the PNG, so they cannot say different things. Colours are those of Okabe
and Ito, and viridis where they mean an amount: people with any colour vision tell them apart. A specification holds no
colour of text, axes or background: `theme` has those, for light and for dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Spec: TypeAlias = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
GREY = "#8b949e"
# Of runs side by side, and of other things without an order.
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Figure:
    """name: of its files. title: a short heading. text: what is seen, how it was made, and from how much.

    pins: a click on one of its points, which hold a field `architecture`, draws that architecture below.
    half: it needs half the width of a page.
    hint: what the pointer does, where there is one. legend: what a page says once for several figures.
    """

    name: str
    title: str
    text: str
    spec: Spec
    pins: bool = False
    half: bool = False
    hint: str = ""
    legend: str = ""


def layered(layers: Sequence[Spec], height: int = 260, **further: Any) -> Spec:
    """A specification of layers, or of the one, as wide as the page."""
    body = dict(layers[0]) if len(layers) == 1 else {"layer": list(layers)}
    return {"width": "container", "height": height, **body, **further}


def quantitative(field: str, title: str | None, zero: bool = False, **further: Any) -> Spec:
    """An encoding of numbers."""
    scale = {"zero": zero, "nice": True, **further.pop("scale", {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **further}


def values(rows: Sequence[Spec]) -> Spec:
    return {"values": list(rows)}


# What dark mode shows in place of colours that are too dark there.
IN_THE_DARK = {BLUE: "#4aa3df", GREEN: "#2bbd92", RED: "#f0883e", PINK: "#d99bbd"}


def theme(dark: bool) -> Spec:
    """The part of a specification's `config` that light and dark mode differ in, and fonts.

    Its styles are of text: `label`, and `on-weak` and `on-strong` over the colours of a `heatmap`.
    """
    ink, faint, line = ("#d1d7e0", "#9198a1", "#30363d") if dark else ("#1f2328", "#59636e", "#d8dee4")
    text = {"labelColor": faint, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": 500}
    weak, strong = ("#17212e", "#62b5ff") if dark else ("#eaf2fa", "#08519c")
    return {
        "background": None,
        "font": FONT,
        "padding": 2,
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": line,
            "gridOpacity": 0.6,
            "domain": False,
            "tickColor": line,
            "tickSize": 4,
            "titlePadding": 8,
            "labelLimit": 200,
            "labelOverlap": True,
        },
        "legend": {
            **text,
            "orient": "top",
            "symbolType": "circle",
            "titleAnchor": "start",
            "gradientLength": 140,
            "gradientThickness": 8,
            "labelLimit": 260,
        },
        "header": text,
        "text": {"fontSize": 11},
        "rule": {"color": faint},
        "style": {
            # Not in `text`, which would win over a style.
            "label": {"color": ink},
            "on-weak": {"color": ink},
            "on-strong": {"color": "#0d1117" if dark else "#ffffff"},
        },
        "range": {
            "category": [IN_THE_DARK.get(colour, colour) if dark else colour for colour in COLOURS],
            # Without the ends that would be lost on the page.
            "ramp": {"scheme": "viridis", "extent": [0.2, 1] if dark else [0, 0.92]},
            "heatmap": [weak, strong],
        },
    }


def curve(rows: Sequence[Spec], x: str, x_title: str, y_title: str, **further: Any) -> Spec:
    """Lines of rows {x, y, series}, the values at the pointer in a tooltip; colour and dashes tell series apart."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    shared = {"x": quantitative(x, x_title, nice=False) | {"scale": {"zero": False, "nice": False}}}
    colour: Spec = {"field": "series", "type": "nominal", "title": None, "sort": names}
    if len(names) == 1:
        colour["legend"] = None
    y = quantitative("y", y_title, scale=further.pop("y_scale", {}))
    dashes: Spec = {"field": "series", "type": "nominal", "sort": names, "legend": None}
    dashes["scale"] = {"domain": names, "range": [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [10, 4]][: len(names)]}
    near = {
        "params": [
            {"name": "near", "select": {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}}
        ],
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {
            "y": y,
            "color": colour,
            "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
            "tooltip": [
                {"field": x, "type": "quantitative", "title": x_title, "format": ".4~r"},
                {"field": "y", "type": "quantitative", "title": y_title, "format": ".4~r"},
                *([{"field": "series", "title": "which"}] if len(names) > 1 else []),
            ],
        },
    }
    line = {
        "mark": {"type": "line", "strokeWidth": 1.8, "interpolate": further.pop("interpolate", "linear")},
        "encoding": {"y": y, "color": colour, **({"strokeDash": dashes} if 1 < len(names) <= 6 else {})},
    }
    return layered([line, near], encoding=shared, data=values(rows), **further)


def shown(name: str) -> str:
    """A name from a file system, with a question mark for what is no character: no library takes half of one."""
    return name.encode(errors="replace").decode()


def compact_number(number: float) -> str:
    """1253683200 -> 1.25G; for people to read."""
    for divisor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= divisor:
            return f"{number / divisor:.3g}{letter}"
    return f"{number:.3g}"

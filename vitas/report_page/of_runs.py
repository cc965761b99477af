"""Figures and tables of accuracies: one run's or several, with intervals, and where runs differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitas.errors import is_integer
from vitas.intervals import Accuracy
from vitas.report_page.figure import BLUE, Figure, curve, layered, values
from vitas.report_page.of_search import SearchView
from vitas.report_page.read import RunRecord
from vitas.run import STAGES, stages_of

# Keys of the configuration that differ between any two runs, and say nothing.
_PLACES = ("save_path", "port")


def accuracy_of(results: Mapping[str, Any] | None, key: str = "top1") -> Accuracy | None:
    """An accuracy of a results.json with its interval; None where it does not say of how many images."""
    images = (results or {}).get("images")
    return Accuracy.of(results[key], images) if results and is_integer(images) and images > 0 else None


def intervals(runs: Sequence[RunRecord]) -> Figure | None:
    """Top-1 on test images of runs side by side, with intervals."""
    measured = [(run.name, found) for run in runs if (found := accuracy_of(run.results))]
    if len(measured) < 2:
        return None
    rows = [
        {"run": name, "y": round(a.percent, 2), "low": round(a.low, 2), "high": round(a.high, 2), "images": a.images}
        for name, a in measured
    ]
    x = {"type": "quantitative", "title": "top-1 on test images, %", "scale": {"zero": False}, "axis": {"tickCount": 8}}
    y = {"field": "run", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 160}}
    tooltip = [
        {"field": "run"},
        {"field": "y", "title": "top-1, %"},
        {"field": "low", "title": "from"},
        {"field": "high", "title": "to"},
        {"field": "images", "format": ","},
    ]
    spec = layered(
        [
            {
                "mark": {"type": "rule", "strokeWidth": 1.6},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y},
            },
            {
                "mark": {"type": "circle", "size": 80, "color": BLUE, "opacity": 1},
                "encoding": {"x": x | {"field": "y"}, "y": y, "tooltip": tooltip},
            },
        ],
        max(70, 34 * len(rows)),
        data=values(rows),
    )
    text = "Lines are 95% intervals of the number of test images; they say nothing of what another seed would give."
    return Figure("runs", "Top-1 of the runs", text, spec)


def overlaid(runs: Sequence[RunRecord]) -> Iterator[Figure]:
    """The fronts and the trainings of runs, one line a run."""
    fronts = []
    for run in runs:
        view = SearchView(run)
        fronts += [{"x": view.cost(s), "y": round(s.top1, 3), "series": run.name} for s in view.front]
    if len({row["series"] for row in fronts}) > 1:
        yield Figure(
            "runs-front",
            "Fronts of the searches",
            "Top-1 of subnets with shared weights; weights of other supernets may score the same network otherwise.",
            curve(fronts, "x", "MACs of an image", "top-1 of the subnet, %", height=260, interpolate="step-after"),
            half=True,
        )
    for name, title in (
        ("train/loss", "Loss of the found network's training"),
        ("val/top1", "Its top-1 on val images, %"),
    ):
        points = [(run.name, *point) for run in runs for point in run.curves.get("retrain", {}).get(name, ())]
        if len({point[0] for point in points}) > 1:
            by_epoch = all(epoch is not None for _, _, epoch, _ in points)
            rows = [
                {"at": epoch if by_epoch else step, "y": value, "series": run} for run, step, epoch, value in points
            ]
            unit = "epoch" if by_epoch else "step"
            spec = curve(rows, "at", unit, name.partition("/")[2], height=260)
            yield Figure(f"runs-{name.replace('/', '-')}", title, "One line a run.", spec, half=True)


def verdicts(runs: Sequence[RunRecord]) -> Iterator[str]:
    """For each two runs with results, whether one is better by more than chance; by the same images if possible."""
    measured = [(run, found) for run in runs if (found := accuracy_of(run.results))]
    for i, (first, a) in enumerate(measured):
        for second, b in measured[i + 1 :]:
            (better, high), (worse, low) = sorted(((first, a), (second, b)), key=lambda pair: -pair[1].percent)
            gap = f"{high.percent - low.percent:.2f} points"
            text = (
                f"{better.name} has {gap} more than {worse.name}"
                if high.may_be_ranked(low)
                else f"{better.name} and {worse.name} are not ranked: they are {gap} apart, inside an interval"
            )
            yield text + _paired(better, worse)


def _paired(better: RunRecord, worse: RunRecord) -> str:
    """What the same images say: McNemar's exact test, which needs a smaller difference than two intervals."""
    a, b = better.predictions, worse.predictions
    if a is None or b is None or a.files != b.files:
        return "."
    only_a, only_b = int((a.right() & ~b.right()).sum()), int((b.right() & ~a.right()).sum())
    p = sign_test(only_a, only_b)
    told = f"p {'below 0.0001' if p < 1e-4 else f'= {p:.2g}'}"
    return (
        f". Of the same {len(a.files):,} images {only_a:,} are right in {better.name} alone and {only_b:,} in "
        f"{worse.name} alone (McNemar's {told})."
    )


def sign_test(one: int, other: int) -> float:
    """The two-sided probability of so uneven a split of one + other fair coins."""
    count, fewer = one + other, min(one, other)
    if count == 0:
        return 1.0
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * float(np.exp(np.array(logs) - count * math.log(2)).sum()))


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The keys of the configuration in which runs differ, and each run's value.

    Of a stage that is not in all of them only that, unless others that have it differ in it.
    """
    found = [_configuration(run) for run in runs]
    partial = [name for name in STAGES if 0 < sum(name in each for each in found) < len(found)]
    rows = [(name, ["was run" if name in each else "was not" for each in found]) for name in partial]
    flat = [dict(_flat(each)) for each in found]
    for key in dict.fromkeys(key for each in flat for key in each):
        having = [each for each, whole in zip(flat, found, strict=True) if key.partition(".")[0] in whole]
        if len({str(each.get(key)) for each in having}) > 1 and key not in _PLACES:
            rows.append((key, [str(each.get(key, "-")) for each in flat]))
    return rows


def _configuration(run: RunRecord) -> Mapping[str, Any]:
    """Of each stage's section what the last start of its program was given; of the others, what the last start was."""
    found: dict[str, Any] = {}
    for start in run.starts:
        found |= {key: value for key, value in start.config.items() if key not in STAGES}
        found |= {name: start.config[name] for name in stages_of(start.program) if name in start.config}
    return found


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

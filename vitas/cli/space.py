"""`vitas space`: what a search space and its budget hold, and what a search takes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from vitas import config as configuration
from vitas.cli.options import POSITIVE, command, config_arguments, json_option, print_json
from vitas.data.folders import count_images
from vitas.run import MEASURE_COST, load
from vitas.space_costs import Histogram, SpaceCosts, costs_of_space

# Characters of the longest bar.
_WIDTH = 40


@command(
    "vitas space vitas_1g.yaml",
    "vitas space vitas_1g.yaml sample.budget.minimum=40% sample.budget.maximum=50%",
    "vitas space vitas_1g.yaml --measure                       # speeds, and what the search takes here",
    "vitas space vitas_1g.yaml --json",
)
@config_arguments
@click.option("--measure", is_flag=True, help="Measure speeds, and what the search takes here; a minute or so.")
@click.option(
    "--draws", type=POSITIVE, default=20_000, metavar="N", help="Random architectures of the histograms (20,000)."
)
@json_option
def space(config: str, overrides: tuple[str, ...], measure: bool, draws: int, as_json: bool) -> None:
    """Show how many architectures a search space holds, what they cost, and how many are in the budget.

    The histograms are of random architectures, every choice equally likely. A budget may be a share of the widest
    network: sample.budget.maximum=60%.
    """
    path = configuration.find(config, "search")
    loaded = configuration.load(path, overrides)
    images = None
    data = getattr(loaded.search, "data", None)
    if data is not None and Path(data.data_dir).is_dir():
        images = count_images(data.data_dir, data.part)
    found = costs_of_space(loaded, draws, images)
    measured: dict[str, Any] = {}
    histograms = list(found.histograms)
    if measure:
        from vitas.program import quick_imports

        with quick_imports():
            of_search = load(MEASURE_COST)
        measured = of_search(loaded, draws, _say)
        speeds = measured.pop("speeds", None)
        if speeds is not None:
            budget = loaded.budget if loaded.budget is not None and loaded.budget.is_speed else None
            histograms.append(Histogram.of("images per second", speeds, None, budget))
    if as_json:
        print_json(found.to_dict() | {"histograms": [vars(each) for each in histograms], "measured": measured or None})
        return
    print(f"{_amount(found.size)} architectures at {found.image_size} px with {found.num_classes:,} classes")
    if found.budget is not None:
        ends = "" if found.shares is None else f", {found.shares[0]:.0%} to {found.shares[1]:.0%} of the widest network"
        print(f"budget: {found.budget}{ends}")
    for histogram in histograms:
        print("\n".join(["", *draw_histogram(histogram, found.drawn)]))
    print("\n" + "\n".join(_time(found, measured)))


def draw_histogram(histogram: Histogram, drawn: int) -> list[str]:
    """A histogram as lines of text; the bars that reach into the budget are marked."""
    lines = [f"{histogram.name}: {histogram.low:,.0f} to {histogram.high:,.0f}"]
    longest = max(histogram.counts) or 1
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        bar = "█" * round(_WIDTH * count / longest) or ("▏" if count else "")
        budget = histogram.budget
        marked = budget is not None and low <= budget[1] and budget[0] <= high
        ends = f"{_short(low):>7} to {_short(high):<7}"
        lines.append(f"  {ends} {count / drawn:7.2%} {bar}{' ◂ budget' if marked else ''}".rstrip())
    if histogram.inside is not None:
        share, least, most = histogram.inside
        interval = f"95%: {least:.2%} to {most:.2%}"
        lines.append(f"  in the budget: {share:.2%} of {drawn:,} random architectures ({interval})")
    return lines


def _time(found: SpaceCosts, measured: dict[str, Any]) -> list[str]:
    """What the search does, and how long that takes where it was measured."""
    plan = found.plan
    lines = []
    if "epochs" in plan:
        steps = f", {plan['steps']:,} steps" if "steps" in plan else ""
        lines.append(f"search: {plan['epochs']:,} epochs{steps}{_duration(measured, 'search')}")
    if "initialisations" in plan:
        lines.append(f"search: {plan['initialisations']:,} initialisations, and growth{_duration(measured, 'search')}")
    if "scores" in plan:
        lines.append(f"sample: {plan['scores']:,} scores{_duration(measured, 'sample')}")
    if measured:
        lines.append(f"measured on {measured['measured_on']}, for one process")
    elif lines:
        lines.append("--measure says how long that takes here")
    return lines


def _duration(measured: dict[str, Any], stage: str) -> str:
    seconds = measured.get(f"seconds_of_{stage}")
    return "" if seconds is None else f", about {timedelta(seconds=round(seconds))} here"


def _amount(count: int) -> str:
    """A number that may be beyond what a float holds."""
    if count < 10**6:
        return f"{count:,}"
    return f"{count:.3g}" if count < 1e300 else f"1e{len(str(count)) - 1}"


def _short(value: float) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _say(what: str) -> None:
    click.echo(f"measures {what} ...", err=True)

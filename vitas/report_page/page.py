"""`make_page`: the page of one run, or of several side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitas.asvit.genotype import Genotype
from vitas.catalog import AnyArchitecture, parse_architecture, zoo
from vitas.drawing import HIGHEST, STYLE, highest_dim, to_svg
from vitas.report_page import of_runs, of_search, of_test, of_topologies, of_training
from vitas.report_page.figure import IN_THE_DARK, Figure, compact_number, shown, theme
from vitas.report_page.html import Raw, details, embedded_json, figure, paragraph, quiet, table, text
from vitas.report_page.pictures import worst_pictures
from vitas.report_page.read import RunRecord
from vitas.report_page.stages import duration, stages

# Found networks that are drawn; a front may have hundreds.
_MOST_DRAWN = 8


@dataclass
class Page:
    """A page. figures: of all its runs, named once. drawings: SVGs by name. body: its HTML."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    drawings: dict[str, str] = field(default_factory=dict)
    body: str = ""

    def place(self, found: Figure | None, prefix: str = "") -> str:
        """Take a figure into the page, and return the HTML of its place."""
        if found is None:
            return ""
        spec = found.spec
        if found.pins:
            # What is pinned: page.js puts the points there.
            ring = {
                "data": {"name": "pinned", "values": []},
                "mark": {"type": "point", "size": 130, "strokeWidth": 2, "color": "#d55e00", "tooltip": None},
                "encoding": {axis: found.spec["layer"][-1]["encoding"][axis] for axis in ("x", "y")},
            }
            spec = spec | {"layer": [ring, *spec["layer"]]}
        named = replace(found, name=prefix + found.name, spec=spec)
        self.figures.append(named)
        return figure(named, named.name)

    def row(self, found: Sequence[Figure | None], prefix: str = "") -> str:
        """Take figures into the page side by side, and return the HTML of their places."""
        there = [figure for figure in found if figure is not None]
        halves = [figure for figure in there if figure.half]
        # One that would be alone in its row has all of it.
        alone = halves[-1] if len(halves) % 2 else None
        body = "".join(
            self.place(replace(figure, half=False) if figure is alone else figure, prefix) for figure in there
        )
        return f'<div class="figures">{body}</div>' if there else ""

    def html(self, javascript: str) -> str:
        """The whole file. javascript: the plotting library."""
        here = Path(__file__).parent
        css, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        specs = {f.name: {"spec": f.spec, "pins": f.pins} for f in self.figures}
        data = embedded_json(specs, "figures") + embedded_json(
            {"light": theme(False), "dark": theme(True), "inTheDark": IN_THE_DARK}, "themes"
        )
        # Nothing may be fetched, whatever the data holds; Vega compiles its expressions, hence unsafe-eval.
        policy = (
            "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{text(self.title)}</title><style>{STYLE}\n{css}</style></head>\n<body>{self.body}"
            "<noscript><p>Figures need JavaScript; the folder report/ has them as PNG and SVG.</p></noscript>\n"
            f"{data}\n<script>{_inside_script(javascript)}</script>\n<script>{_inside_script(script)}</script></body></html>\n"
        )


def _inside_script(code: str) -> str:
    """Code whose strings cannot end the element; `<\\/` means the same within a string or a regular expression."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def make_page(runs: Sequence[RunRecord]) -> Page:
    """The page of runs, in their order."""
    alone = len(runs) == 1
    _tell_apart(runs)
    page = Page(f"{runs[0].name} · report" if alone else f"{len(runs)} runs · report")
    sections = [] if alone else ["".join(_side_by_side(page, runs))]
    for number, run in enumerate(runs, 1):
        prefix = "" if alone else f"run{number}-"
        parts = list(_sections(page, run, prefix))
        body = "".join(f'<h2 id="{prefix}{key}">{text(title)}</h2>{html}' for key, title, html in parts)
        if alone:
            links = "".join(f'<a href="#{key}">{text(title)}</a>' for key, title, _ in parts)
            sections += [f"<nav>{links}</nav>", body]
        else:
            sections.append(details(run.name, f'<p class="faint">{text(run.folder.root)}</p>{body}', "run"))
    head = text(runs[0].name) if alone else "Runs side by side"
    where = text(runs[0].folder.root.resolve()) if alone else f"{len(runs)} runs"
    glance = _glance(runs[0]) if alone else ""
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    page.body = (
        f'<header><h1>{head}</h1><div class="faint mono">{where}</div>{glance}</header><main>{"".join(sections)}</main>'
        f"<footer>Written by <code>vitas report</code> on {written}. The figures are in report/ too, as PNG and SVG. "
        "Intervals are Wilson's, 95%, of the number of images.</footer>"
    )
    return page


def _tell_apart(runs: Sequence[RunRecord]) -> None:
    """Give runs of one name as much of their paths as makes them differ."""
    parts = {id(run): run.folder.root.resolve().parts for run in runs}
    length = 1
    while len({run.name for run in runs}) < len(runs) and length < max(map(len, parts.values())):
        length += 1
        for run in runs:
            run.name = shown("/".join(parts[id(run)][-length:]))


def _glance(run: RunRecord) -> str:
    """The few numbers that a reader wants first."""
    found: list[tuple[str, str, str]] = []
    if accuracy := of_runs.accuracy_of(run.results):
        told = f"{accuracy.interval} on {accuracy.images:,} test images"
        found.append(("top-1", f"{accuracy.percent:.{accuracy.digits}f}%", told))
    best = _tested(run) or next(iter(run.found.values()), None)
    if best is not None and (costs := run.costs(best)):
        macs, parameters = costs
        found.append(("cost", f"{compact_number(macs)} MACs", f"{compact_number(parameters)} parameters"))
    if run.scored:
        inside = of_search.SearchView(run)
        count = len(inside.scored)
        found.append(
            ("search", f"{count:,} scored", f"best {max(s.top1 for s in inside.scored):.1f}% with shared weights")
        )
    elif run.topologies:
        found.append(("search", f"{len(run.topologies):,} topologies", "scored without training"))
    if seconds := sum(log.seconds for log in run.logs.values()):
        starts = sum(log.starts for log in run.logs.values())
        stages = f"{len(run.logs)} stage{'s' if len(run.logs) > 1 else ''}"
        found.append(("ran", duration(seconds), f"{stages}, {starts} start{'s' if starts > 1 else ''}"))
    rows = "".join(
        f'<div><dt>{text(what)}</dt><dd class="big">{text(big)}</dd><dd class="faint">{text(small)}</dd></div>'
        for what, big, small in found
    )
    return f'<dl class="glance">{rows}</dl>'


def _sections(page: Page, run: RunRecord, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(id, title, HTML) of each section that the run has something for."""

    def figures(found: Sequence[Figure | None]) -> str:
        return page.row(found, prefix)

    if html := _result(run, prefix):
        yield "result", "Result", html
    if run.found:
        yield "found", "What was found", _drawings(page, run, prefix)
    view = of_search.SearchView(run) if run.scored else None
    if view and view.scored:
        parts = [
            of_search.scatter(view),
            of_search.best_so_far(view),
            of_search.hypervolume_so_far(view),
        ]
        html = figures(parts)
        if choices := of_search.Choices(view):
            html += f"<h3>What the good ones have in common</h3>{paragraph(choices.text, 'faint')}"
            html += figures(list(choices.figures()))
        if run.is_elastic:
            html = _front_table(view) + html
            yield "search", "Search: subnets with inherited weights", html
        else:
            yield "search", "Search", html
    if run.is_asvit:
        html = figures(list(of_topologies.figures(run)))
        if "asvit/entropy" not in run.curves.get("search", {}):
            html += quiet(
                "No entropy of the policy here: it is in search/metrics/search.csv, which this run does not have."
            )
        yield "topologies", "Search without training", html
    elif run.seen or run.panel or run.curves.get("search") or "search" in run.logs:
        parts = [
            *of_training.curves(run, "search"),
            of_training.panel(run),
            *of_training.seen(run, view.budget if view else None),
        ]
        html = figures(parts)
        if not run.curves.get("search"):
            html += quiet("No curves of loss and learning rate: this run has no search/metrics/search.csv.")
        yield "supernet", "The supernet's training", html
    if run.curves.get("retrain") or "retrain" in run.logs:
        html = figures(list(of_training.curves(run, "retrain")))
        if not html:
            html = quiet("No curves of loss and learning rate: this run has no retrain/metrics/retrain.csv.")
        yield "retrain", "The found network's training", html
    if run.predictions is not None and len(run.predictions.files):
        html = figures(list(of_test.figures(run.predictions)))
        pictures = worst_pictures(run.predictions)
        if pictures:
            looked = ", and beside each where the last block looked" if len(run.predictions.attention) else ""
            told = paragraph(f"By the loss of their right class{looked}.", "faint")
            html += f"<h3>The images it got most wrong</h3>{told}"
            html += f'<div class="pictures">{pictures}</div>'
        else:
            html += paragraph("Every test image was got right.")
        yield "mistakes", "Mistakes", html
    yield "stages", "Stages", stages(run)


def _tested(run: RunRecord) -> AnyArchitecture | None:
    return parse_architecture(run.results["architecture"]) if run.results else None


def _result(run: RunRecord, prefix: str) -> str:
    """What `test` measured: the last checkpoint, and all where there are several."""
    if not run.results:
        return ""
    rows = run.results.get("checkpoints") or [run.results]
    head = ["checkpoint", "weights", "top-1, %", "95% interval", "top-5, %", "loss", "images", "images/s"]
    body = []
    for row in rows:
        accuracy = of_runs.accuracy_of(row)
        digits = accuracy.digits if accuracy else 2
        body.append(
            [
                Path(str(row.get("checkpoint", ""))).name,
                f"{row.get('weights', '')}{', of the supernet' if row.get('from_supernet') else ''}",
                f"{row['top1']:.{digits}f}",
                accuracy.interval if accuracy else "unknown",
                f"{row['top5']:.{digits}f}",
                f"{row['loss']:.3f}",
                f"{row['images']:,}" if isinstance(row.get("images"), int) else "unknown",
                f"{row['images_per_second']:,.0f}" if isinstance(row.get("images_per_second"), int | float) else "",
            ]
        )
    told = ""
    accuracies = [a for row in rows if (a := of_runs.accuracy_of(row))]
    if len(accuracies) > 1:
        best = max(accuracies, key=lambda a: a.percent)
        near = sum(not best.may_be_ranked(a) for a in accuracies) - 1
        told = paragraph(
            f"The best of the {len(accuracies)} has {best}; {near} of the others are too near to be ranked below it. "
            "The best of several is better here than it will be on other images."
        )
    architecture = f"<p><code>{text(run.results['architecture'])}</code></p>"
    return architecture + table(head, body, numbers=range(2, 8)) + told


def _drawings(page: Page, run: RunRecord, prefix: str) -> str:
    """The found networks to scale, and DeiT-Ti beside them."""
    found = list(run.found.items())
    shown = found[:_MOST_DRAWN]
    scale = HIGHEST / max(highest_dim(a) for _, a in shown)
    html = [
        '<p class="faint"><span class="key" style="background:#0072b2"></span>attention, as high as the qkv dim, cut '
        'into heads<span class="key" style="background:#e69f00"></span>MLP, as high as its dim<span class="key" '
        'style="background:#8b949e55"></span>embedding dim. Gaps are identities; the square is a piece of 32 pixels, '
        "cut into patches.</p>"
    ]
    drawn: list[tuple[str, AnyArchitecture, float, str]] = [(name, a, scale, "") for name, a in shown]
    if not isinstance(shown[0][1], Genotype):
        deit = zoo()["deit_tiny"]
        divisor = 1
        while HIGHEST * divisor * 1.5 < scale * highest_dim(deit):
            divisor *= 2
        note = "" if divisor == 1 else f", at 1/{divisor} of the scale"
        drawn.append(("DeiT-Ti", deit, scale / divisor, note))
    for name, architecture, of, note in drawn:
        svg = to_svg(architecture, of, style=False)
        if name != "DeiT-Ti":
            page.drawings[f"{prefix}{_file_name(name)}"] = to_svg(architecture)
        html.append(
            f'<div><h3>{text(name)}{text(note)}</h3><div class="faint">{text(_costs(architecture, run))}'
            f'</div><div class="drawing">{svg}</div><div class="mono">{text(architecture)}</div></div>'
        )
    if len(found) > len(shown):
        html.append(paragraph(f"{len(found) - len(shown)} more are in {run.folder.architectures.name}.", "faint"))
    return html[0] + f'<div class="found">{"".join(html[1:])}</div>'


def _costs(architecture: AnyArchitecture, run: RunRecord) -> str:
    """What a drawn architecture costs, and how it was scored."""
    if costs := run.costs(architecture):
        told = f"{costs[0]:,} MACs, {costs[1]:,} parameters"
    else:
        told = f"{compact_number(architecture.macs())} MACs at 224 x 224"
    scores = {s.rung: s.top1 for s in run.scored if s.architecture == architecture}
    for rung, where in (("unseen", ", on images that no choice was made by"), ("adapted", ""), ("supernet", "")):
        if rung in scores:
            return f"{told}; top-1 {scores[rung]:.1f}% with shared weights{where}"
    return told


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:80]


def _front_table(view: of_search.SearchView) -> str:
    """The front of subnets with inherited weights: what an exported supernet offers."""
    points = view.front
    most = 20
    shown = points if len(points) <= most else [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
    rows = [
        [f"{view.cost(s):,}", f"{s.parameters:,}", f"{s.top1:.1f}", Raw(f"<code>{text(s.architecture)}</code>")]
        for s in shown
    ]
    more = "" if len(points) == len(shown) else f" {len(shown)} of {len(points)} are listed."
    return paragraph(
        "The subnets on the front, with the weights that they have in the supernet; each can be tested and exported as "
        f"it is.{more}"
    ) + table([view.cost_title, "parameters", "val top-1, %", "architecture"], rows, numbers=(0, 1, 2))


def _side_by_side(page: Page, runs: Sequence[RunRecord]) -> Iterator[str]:
    rows = []
    for run in runs:
        accuracy = of_runs.accuracy_of(run.results)
        best = _tested(run) or next(iter(run.found.values()), None)
        costs = run.costs(best) if best else None
        rows.append(
            [
                run.name,
                f"{accuracy.percent:.{accuracy.digits}f}" if accuracy else "",
                accuracy.interval if accuracy else "not tested yet",
                f"{costs[0]:,}" if costs else "",
                f"{costs[1]:,}" if costs else "",
                f"{len(of_search.last_rung(run.scored)):,}" if run.scored else "",
                duration(seconds) if (seconds := sum(log.seconds for log in run.logs.values())) else "",
                Raw(f"<code>{text(best)}</code>") if best else "",
            ]
        )
    head = ["run", "top-1, %", "95% interval", "MACs", "parameters", "scored", "ran for", "network"]
    yield table(head, rows, numbers=(1, 2, 3, 4, 5, 6))
    yield "".join(paragraph(verdict) for verdict in of_runs.verdicts(runs))
    yield page.row([of_runs.intervals(runs), *of_runs.overlaid(runs)])
    if found := of_runs.differences(runs):
        differing = table(["key", *(run.name for run in runs)], [[key, *values] for key, values in found])
        yield f"<h2>Where their configurations differ</h2>{differing}"

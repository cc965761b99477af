"""The page of a run in a real browser: it draws, answers the pointer, fetches nothing, and fits every screen."""

from __future__ import annotations

import numpy as np
import pytest

from tests.browser import Browser, chromium, require_chromium
from tests.vitas.made_runs import END, MARKUP, SPACE, finished, searched, without_training
from vitas.catalog import zoo
from vitas.drawing import to_svg
from vitas.report_page.write import write_report
from vitas.run import RunFolder

POINTS = 5000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def without_files(monkeypatch):
    """Figures as files are tested below."""
    monkeypatch.setattr("vitas.report_page.write.write_figures", lambda page, folder: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, RunFolder]:
    """One run of each kind; names of classes and files in it are markup."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "finished": finished(folder / "finished", classes=(MARKUP, END, *"cdefghij")),
        "other": finished(folder / "other", seed=1),
        "without training": without_training(folder / "asvit"),
        "large": searched(folder / "large", count=POINTS),
    }


def draw_everything(browser: Browser) -> None:
    """Scroll through a page, and wait until all of its figures are drawn."""
    browser.js("document.querySelectorAll('details.run').forEach((each) => (each.open = true))")
    for number in range(browser.js("return document.querySelectorAll('figure[data-figure]').length")):
        code = "document.querySelectorAll('figure[data-figure]')[arguments[0]].scrollIntoView({block: 'center'})"
        browser.js(code, number)
        state = f"return document.querySelectorAll('figure[data-figure]')[{number}].dataset.state"
        browser.until(lambda state=state: browser.js(state) == "drawn", f"figure {number}")


def place_of(browser: Browser, number: int) -> tuple[float, float]:
    """Where a point of the search's figure is in the window."""
    return browser.js(
        """
        const figure = document.querySelector('figure[data-figure="search"]'), view = figure.vega.view;
        figure.scrollIntoView({block: "center"});
        const points = figures.search.spec.layer.at(-1).data.values, point = points[arguments[0]];
        const box = figure.querySelector("canvas").getBoundingClientRect(), [left, top] = view.origin();
        const x = view.scale("x")(point.x), y = view.scale("y")(point.at);
        return [box.left + left + x, box.top + top + y, point.architecture];
        """,
        number,
    )


def pointer(browser: Browser, kind: str, x: float, y: float) -> None:
    button = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
    browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **button})


def click(browser: Browser, x: float, y: float) -> None:
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        pointer(browser, kind, x, y)


def drawn(browser: Browser, kind: str) -> list[str]:
    """The architectures that are drawn below the search's figure, `pin` or `pin hover`."""
    return browser.js(
        "return [...document.querySelectorAll('figure[data-figure=\"search\"] .pin')]"
        ".filter((each) => each.className === arguments[0]).map((each) => each.querySelector('title').textContent)",
        kind,
    )


@pytest.mark.parametrize("names", [["finished"], ["without training"], ["finished", "other"]])
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_drawn_without_an_error_and_without_a_request(browser, runs, tmp_path, names, dark):
    page = write_report([runs[name].root for name in names], tmp_path / "page.html")
    browser.open(page, dark=dark)
    draw_everything(browser)
    assert browser.console() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [page.resolve().as_uri()]
    assert "report" in browser.driver.title
    sizes = browser.js("return [...document.querySelectorAll('.chart canvas')].map((each) => each.clientWidth)")
    assert min(sizes) > 200


def test_the_pointer_shows_an_architecture_and_a_click_pins_it(browser, runs, tmp_path):
    browser.open(write_report([runs["finished"].root], tmp_path / "page.html"))
    browser.until(
        lambda: browser.js("return document.querySelector('[data-figure=search]').dataset.state") == "drawn", "it"
    )
    x, y, architecture = place_of(browser, 59)
    pointer(browser, "mouseMoved", x, y)
    browser.until(lambda: drawn(browser, "pin hover") == [architecture], "the drawing")
    tooltip = browser.until(
        lambda: browser.js("return document.querySelector('#vg-tooltip-element.visible')?.innerText"), "the tooltip"
    )
    assert architecture in tooltip
    assert "top-1" in tooltip

    click(browser, x, y)
    browser.until(lambda: drawn(browser, "pin") == [architecture], "the pin")
    rings = "return document.querySelector('[data-figure=search]').vega.view.data('pinned').length"
    browser.until(lambda: browser.js(rings) == 1, "the ring")
    other_x, other_y, other = place_of(browser, 3)
    click(browser, other_x, other_y)
    browser.until(lambda: drawn(browser, "pin") == [other, architecture], "both pins")
    # Pins stay when the colours change.
    browser.set_dark(True)
    browser.until(lambda: browser.js(rings) == 2, "the rings in the dark")
    browser.js("document.querySelector('.pin button').click()")
    browser.until(lambda: drawn(browser, "pin") == [architecture], "one pin")
    assert browser.console() == []


def test_a_tooltip_shows_markup_as_text(browser, runs, tmp_path):
    browser.open(write_report([runs["finished"].root], tmp_path / "page.html"))
    browser.js("document.querySelector('[data-figure=confusion]').scrollIntoView({block: 'center'})")
    state = "return document.querySelector('[data-figure=confusion]').dataset.state"
    browser.until(lambda: browser.js(state) == "drawn", "the confusions")

    def hover() -> tuple[str, str] | None:
        # Figures that are drawn meanwhile move what is below them.
        x, y, said = browser.js(
            """
            const figure = document.querySelector("[data-figure=confusion]"), view = figure.vega.view;
            const row = figures.confusion.spec.data.values.find((each) => each.said.includes("<"));
            const box = figure.querySelector("canvas").getBoundingClientRect(), [left, top] = view.origin();
            const middle = (axis, value) => view.scale(axis)(value) + view.scale(axis).bandwidth() / 2;
            return [box.left + left + middle("x", row.said), box.top + top + middle("y", row.is), row.said];
            """
        )
        pointer(browser, "mouseMoved", x + 1, y)
        pointer(browser, "mouseMoved", x, y)
        shown = browser.js("return document.querySelector('#vg-tooltip-element.visible')?.innerText")
        return (said, shown) if shown else None

    said, shown = browser.until(hover, "the tooltip")
    assert said in shown
    assert browser.js("return document.querySelectorAll('img[src=x]').length") == 0
    assert browser.console() == []


def test_thousands_of_points_answer_the_pointer(browser, runs, tmp_path):
    browser.open(write_report([runs["large"].root], tmp_path / "page.html"))
    browser.until(
        lambda: browser.js("return document.querySelector('[data-figure=search]').dataset.state") == "drawn", "it"
    )
    shown = browser.js("return figures.search.spec.layer.at(-1).data.values.length")
    assert shown == POINTS
    # The last drawn is on top, whatever lies below it.
    x, y, architecture = place_of(browser, POINTS - 1)
    click(browser, x, y)
    browser.until(lambda: drawn(browser, "pin") == [architecture], "the pin")


@pytest.mark.parametrize("names", [["finished"], ["without training"], ["finished", "other"]])
def test_a_phone_scrolls_down_and_not_sideways(browser, runs, tmp_path, names):
    page = write_report([runs[name].root for name in names], tmp_path / "page.html")
    browser.open(page, width=360, height=740, mobile=True)
    draw_everything(browser)
    browser.js("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert browser.js("return [document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]
    small = browser.js(
        "return [...document.querySelectorAll('p, figcaption, td, h3')].filter((each) => each.innerText.trim())"
        ".filter((each) => parseFloat(getComputedStyle(each).fontSize) < 11).map((each) => each.innerText)"
    )
    assert small == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_either_mode(browser, runs, tmp_path, dark):
    """4.5 to 1, as WCAG asks of text."""
    browser.open(write_report([runs["finished"].root], tmp_path / "page.html"), dark=dark)
    pairs = browser.js(
        """
        const numbers = (text) => text.match(/\\d+/g).map(Number);
        const paper = getComputedStyle(document.body).backgroundColor;
        return [...new Set([...document.querySelectorAll("h1, h2, p, figcaption, th, td, a, summary, .state-done")]
          .map((each) => getComputedStyle(each).color))].map((ink) => [numbers(ink), numbers(paper)]);
        """
    )
    assert len(pairs) >= 4
    for ink, paper in pairs:
        lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, paper)
    assert (luminance(pairs[0][1]) < 0.1) == dark


def luminance(colour: list[int]) -> float:
    """The relative luminance of sRGB (WCAG 2)."""
    parts = np.array(colour[:3]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_page_draws_what_the_library_draws(browser, runs, tmp_path):
    browser.open(write_report([runs["finished"].root], tmp_path / "page.html"))
    rng = np.random.default_rng(0)
    architectures = [*zoo().values(), *(SPACE.sample(rng) for _ in range(50))]
    found = browser.js("return arguments[0].map((text) => drawArchitecture(text))", [str(a) for a in architectures])
    assert found == [to_svg(a, style=False) for a in architectures]

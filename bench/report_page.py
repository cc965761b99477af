"""How long a report takes: to write, anew and with nothing changed, and until its points answer in a browser.

The limits: a second or two for a run that did not change much, as at every stage's end, and two seconds from opening a
page of 5,000 points to a click that draws one. `python bench/report_page.py --points 5000`
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.browser import chromium
from tests.vitas.made_runs import finished, searched
from vitas.report_page.write import write_report

# Opens the page, and answers with the milliseconds from navigation to a drawn figure, and to a pinned point after that.
_MEASURE = """
const done = arguments[0], figure = document.querySelector('figure[data-figure="search"]');
const look = () => {
  if (figure.dataset.state !== "drawn") return setTimeout(look, 5);
  const drawn = performance.now();
  const point = figures.search.spec.layer.at(-1).data.values.at(-1), view = figure.vega.view;
  const canvas = figure.querySelector("canvas"), box = canvas.getBoundingClientRect(), [left, top] = view.origin();
  const x = box.left + left + view.scale("x")(point.x), y = box.top + top + view.scale("y")(point.at);
  for (const kind of ["pointermove", "mousemove", "pointerdown", "mousedown", "pointerup", "mouseup", "click"])
    canvas.dispatchEvent(new PointerEvent(kind, {bubbles: true, clientX: x, clientY: y}));
  const pinned = () => figure.querySelector(".pin") ? done([drawn, performance.now()]) : setTimeout(pinned, 1);
  pinned();
};
look();
"""


def written(root: Path, output: Path) -> float:
    before = time.perf_counter()
    write_report([root], output)
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5000)
    points = parser.parse_args().points
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small, large = finished(place / "small"), searched(place / "large", count=points)
        written(small.root, place / "warm.html")  # starts the drawing engine, and makes the library's copy in the cache
        print(f"a run of 60 points, all figures anew: {written(small.root, place / 'small.html'):.2f} s")
        print(f"the same with nothing changed: {written(small.root, place / 'small.html'):.2f} s")
        print(f"a run of {points:,} points, all figures anew: {written(large.root, place / 'large.html'):.2f} s")
        size = (place / "large.html").stat().st_size
        with chromium(place / "profile") as browser:
            browser.driver.set_script_timeout(60)
            times = []
            for _ in range(5):
                browser.open(place / "large.html")
                times.append(browser.driver.execute_async_script(_MEASURE))
            drawn, answered = (sorted(column)[2] for column in zip(*times, strict=True))
        print(
            f"its page, {size / 1e6:.1f} MB: drawn after {drawn:.0f} ms, a click drew a point after {answered:.0f} ms"
        )


if __name__ == "__main__":
    main()

"""The site is whole: it builds without a warning, its links lead somewhere, its pictures and examples are true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import vitas
from docs.site.draw import PICTURES, draw
from tests.conftest import small_run
from tests.processes import ENVIRONMENT, REPOSITORY, run_here, run_module
from tests.test_docs import fenced
from vitas import config as configuration
from vitas.intervals import wilson

PAGES = REPOSITORY / "docs"
NOTEBOOK = PAGES / "notebooks" / "digits.ipynb"


# The site


class Links(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        if "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    """The built site: its pages, with their links."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'vitas[docs]'")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {page: Links(page) for page in folder.rglob("*.html")}


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor_of_it(site):
    checked = 0
    for page, links in site.items():
        for target in (*links.targets, *links.loaded):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            # The page for what is not found is shown anywhere, so its links begin at the root.
            start = next(iter(site)).parents[0] if page.name == "404.html" else page.parent
            path = start / unquote(parts.path).lstrip("/") if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            path = Path(os.path.normpath(path))
            assert path.exists(), f"{page.name}: {target}"
            if parts.fragment and path in site:
                assert unquote(parts.fragment) in site[path].anchors, f"{page.name}: {target}"
            checked += 1
    assert checked > 1000


def test_the_site_loads_nothing_from_elsewhere(site):
    for page, links in site.items():
        outside = [target for target in links.loaded if urlsplit(target).netloc]
        assert not outside, f"{page.name} loads {outside}"


def test_every_page_of_the_docs_is_in_the_site(site):
    names = {page.name for page in site}
    assert {f"{page.stem}.html" for page in PAGES.glob("*.md")} <= names
    assert {"index.html", "notebook.html", "bench.html", "security.html"} <= names


def test_the_python_page_has_the_whole_public_surface(site):
    (page,) = (page for page in site if page.name == "python.html")
    assert {f"vitas.{name}" for name in vitas.__all__} <= site[page].anchors


def test_terms_of_docstrings_are_lists():
    pytest.importorskip("griffe")
    from docs.site.docstrings import with_lists

    text = "A thing.\n\na, b: two\n    lines. c: three.\n_d: one. e: more.\nAnd: so on.\n\nnot: here\n  inside"
    assert with_lists("a: b") == "a: b"
    assert with_lists(text).splitlines()[2:5] == ["- `a`, `b`: two", "    lines. c: three.", "- `_d`: one."]
    assert "- `e`: more." in with_lists(text)


# Pictures


def test_the_pictures_are_what_the_project_computes(tmp_path):
    draw(tmp_path)
    for name in PICTURES:
        drawn, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, PAGES / "images"))
        assert drawn == kept, f"python -m docs.site.draw draws another {name}.svg"


# Notebook


def test_the_notebook_keeps_the_outputs_of_a_whole_run_and_no_path_of_a_machine():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    for output in outputs:
        text = "".join(output.get("text", ""))
        assert not re.search(r"(?<![\w.])/\w+/\w+", text), text


@pytest.mark.slow
def test_the_notebook_runs_from_end_to_end(tmp_path, monkeypatch):
    """With fewer epochs than it says; nothing else is changed."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        cell.source = re.sub(r'"epochs": \d+', '"epochs": 3', cell.source)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    results = json.loads((tmp_path / "runs" / "notebook" / "retrain" / "results.json").read_text())
    assert f"{results['top1']:.1f}% of 360 test images" in texts


# Examples


@pytest.fixture
def flowers(digits, tmp_path, monkeypatch) -> Path:
    """A folder of pictures in one place, as a user has them: 20 of each digit."""
    monkeypatch.chdir(tmp_path)
    for folder in (digits / "train").iterdir():
        (tmp_path / "pictures" / folder.name).mkdir(parents=True)
        for picture in sorted(folder.iterdir())[:20]:
            (tmp_path / "pictures" / folder.name / picture.name).symlink_to(picture)
    return tmp_path


@pytest.mark.slow
def test_the_quickstart_on_ones_own_images_runs(flowers):
    """With the classes and the size of these images, and fewer epochs and networks."""
    text = (PAGES / "quickstart.md").read_text()
    (split,) = fenced(text, "python")
    exec(compile(split, "split.py", "exec"), {})
    for part, count in (("train", 14), ("val", 3), ("test", 3)):
        assert [len(list(folder.iterdir())) for folder in (flowers / "flowers" / part).iterdir()] == [count] * 10
    (example,) = fenced(text, "yaml")
    data = yaml.safe_load(example)
    data["model"] |= {"num_classes": 10, "image_size": 32}
    for section in ("search", "retrain"):
        data[section] |= {"epochs": 2, "warmup_epochs": 1}
    data["sample"] |= {"initial_population": 10, "population": 4, "generations": 1}
    data["sample"]["budget"] |= {"minimum": 1_000_000, "maximum": 2_000_000}
    commands = [line.split("#")[0].split() for line in re.findall(r"^    (vitas .*)$", text, re.MULTILINE)]
    assert [words[1] for words in commands] == [
        *("init", "check", "space", "search", "sample", "retrain", "test"),
        *("status", "describe", "report", "predict", "export", "export"),
    ]
    for _, *arguments in commands:
        run_module("vitas", *arguments, folder=flowers)
        if arguments[0] == "init":
            # The other way, with the example.
            (flowers / "flowers.yaml").write_text(yaml.safe_dump(data))
    assert json.loads((flowers / "runs/flowers/retrain/results.json").read_text())["images"] == 30
    assert (flowers / "runs/flowers/export/epoch_2_hf/README.md").is_file()


def test_what_the_quickstart_says_of_its_space_and_its_interval_is_so():
    text = (PAGES / "quickstart.md").read_text()
    (example,) = fenced(text, "yaml")
    config = configuration.RunConfig.model_validate(yaml.safe_load(example))
    least, most = (f"{cost / 1e6:.1f}".removesuffix(".0") for cost in config.macs_model.reach())
    assert (least, most) == ("0.4", "55.6")
    assert f"{config.space.size:.1e}".replace("+", "") + " networks of 0.4M to 56M multiply-adds" in example
    assert "82.6 to 94.5%" in text
    assert [round(100 * end, 1) for end in wilson(90, 100)] == [82.6, 94.5]


def test_the_example_of_the_budget_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text((REPOSITORY / "configs" / "quickstart.yaml").read_text())
    (example,) = fenced((PAGES / "budget.md").read_text(), "python")
    exec(compile(example, "budget.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("100% of the networks cost at most ")


@pytest.mark.slow
def test_a_method_of_ones_own_and_the_python_example_run(digits, tmp_path):
    """The scheme and the draw are in the checkpoint, and the supernet is given away and read."""
    (example,) = fenced((PAGES / "extending.md").read_text(), "python")
    (tmp_path / "mine.py").write_text(example)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run(tmp_path / "run", digits)))
    mine = ("model.sharing=centred", "search.subnets.draw=deepest", "search.epochs=1", "search.warmup_epochs=0")
    done = subprocess.run(
        [sys.executable, "mine.py", path, *mine],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "centred supernet" in done.stdout
    # Those who do not know the scheme are told so.
    with pytest.raises(SystemExit):
        run_here("search", path, *mine)
    ours = ("model.sharing=ordinal", "search.epochs=1", "search.warmup_epochs=0", f"save_path={tmp_path / 'other'}")
    run_here("search", path, *ours)
    run_module("inference", "export", path, "--supernet", "--output", tmp_path / "supernet", *ours)
    (example,) = fenced((PAGES / "python.md").read_text(), "python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "multiply-adds" in done.stdout

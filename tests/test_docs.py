"""The documentation is true: keys and defaults, the README's table, its examples, its links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

import vitas
from search.objectives import OBJECTIVES
from vitas import config
from vitas.config import Retrain, RunConfig, Search, Training
from vitas.config.schema import TABLES, write_tables
from vitas.config_section import Section, defaults_of, fields_of, sections_in
from vitas.data.folders import WeakAugmentation
from vitas.plain_data import parse_yaml
from vitas.slurm.cluster import Cluster, load_cluster

# Headings of docs/configuration.md, and the section whose keys stand there: its own, not those that it inherits.
SECTIONS = {heading: table.section for heading, table in TABLES.items()}


def section(text: str, heading: str) -> str:
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading!r}"
    return match[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every Markdown table: a list of rows, each {column: cell}."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        # A bar inside a cell is escaped.
        rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in block.splitlines()]
        lines = [[cell.strip().replace(r"\|", "|") for cell in row] for row in rows]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def sections_within(section: type) -> set[type]:
    """A section and all in it."""
    inner = (part for annotation in fields_of(section).values() for part in sections_in(annotation))
    return {section}.union(*map(sections_within, inner))


def allowed_values(annotation: Any) -> set[str]:
    """The values that an annotation lists, wherever in it."""
    if get_origin(annotation) is Literal:
        return set(map(str, get_args(annotation)))
    return set().union(*map(allowed_values, get_args(annotation)))


def own_keys(heading: str) -> dict[str, Any]:
    """The keys of a heading's section, with their annotations, without those of the recipe."""
    section = SECTIONS[heading]
    inherited = fields_of(Training) if section in (Search, Retrain) else {}
    return {name: annotation for name, annotation in fields_of(section).items() if name not in inherited}


def keys_of(heading: str) -> dict[str, dict[str, str]]:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    rows = tables(section(text, heading))[0]
    return {row["key"].strip("`"): row for row in rows}


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return (repository / "README.md").read_text()


def test_every_section_of_the_configuration_is_documented():
    for within in sections_within(RunConfig):
        assert any(
            issubclass(within, known) and fields_of(within).keys() == fields_of(known).keys()
            for known in SECTIONS.values()
        ), f"docs/configuration.md has no section for {within.__name__}"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_default(heading):
    rows, defaults = keys_of(heading), defaults_of(SECTIONS[heading])
    assert set(rows) == set(own_keys(heading)), f"{heading}: the table and {SECTIONS[heading].__name__} differ"
    for name, row in rows.items():
        columns = [column for column in row if column.startswith("default")]
        assert columns
        for column in columns:
            if row[column] == "*required*":
                assert name not in defaults, f"{heading}: {name} has a default"
                continue
            assert name in defaults, f"{heading}: {name} has no default"
            default = defaults[name]
            if column == "default (`search`)":
                default = defaults_of(WeakAugmentation)[name]
            if row[column] == "see below":
                assert isinstance(default, Section)
            else:
                written = parse_yaml(row[column].strip("`"), name)
                default = list(default) if isinstance(default, tuple) else default
                wanted = pytest.approx(default, rel=1e-4) if name == "ratio" else default
                assert written == wanted, f"{heading}: {name} has another default"


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_key_that_takes_a_few_values_is_documented_with_all_of_them(heading):
    """Also those that come from a registry: sharing schemes, objectives."""
    rows = keys_of(heading)
    for name, annotation in own_keys(heading).items():
        # One key chooses between two sections, which have a value each.
        sections = sections_in(fields_of(RunConfig)["search"]) if (heading, name) == ("`search` only", "method") else []
        values = set().union(allowed_values(annotation), *(allowed_values(fields_of(s)[name]) for s in sections))
        if values:
            written = set(re.findall(r"[\w.]+", rows[name]["type"])) - {"or", "list", "of", "and", "null"}
            assert written == values, f"{heading}: {name}"


def test_the_page_says_of_every_objective_what_its_registry_says(repository):
    text = (repository / "docs" / "configuration.md").read_text()
    part = text[text.index("### `sample.objectives`") :]
    rows = {row["value"].strip("`"): row["meaning"] for row in tables(part)[0]}
    assert list(rows) == list(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        assert rows[name].startswith(objective.meaning)


def test_the_tables_of_the_page_are_made_of_the_schema(repository):
    """Where this fails: vitas schema --page docs/configuration.md, once meanings.yaml says what a new key means."""
    text = (repository / "docs" / "configuration.md").read_text()
    assert write_tables(text) == text


def test_supernet_augmentation_is_the_documented_one():
    data = fields_of(Search)["data"]
    assert defaults_of(data)["augmentation"] == WeakAugmentation()


def test_published_table_is_the_zoo(readme):
    uniform, staged = tables(section(readme, "Published architectures"))
    zoo = vitas.zoo()
    assert {row["name here"].strip("`") for row in (*uniform, *staged)} == set(zoo)
    for row in staged:
        genotype = zoo[row["name here"].strip("`")]
        assert row["genotype"].strip("`") == str(genotype)
        numbers = {"blocks": genotype.depth, "MACs": genotype.macs(), "parameters": genotype.parameters()}
        assert {column: row[column] for column in numbers} == {c: f"{n:,}" for c, n in numbers.items()}
    for row in uniform:
        architecture = zoo[row["name here"].strip("`")]
        numbers = {
            "patch": architecture.patch_size,
            "embedding dim": architecture.embed_dim,
            "blocks": architecture.depth,
            "MACs": architecture.macs(),
            "MACs, released convention": architecture.macs(convention="released"),
            "parameters": architecture.parameters(),
        }
        assert {column: row[column] for column in numbers} == {c: f"{n:,}" for c, n in numbers.items()}


def test_python_examples_run(readme, repository, tmp_path):
    """In their order, in a process that has loaded nothing of ours: an example brings all that it needs."""
    examples = fenced(readme, "python")
    assert examples
    for i, example in enumerate(examples):
        (tmp_path / f"example_{i}.py").write_text(example)
    code = f"import runpy\nfor i in range({len(examples)}): runpy.run_path(f'example_{{i}}.py')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_yaml_example_is_a_whole_configuration(readme, tmp_path):
    (example,) = fenced(readme, "yaml")
    path = tmp_path / "example.yaml"
    path.write_text(example)
    loaded = config.load(path)
    assert all(getattr(loaded, stage).flag for stage in ("search", "sample", "retrain", "test"))


def test_architecture_forms_of_the_page_parse(repository):
    text = section((repository / "docs" / "configuration.md").read_text(), "Giving an architecture")
    (mapping,) = (yaml.safe_load(block)["architecture"] for block in fenced(text, "yaml"))
    rows = {row["form"]: row["example"].strip("`") for row in tables(text)[0]}
    assert vitas.Architecture.from_dict(mapping).shifted().active_blocks
    assert vitas.Architecture.parse(rows["text"]).depth == 12
    assert vitas.Genotype.parse(rows["a genotype"]).depth == 14
    assert rows["a published name"] in vitas.zoo()
    (names,) = (row["meaning"] for row in tables(text)[0] if row["form"] == "a published name")
    assert re.findall(r"`(\w+)`", names) == list(vitas.zoo())


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
)
def test_links_between_pages_lead_somewhere(page, repository):
    path = repository / page
    text = path.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page}: {target}"


def test_every_option_of_slurm_md_is_one_and_no_other(repository):
    """The options of `vitas launch` and the keys of cluster.yaml, with their defaults."""
    rows = tables(section((repository / "docs" / "slurm.md").read_text(), "Options"))[0]
    documented = {option for row in rows for option in re.findall(r"`(--?[\w-]+)", row["option"])}
    done = subprocess.run([sys.executable, "-m", "vitas", "launch", "--help"], capture_output=True, text=True)
    listed = {option.rstrip(",") for option in re.findall(r"(?<=[ ,])--?[a-zA-Z][\w-]*", done.stdout)}
    assert documented == listed - {"-h", "--help"}
    keys = {row["key"].strip("`"): row["default"] for row in rows if row["key"]}
    assert set(keys) == set(Cluster.model_fields)
    assert keys["max_requeues"] == str(Cluster().max_requeues)


def test_cluster_yaml_is_as_slurm_md_says(repository):
    assert load_cluster(repository / "configs" / "cluster.yaml") == Cluster()

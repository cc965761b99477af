"""The documentation is true: keys and defaults, the README's table, its examples, its links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import vitas
from vitas import config
from vitas.config import (
    AsvitSearch,
    BudgetRange,
    Growth,
    Model,
    Retrain,
    RunConfig,
    Sample,
    Search,
    Space,
    TokenPhase,
    Training,
)
from vitas.data.folders import Augmentation, EvaluationData, TrainingData, WeakAugmentation
from vitas.files import parse_yaml
from vitas.slurm.cluster import Cluster, load_cluster

# Headings of docs/configuration.md, and the model whose fields stand there: its own, not those that it inherits.
SECTIONS = {
    "Top level": RunConfig,
    "`model`": Model,
    "`model.space`": Space,
    "`search` and `retrain`: the recipe": Training,
    "`search` only": Search,
    "`search` with `method: asvit`": AsvitSearch,
    "`search.growth`": Growth,
    "`retrain` only": Retrain,
    "`retrain.tokens`": TokenPhase,
    "Data of `search` and `retrain`": TrainingData,
    "`augmentation`": Augmentation,
    "`sample`": Sample,
    "`sample.budget`": BudgetRange,
    "Data of `sample` and `test`": EvaluationData,
    "`test`": config.Test,
}


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


def models_within(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for part in parts_of(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= models_within(part)
    return found


def parts_of(annotation: object) -> list:
    return [annotation, *(inner for part in get_args(annotation) for inner in parts_of(part))]


def keys_of(heading: str) -> dict[str, dict[str, str]]:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    rows = tables(section(text, heading))[0]
    return {row["key"].strip("`"): row for row in rows}


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return (repository / "README.md").read_text()


def test_every_section_of_the_configuration_is_documented():
    for model in models_within(RunConfig):
        assert any(
            issubclass(model, known) and set(model.model_fields) == set(known.model_fields)
            for known in SECTIONS.values()
        ), f"docs/configuration.md has no section for {model.__name__}"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_default(heading):
    model = SECTIONS[heading]
    inherited = Training.model_fields if model in (Search, Retrain) else {}
    fields = {name: field for name, field in model.model_fields.items() if name not in inherited}
    rows = keys_of(heading)
    assert set(rows) == set(fields), f"{heading}: the table and {model.__name__} differ"
    for name, row in rows.items():
        columns = [column for column in row if column.startswith("default")]
        for column in columns:
            default = fields[name].default
            if column == "default (`search`)":
                default = getattr(WeakAugmentation(), name)
            if row[column] == "see below":
                assert isinstance(default, BaseModel)
            elif row[column] == "*required*":
                assert default is PydanticUndefined, f"{heading}: {name} has a default"
            else:
                written = parse_yaml(row[column].strip("`"), name)
                wanted = pytest.approx(default, rel=1e-4) if name == "ratio" else default
                assert written == wanted, f"{heading}: {name} has another default"


def test_supernet_augmentation_is_the_documented_one():
    assert Search.model_fields["data"].annotation.model_fields["augmentation"].default == WeakAugmentation()


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
    examples = fenced(readme, "python")
    assert examples
    for i, example in enumerate(examples):
        script = tmp_path / f"example_{i}.py"
        script.write_text(f"import sys; sys.path.insert(0, {str(repository)!r})\n{example}")
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
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


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/configuration.md",
        "docs/design.md",
        "docs/export.md",
        "docs/slurm.md",
    ],
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

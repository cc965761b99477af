"""The JSON Schema of the YAML: it holds for what runs, and marks what does not."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.processes import REPOSITORY
from vitas.config.schema import MEANINGS, TABLES, json_schema, write_tables
from vitas.config_section import fields_of
from vitas.plain_data import parse_configuration

CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.name != "cluster.yaml")


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_of_the_project_is_valid(validator, path):
    assert not list(validator.iter_errors(parse_configuration(path.read_text(), str(path))))


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({"search.epochs": 3}, True),
        ({"sample.budget.maximum": "60%"}, True),
        ({"sample.budget.convention": True}, True),
        ({"retrain.architecture": {"net_id": "1 2"}}, True),
        ({"search.epoch": 3}, False),
        ({"search.epochs": 0}, False),
        ({"search.epochs": "3"}, False),
        ({"model.sharing": "cyclical"}, False),
        ({"sample.objectives": ["speed"]}, False),
        ({"sample.budget.maximum": "60"}, False),
        ({"retrain.data": None}, False),
    ],
)
def test_an_editor_marks_what_a_run_would_refuse(validator, make_config, change, is_valid):
    data = yaml.safe_load(make_config(change).read_text())
    assert validator.is_valid(data) == is_valid


def test_every_key_says_what_it_means(validator):
    schema = validator.schema
    for part in (schema, *schema["$defs"].values()):
        assert all(len(value["description"]) > 5 for value in part["properties"].values())
    assert "](" not in json.dumps(schema), "links lead nowhere in an editor"


def test_meanings_are_of_keys_that_there_are():
    classes = {table.section.__name__: table.section for table in TABLES.values()}
    for name, keys in yaml.safe_load(MEANINGS.read_text()).items():
        assert set(keys) <= set(fields_of(classes[name])), name


def test_the_schema_of_the_repository_is_the_one_of_the_code(vitas, tmp_path):
    """Where this fails: vitas schema --output configs/schema.json"""
    code, out, _ = vitas("schema")
    assert code == 0
    assert (REPOSITORY / "configs" / "schema.json").read_text() == out
    assert vitas("schema", "--output", tmp_path / "schema.json")[:2] == (0, "")
    assert (tmp_path / "schema.json").read_text() == out


def test_the_tables_of_a_page_are_written_anew_and_the_rest_stays(vitas, tmp_path):
    page = REPOSITORY / "docs" / "configuration.md"
    text = page.read_text()
    old = text.replace("| `seed` | integer, 0 or more | `0` |", "| `sead` | text | `7` |")
    (tmp_path / "page.md").write_text(old)
    assert vitas("schema", "--page", tmp_path / "page.md")[0] == 0
    assert (tmp_path / "page.md").read_text() == text
    with pytest.raises(ValueError, match="no table of keys under 'Top level'"):
        write_tables("# nothing\n")

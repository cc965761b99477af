"""YAML is data only, and what is none is refused by place and fault."""

import pytest

from vitas.errors import UserError
from vitas.plain_data import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e3", -2500.0), ("+1.e2", 100.0), ("0.001", 0.001), ("1.0e+3", 1000.0)],
)
def test_a_float_may_be_written_as_people_write_it(text, value):
    found = parse_yaml(f"key: {text}", "here")["key"]
    assert isinstance(found, float)
    assert found == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("4_000_000", 4_000_000),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ("p16-e230", "p16-e230"),
        ("2020-01-01", "2020-01-01"),
    ],
)
def test_what_is_no_float_stays_what_it_was(text, value):
    found = parse_yaml(f"key: {text}", "here")["key"]
    assert type(found) is type(value)
    assert found == value


def test_merge_keys_and_anchors_work():
    data = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a", "here")
    assert data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\nb: 2\na: 3", "'a' appears twice"),
        ("a:\n  b: 1\n  b: 1", "'b' appears twice"),
        ("[{c: 1, c: 2}]", "'c' appears twice"),
        ("a: [1", "line 1"),
        ("a: *nowhere", "nowhere"),
        ("? [a, b]\n: 1", "line 1"),
        ("a: 0x_", "0x_"),
        ("a: \x00", "#x0000"),
        ('a: "\\0"', "U+0000"),
        ('a: "\\ud800"', "U+D800"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("1: a", "the key 1; a key must be a word"),
        ("{a: 1, null: 2}", "the key None; a key must be a word"),
        ("a: !!timestamp x", "timestamp"),
        ("a: !!bool maybe", "'maybe', which is no bool"),
        ("a: !!float ''", "'', which is no float"),
        ("a: !!binary x", "binary"),
        ("a: !!set {b}", "set"),
        ("a: !!map [b]", "expected a mapping"),
        ("a: {<<: 3}", "mapping"),
    ],
)
def test_text_that_is_no_yaml_is_refused_by_place_and_fault(text, fragment):
    with pytest.raises(UserError, match="here is not valid YAML") as error:
        parse_yaml(text, "here")
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    "tag",
    ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir", "python/module:os"],
)
def test_yaml_never_runs_code(tmp_path, tag):
    path = tmp_path / "file.yaml"
    path.write_text(f"key: !!{tag} ['{tmp_path / 'made'}']")
    with pytest.raises(UserError, match="python/"):
        read_yaml(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_refused_by_path(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert str(path) in str(error.value)

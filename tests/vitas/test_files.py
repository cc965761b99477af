"""Files: none by halves, and YAML as data only."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitas.errors import UserError
from vitas.files import remove_leftovers, write_atomically, write_folder, write_text
from vitas.journal import Journal
from vitas.plain_data import parse_yaml, read_yaml

# Writing


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("through_torch", [False, True])
def test_a_full_disk_is_named_with_the_file_and_what_was_there_stays(small_disk, through_torch):
    path = small_disk / "file"
    path.write_text("old")
    state = {"weights": torch.zeros(1_000_000)}
    with pytest.raises(UserError, match=r"disk/file cannot be written.*No space left.*MB are free.*same command"):
        write_atomically(path, lambda file: torch.save(state, file) if through_torch else file.write(bytes(4_000_000)))
    assert [p.read_text() for p in small_disk.iterdir()] == ["old"]


def test_a_journal_on_a_full_disk_says_so_and_keeps_its_whole_lines(small_disk):
    journal = Journal(small_disk / "scores.jsonl")
    journal.append({"step": 1})
    with pytest.raises(UserError, match=r"scores\.jsonl cannot be written.*No space left"):
        journal.append({"text": "x" * 4_000_000})
    assert Journal(small_disk / "scores.jsonl").lines == [{"step": 1}]


def test_temporary_files_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from vitas.files import write_atomically;"
        "write_atomically(Path(sys.argv[1]), lambda file: os._exit(9))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "checkpoint" / "epoch_1")], check=False)
    (dead,) = (tmp_path / "checkpoint").iterdir()
    machine = dead.name.split(".")[-4]
    living = dead.with_name(f".file.{machine}.{os.getpid()}.12345678.tmp")
    elsewhere, old = (dead.with_name(f".{name}.abcdef01.1.12345678.tmp") for name in ("new", "old"))
    for path in (living, elsewhere, old):
        path.touch()
    os.utime(old, (0, 0))
    assert sorted(remove_leftovers(tmp_path)) == sorted([dead, old])
    assert sorted((tmp_path / "checkpoint").iterdir()) == sorted([living, elsewhere])


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_of_one_number_do_not_take_each_others_half_file(tmp_path):
    """As the first of two containers."""
    path = tmp_path / "file"

    def write(file):
        file.write(b"outer")
        with pytest.raises(RuntimeError):
            write_atomically(path, fail)

    def fail(file):
        raise RuntimeError("taken over")

    write_atomically(path, write)
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_owner_reads_a_file_that_is_to_be_so(tmp_path):
    write_text(tmp_path / "file", "x", mode=0o600)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("before", [None, "old"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)

    def fail(file):
        file.write(b"half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_atomically(path, fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_the_old_file_is_whole_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_text())

    write_atomically(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_written_with_its_parents_and_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "new" / "folder"
    for files in ({"a": b"1", "b": b"2"}, {"a": b"3"}):
        write_folder(folder, files)
        assert tree(tmp_path) == {f"new/folder/{name}": content for name, content in files.items()}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("before", [{}, {"a": b"old", "c": b"old"}])
@pytest.mark.parametrize("fails_at", ["the second file", "the last rename"])
def test_a_folder_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, before, fails_at):
    folder = tmp_path / "folder"
    if before:
        write_folder(folder, before)
    files = {"a": b"new", "b": b"new"}
    if fails_at == "the second file":
        files["b"] = "no bytes"
    else:
        rename = Path.rename

        def fail(path, target):
            if path.suffix == ".tmp":
                raise OSError("no space left")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((TypeError, OSError)):
        write_folder(folder, files)
    assert tree(tmp_path) == {f"folder/{name}": content for name, content in before.items()}
    assert [path.name for path in tmp_path.iterdir()] == (["folder"] if before else [])


# The journal

RECORDS = [{"architecture": "p4-e8-token-id", "top1": 90.5}, {"text": "two\nlines, ü"}, {}]


def test_a_journal_reads_back_what_was_appended(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path)
    assert journal.lines == []
    assert not path.exists()
    journal.append(*RECORDS[:2])
    journal.append(RECORDS[2])
    assert journal.lines == Journal(path).lines == RECORDS


def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_grows_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append(*RECORDS)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = RECORDS[: whole[:length].count(b"\n")]
        journal = Journal(path)
        assert journal.lines == kept
        journal.append({"last": length})
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, {"last": length}]


@pytest.mark.parametrize("broken", [b'{"top1": ', b"", b"\xff\xfe", b'{"a": 1}{"b": 2}'])
def test_a_journal_with_a_broken_line_within_is_refused_by_number_and_left_alone(tmp_path, broken):
    path = tmp_path / "journal.jsonl"
    content = b'{"a": 1}\n' + broken + b'\n{"c": 3}\n{"torn'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.jsonl: line 2 "):
        Journal(path)
    assert path.read_bytes() == content


# YAML


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

"""Files are written whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_here
from vitas.errors import UserError
from vitas.files import remove_leftovers, write_atomically, write_folder, write_text


@pytest.mark.parametrize("through_torch", [False, True])
def test_a_full_disk_is_named_with_the_file_and_what_was_there_stays(small_disk, through_torch):
    path = small_disk / "file"
    path.write_text("old")
    state = {"weights": torch.zeros(1_000_000)}
    with pytest.raises(UserError, match=r"disk/file cannot be written.*No space left.*MB are free.*same command"):
        write_atomically(path, lambda file: torch.save(state, file) if through_torch else file.write(bytes(4_000_000)))
    assert [p.read_text() for p in small_disk.iterdir()] == ["old"]


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


@pytest.mark.parametrize("folder", ["", "search/log", "search/checkpoint"])
def test_where_a_disk_becomes_read_only_a_stage_names_what_it_was_making(
    tmp_path, make_config, monkeypatch, capsys, folder
):
    run, mkdir, is_read_only = tmp_path / "run", os.mkdir, False

    def fail(path, *arguments, **options):
        nonlocal is_read_only
        is_read_only |= Path(path) == run / folder
        if is_read_only and Path(path).is_relative_to(run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(SystemExit) as ended:
        run_here("search", make_config(), f"save_path={run}")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Read-only file system" in message
    assert str(run / folder) in message

"""Packed folders with anything in them: read as they are, or refused; and Arrow follows no offset out of its file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.faults.disk import Disk
from tests.faults.fuzz import bounded, changed_bytes, changed_data, changed_text, fuzzed, read_or_refused, values
from vitas.data.folders import check_image_folder, class_names, count_images
from vitas.data.images import open_image_folder
from vitas.data.pack_index import INDEX, _digest, read_index
from vitas.data.packed import PackedFolder, checksum, schema
from vitas.data.packing import PackOptions, pack
from vitas.data.pictures import BadImage
from vitas.errors import UserError

SHARD = "00000.arrow"


@pytest.fixture(scope="module")
def seed(tmp_path_factory) -> Path:
    """A pack of a dozen images."""
    folder = tmp_path_factory.mktemp("seed")
    for number in range(12):
        path = folder / "images" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    pack(folder / "images", folder / "pack", PackOptions(), 1)
    return folder / "pack"


@pytest.fixture
def copied(seed, tmp_path) -> Path:
    return Path(shutil.copytree(seed, tmp_path / "pack"))


def read_all(folder: Path) -> int:
    """Everything that a stage does with a pack; the number of good images."""
    class_names(str(folder))
    count_images(str(folder))
    check_image_folder(str(folder), 3)
    opened = open_image_folder(str(folder))
    good = 0
    for index in range(len(opened)):
        try:
            opened.read(index)
        except BadImage:
            continue
        good += 1
    assert len(list(opened.samples)) == len(opened)
    return good


def test_any_index_is_read_or_refused(copied):
    text = (copied / INDEX).read_text()
    data = json.loads(text)
    del data["digest"]

    def signed(changed: object) -> str:
        """As a stranger can, who knows how digests are made."""
        return json.dumps(changed | {"digest": _digest(changed)} if isinstance(changed, dict) else changed)

    changed = changed_data([data])

    @fuzzed()
    @given(st.one_of(changed.map(signed), changed.map(json.dumps), changed_text([text]), values.map(json.dumps)))
    def check(content):
        (copied / INDEX).write_bytes(content.encode("utf-8", "surrogatepass"))
        read_or_refused(lambda: read_all(copied))

    check()


def test_any_shard_is_read_or_refused(copied):
    index = read_index(copied)
    content = (copied / SHARD).read_bytes()

    @fuzzed()
    @given(changed_bytes(content))
    def check(changed):
        shard = replace(index.shards[0], bytes=max(len(changed), 1000))
        (copied / SHARD).write_bytes(changed.ljust(shard.bytes, b"\0"))
        (copied / INDEX).write_bytes(replace(index, shards=(shard,)).as_json())
        read_or_refused(lambda: read_all(copied))

    check()


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_shard_is_refused_before_it_is_unfolded(copied, codec):
    """A megabyte of it may stand for any number of them."""
    path = copied / SHARD
    image = bytes(400 * 2**20)
    record = {"path": b"a/0.png", "label": 0, "image": image, "crc32": checksum(b"a/0.png", 0, image)}
    options = pyarrow.ipc.IpcWriteOptions(compression=codec)
    with pyarrow.ipc.new_file(str(path), schema(), options=options) as writer:
        writer.write_table(pyarrow.Table.from_pylist([record], schema()))
    del image, record
    index = read_index(copied)
    shard = replace(index.shards[0], images=1, bytes=path.stat().st_size)
    listed = {"a": (1, "x")}
    (copied / INDEX).write_bytes(replace(index, shards=(shard,), classes=listed).as_json())
    with bounded(), pytest.raises(UserError, match="it holds other data than images"):
        list(PackedFolder(str(copied)).samples)


def test_other_columns_than_a_packs_are_refused(copied):
    path = copied / SHARD
    columns = pyarrow.schema([*schema(), pyarrow.field("more", pyarrow.dictionary(pyarrow.int8(), pyarrow.string()))])
    with pyarrow.ipc.new_file(str(path), columns):
        pass
    index = read_index(copied)
    (copied / INDEX).write_bytes(
        replace(index, shards=(replace(index.shards[0], bytes=path.stat().st_size),)).as_json()
    )
    with pytest.raises(UserError, match="its columns are others"):
        list(PackedFolder(str(copied)).samples)


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [False, True], ids=["kept", "forgotten"])
def test_a_packing_that_is_killed_in_any_call_leaves_no_pack_or_a_whole_one_and_ends_when_it_is_run_again(
    seed, tmp_path, forgets
):
    images, options = seed.with_name("images"), PackOptions(shard_bytes=250)
    wanted = contents(pack_again(images, tmp_path / "wanted", options))
    assert len(wanted) > 3
    out = tmp_path / "killed" / "pack"
    out.parent.mkdir()
    kill_at, died = 0, True
    while died:
        # An odd number, so that deaths of both kinds come in calls of each kind.
        kill_at += 3
        shutil.rmtree(out, ignore_errors=True)
        # Half of the deaths come upon what an earlier one left.
        if kill_at % 2:
            shutil.rmtree(out.with_name(".pack.unfinished"), ignore_errors=True)
        died = is_killed(out.parent, lambda: pack_again(images, out, options), kill_at, forgets)
        assert not out.exists() or contents(out).items() >= wanted.items()
        if kill_at % 2:
            assert contents(pack_again(images, out, options)) == wanted
    assert kill_at > 20


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack_again(images: Path, out: Path, options: PackOptions) -> Path:
    pack(images, out, options, 1)
    return out


def is_killed(folder: Path, work: Callable[[], object], kill_at: int, forgets: bool) -> bool:
    """Do some work in a process that dies in a call that changes files; whether it made so many calls."""
    pid = os.fork()
    if not pid:
        Disk(folder, kill_at, forgets, kill_at).install()
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -9)
    return code == -9

"""An image folder is listed once, as long as nothing in it changes; and the list takes no object for each file."""

import gc
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from vitas import files
from vitas.data import listings
from vitas.data.folders import Part
from vitas.data.image_list import ImageList
from vitas.data.images import open_image_folder
from vitas.data.listings import open_listing
from vitas.errors import UserError

# No UTF-8, and no line.
ODD = os.fsdecode(b"f\xfc\n.png")
MINUTE = 60 * 10**9


@pytest.fixture
def folder(tmp_path) -> Path:
    """Classes with nested folders, a link to a folder elsewhere, odd names, and files that are no images."""
    root = tmp_path / "images"
    names = [
        "b/2.png",
        "b/10.JPG",
        "b/deep/er/1.jpeg",
        "b/deep.png",
        "b/notes.txt",
        "a/x.webp",
        f"a/{ODD}",
        "a/z/y.bmp",
    ]
    for name in [*names, f"c{ODD}/1.png", "top.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.png").touch()
    (root / "b" / "link").symlink_to(tmp_path / "elsewhere")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where listings are kept, of folders of any size, and as if all of them had been made a minute ago."""
    now = listings.time.time_ns
    monkeypatch.setattr(listings, "_FEWEST", 1)
    monkeypatch.setattr(listings.time, "time_ns", lambda: now() + MINUTE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitas" / "listings"


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """The folders that were listed, in order."""
    found, real = [], listings._scan
    monkeypatch.setattr(listings, "_scan", lambda root: found.append(root) or real(root))
    return found


def torchvisions(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    opened = TorchvisionFolder(str(folder))
    return opened.classes, opened.samples


def ours(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    opened = open_listing(str(folder))
    return opened.classes, list(opened.samples)


# The list


def test_a_folder_holds_what_torchvision_finds_in_it_in_the_same_order(folder, cache, scans):
    expected = torchvisions(folder)
    assert len(expected[1]) == 9
    assert ours(folder) == expected
    # Kept, too.
    assert ours(folder) == expected
    assert len(scans) == 1


def test_a_list_is_a_sequence(folder):
    images, expected = open_listing(str(folder)).samples, torchvisions(folder)[1]
    assert [images[i] for i in range(-9, 9)] == expected * 2
    assert list(images[2:7:2]) == expected[2:7:2]
    assert list(images.take([5, 0, 5])) == [expected[5], expected[0], expected[5]]
    assert list(images.take([])) == []
    assert list(pickle.loads(pickle.dumps(images))) == expected
    assert expected[3] in images
    with pytest.raises(IndexError):
        images[9]


def test_a_part_has_the_images_of_the_part(folder):
    (folder / f"c{ODD}" / "2.png").touch()
    part = Part(0.5)
    classes, samples = torchvisions(folder)
    assert list(open_image_folder(str(folder), part).samples) == [
        samples[index] for index in part.indices(classes, samples)
    ]


def test_a_list_has_no_object_for_each_file():
    """Such objects have counts of references; what a worker writes into them it holds a copy of."""
    gc.collect()
    before = len(gc.get_objects())
    images = ImageList.of("/", [f"{i}.png" for i in range(10_000)], [0] * 10_000)
    assert sum(1 for _ in images) == 10_000
    assert len(gc.get_objects()) < before + 1000
    assert len(pickle.dumps(images)) < 40 * 10_000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root), "cannot be read: No such file"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir() if path.is_dir()], "holds no class folder"),
        (lambda root: (root / "a2").mkdir(), r"holds no image \(\.jpg.*\) of 1 of its 4 classes: 'a2'; add some"),
    ],
    ids=["gone", "without classes", "an empty class"],
)
def test_a_folder_that_is_none_is_refused_with_its_name(folder, cache, spoil, message):
    open_image_folder(str(folder))
    spoil(folder)
    with pytest.raises(UserError, match=f"data_dir {str(folder)!r}: {message}"):
        open_image_folder(str(folder))


# What is kept


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "new.png").touch(),
        lambda root: (root / "a" / "x.webp").unlink(),
        lambda root: (root / "b" / "2.png").rename(root / "b" / "3.png"),
        lambda root: (root / "b" / "deep" / "er" / "new.png").touch(),
        lambda root: (root.parent / "elsewhere" / "new.png").touch(),
        lambda root: (root / "b" / "link").unlink(),
        lambda root: shutil.rmtree(root.parent / "elsewhere"),
        lambda root: shutil.copytree(root / "a", root / "new"),
        lambda root: shutil.rmtree(root / "a"),
        lambda root: (root / "a").rename(root / "d"),
    ],
)
def test_whatever_changes_a_folder_it_is_listed_anew(folder, cache, scans, change):
    before = ours(folder)
    assert ours(folder) == before
    change(folder)
    assert ours(folder) == torchvisions(folder) != before
    assert len(scans) == 2


def test_a_time_of_modification_that_was_set_back_hides_nothing(folder, cache):
    ours(folder)
    times = (folder / "a").stat()
    (folder / "a" / "new.png").touch()
    os.utime(folder / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ours(folder) == torchvisions(folder)


@pytest.mark.parametrize("seconds", [0, 1, -3600])
def test_a_folder_that_changed_just_before_or_in_the_future_is_not_trusted(folder, cache, scans, monkeypatch, seconds):
    newest = max(path.stat().st_ctime_ns for path in [folder, *folder.rglob("*")])
    monkeypatch.setattr(listings.time, "time_ns", lambda: newest + seconds * 10**9)
    assert ours(folder) == ours(folder)
    assert len(scans) == 2
    assert not cache.exists()
    monkeypatch.setattr(listings.time, "time_ns", lambda: newest + 3 * 10**9)
    assert ours(folder) == ours(folder)
    assert len(scans) == 3


def test_a_folder_of_few_images_needs_no_cache(folder, cache, scans, monkeypatch):
    monkeypatch.setattr(listings, "_FEWEST", 10)
    assert ours(folder) == ours(folder)
    assert len(scans) == 2
    assert not cache.exists()


def test_folders_of_different_names_have_listings_of_their_own(folder, cache, tmp_path, scans):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "a" / "x.webp").unlink()
    for _ in range(2):
        assert ours(folder) == torchvisions(folder)
        assert ours(tmp_path / "other") == torchvisions(tmp_path / "other")
    assert len(scans) == 2
    assert len(list(cache.iterdir())) == 2


def test_a_relative_name_is_the_same_folder(folder, cache, scans, monkeypatch):
    ours(folder)
    monkeypatch.chdir(folder.parent)
    assert ours(Path("images")) == torchvisions(Path("images"))
    assert len(scans) == 1


@pytest.mark.parametrize("at", [0, 5, 20, 60, 200, -1])
def test_a_damaged_listing_is_ignored_and_replaced(folder, cache, scans, at):
    expected = ours(folder)
    (kept,) = cache.iterdir()
    whole = bytearray(kept.read_bytes())
    whole[at] ^= 1
    kept.write_bytes(whole)
    assert ours(folder) == expected
    assert len(scans) == 2
    assert ours(folder) == expected
    assert len(scans) == 2


@pytest.mark.parametrize("length", [0, 3, 48, 49, 300])
def test_so_is_one_that_was_cut_short(folder, cache, scans, length):
    expected = ours(folder)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:length])
    assert ours(folder) == expected
    assert len(scans) == 2


def test_so_is_one_that_is_no_file_and_one_that_is_too_large(folder, cache, scans, monkeypatch):
    expected = ours(folder)
    (kept,) = cache.iterdir()
    monkeypatch.setattr(listings, "_LARGEST", kept.stat().st_size - 1)
    assert ours(folder) == expected
    kept.unlink()
    kept.mkdir()
    assert ours(folder) == expected
    assert len(scans) == 3


@pytest.mark.parametrize("problem", ["a file in the way", "no room", "no home"])
def test_where_nothing_can_be_kept_nothing_fails(folder, cache, scans, monkeypatch, problem):
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if problem == "a file in the way":
        cache.parent.parent.write_text("")
    elif problem == "no room":
        monkeypatch.setattr(files.os, "fsync", no_room)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(listings.os.path, "expanduser", lambda path: path)
    assert ours(folder) == ours(folder) == torchvisions(folder)
    assert len(scans) == 2


def test_one_rank_alone_writes(folder, cache, scans):
    open_listing(str(folder), keep=False)
    assert not cache.exists()
    open_listing(str(folder))
    open_listing(str(folder), keep=False)
    assert len(scans) == 2


def _open_many(folder: str) -> set[int]:
    listings._FEWEST = 1
    now = listings.time.time_ns
    listings.time.time_ns = lambda: now() + MINUTE
    return {len(open_listing(folder)) for _ in range(20)}


def test_processes_that_read_and_write_at_once_all_see_the_whole(tmp_path, monkeypatch):
    root = tmp_path / "images"
    for label in range(3):
        (root / str(label)).mkdir(parents=True)
        for index in range(300):
            (root / str(label) / f"{index}.png").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_open_many, [str(root)] * 4)) == [{900}] * 4
    assert len(list((tmp_path / "cache" / "vitas" / "listings").iterdir())) == 1


def test_labels_and_names_are_arrays(folder):
    images = open_listing(str(folder)).samples
    assert isinstance(images.names, bytes)
    assert {type(column) for column in (images.starts, images.ends, images.labels)} == {np.ndarray}

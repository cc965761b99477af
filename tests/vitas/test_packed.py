"""Packed folders: what is read of a pack is what is read of the folder, and nothing that a disk changed is used."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vitas.data.bad_images import BadImages
from vitas.data.census import open_all
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import (
    EvaluationData,
    Part,
    TrainingData,
    check_image_folder,
    class_names,
    common_image,
    count_images,
    listing,
    small_classes,
)
from vitas.data.images import draw_images, folder_listing, open_image_folder, spread_images
from vitas.data.pack_index import INDEX, read_index
from vitas.data.packed import PackedFolder, checksum, schema
from vitas.data.packing import PackOptions, pack
from vitas.data.pictures import BadImage
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.errors import UserError

# Latin-1, a line break, a name beside a folder of its beginning; and a folder in a class.
ODD = [
    os.fsdecode(name) for name in (b"\xff\xe9.png", b"a\nb.png", b"x.y.png", b"x/y.png", b"x-y/z.PNG", "ü.png".encode())
]


def noise(mode: str, seed: int = 0, size: tuple[int, int] = (20, 12)) -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0]) if mode == "L" else Image.frombytes(mode, size, pixels.tobytes())


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of every kind, and under every kind of name, in three classes whose names are sorted oddly."""
    folder = tmp_path_factory.mktemp("images") / "folder"
    kinds = folder / "kinds"
    for mode in ("L", "RGB", "CMYK"):
        save(noise(mode), kinds / f"{mode}.jpg")
    turned = Image.Exif()
    turned[274] = 6
    save(noise("RGB", 1), kinds / "turned.jpeg", exif=turned)
    save(noise("RGBA", 2), kinds / "through.png")
    save(noise("RGB", 3).quantize(16), kinds / "palette.png")
    save(Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 273), kinds / "deep.png")
    for number, ending in enumerate(("webp", "bmp", "ppm", "tiff", "pgm")):
        save(noise("L" if ending == "pgm" else "RGB", number), kinds / f"other.{ending}")
    for number, name in enumerate(ODD):
        save(noise("RGB", number), folder / os.fsdecode(b"\xe9t\xe9") / name)
    for number in range(7):
        save(noise("RGB", number), folder / "Kinds" / f"{number}.png")
    (kinds / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def packed(images) -> Path:
    """Them as a pack of several files of several records."""
    out = images.with_name("folder.pack")
    pack(images, out, PackOptions(shard_bytes=4000), 1)
    assert len(read_index(out).shards) > 2
    return out


@pytest.fixture
def copied(packed, tmp_path) -> Path:
    """A pack that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "folder.pack"))


def names_of(folder, place: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(path, place), label) for path, label in folder.samples]


def same_images(one, other) -> bool:
    return all(
        np.array_equal(*(np.asarray(folder.read(index)) for folder in (one, other)))
        and one.label(index) == other.label(index)
        for index in range(len(one))
    )


def test_a_pack_has_the_images_names_and_labels_of_the_folder_in_its_order(images, packed):
    plain, opened = open_image_folder(str(images)), open_image_folder(str(packed))
    assert isinstance(opened, PackedFolder)
    assert (opened.classes, opened.labels.tolist(), len(opened)) == (plain.classes, plain.labels.tolist(), len(plain))
    assert names_of(opened, packed) == names_of(plain, images)
    assert same_images(plain, opened)
    for index, (path, _) in enumerate(plain.samples):
        assert opened.content(index) == Path(path).read_bytes()
    # In any order of access, by slices too.
    assert opened.samples[3:9:2] == list(opened.samples)[3:9:2]
    assert [opened.samples[index] for index in range(len(opened))] == list(opened.samples)


def test_a_path_is_found_however_its_folder_is_written(packed, monkeypatch):
    opened = PackedFolder(str(packed))
    for index, (path, _) in enumerate(opened.samples):
        assert opened.find(path) == index
        assert np.array_equal(np.asarray(opened.loader(Path(path))), np.asarray(opened.read(index)))
    monkeypatch.chdir(packed.parent)
    assert PackedFolder("./folder.pack").find(opened.samples[5][0]) == 5
    for gone in (packed / "kinds" / "gone.jpg", packed, packed.parent / "a", packed / INDEX, "/"):
        assert opened.find(gone) is None
    with pytest.raises(BadImage, match=r"gone\.jpg is not in the pack"):
        opened.loader(packed / "kinds" / "gone.jpg")


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_part_of_a_pack_is_that_of_the_folder(images, packed, share, held_out):
    part = Part(share, held_out)
    plain, opened = open_image_folder(str(images), part), open_image_folder(str(packed), part)
    assert (names_of(opened, packed), opened.labels.tolist()) == (names_of(plain, images), plain.labels.tolist())
    assert same_images(plain, opened)
    assert [opened.find(path) for path, _ in opened.samples] == list(range(len(plain)))
    assert folder_listing(opened) == folder_listing(plain)
    assert count_images(str(packed), part) == len(plain) == count_images(str(images), part)
    everything = open_image_folder(str(packed))
    out_of_it = set(everything.samples) - set(opened.samples)
    assert out_of_it
    assert all(opened.find(path) is None for path, _ in out_of_it)


def test_what_is_asked_without_opening_images_is_as_of_the_folder(images, packed):
    assert class_names(str(packed)) == class_names(str(images))
    assert small_classes(str(packed), 7) == small_classes(str(images), 7) != []
    assert folder_listing(open_image_folder(str(packed))) == folder_listing(open_image_folder(str(images)))
    check_image_folder(str(packed), 3)
    with pytest.raises(UserError, match=r"holds 3 class folders; model\.num_classes is 10"):
        check_image_folder(str(packed), 10)


def test_a_batch_of_training_and_evaluation_is_that_of_the_folder_with_workers_too(images, packed):
    """A worker is forked from a process that has read of the pack."""

    def batches(folder: Path, workers: int) -> list:
        data = TrainingData(data_dir=str(folder), workers=workers)
        loader = TrainingLoader(data, 16, [0.5] * 3, [0.5] * 3, 4, World(), seed=0)
        return list(loader.batches(2, 9))

    wanted = batches(images, 0)
    for workers in (0, 2):
        for (pixels, labels), (others, their_labels) in zip(wanted, batches(packed, workers), strict=True):
            assert torch.equal(pixels, others)
            assert torch.equal(labels, their_labels)
    sets = [
        EvaluationSet.load(EvaluationData(data_dir=str(folder), workers=0), 16, [0.5] * 3, [0.5] * 3, World(), True)
        for folder in (images, packed)
    ]
    assert torch.equal(sets[0].images, sets[1].images)
    assert torch.equal(sets[0].labels, sets[1].labels)
    for what in ("names", "files", "classes"):
        assert getattr(sets[0], what) == getattr(sets[1], what)


def test_images_that_are_drawn_are_those_of_the_folder(images, packed):
    for draw in (
        lambda folder: draw_images(folder, 9, 16, 1.0, 3)[0],
        lambda folder: spread_images(folder, 5, 16, 1.0),
    ):
        assert torch.equal(draw(str(images)), draw(str(packed)))


class Lengths(torch.utils.data.Dataset):
    def __init__(self, folder: PackedFolder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> int:
        return len(self.folder.content(index))


def test_forked_processes_read_an_opened_pack(packed):
    opened = PackedFolder(str(packed))
    wanted = [len(opened.content(index)) for index in range(len(opened))]
    context = multiprocessing.get_context("fork")
    loader = DataLoader(Lengths(opened), 5, num_workers=1, multiprocessing_context=context)
    assert torch.cat(list(loader)).tolist() == wanted


def test_a_pack_is_sent_to_spawned_processes_as_its_name_and_read_there(images, packed):
    opened = PackedFolder(str(packed))
    assert opened.labels.tolist()
    assert opened.content(0)
    sent = pickle.dumps(opened)
    assert len(sent) < 4000
    assert same_images(pickle.loads(sent), opened)
    census, of_files = open_all(str(packed), 2), open_all(str(images), 1)
    assert (census.images, set(census.contents), census.bad) == (of_files.images, set(of_files.contents), {})


def flip(path: Path, content: bytes, at: int = 0) -> None:
    """Change a bit of what a file holds."""
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + at] ^= 1
    path.write_bytes(whole)


def shard_of(folder: Path, content: bytes) -> Path:
    return next(path for path in sorted(folder.glob("*.arrow")) if content in path.read_bytes())


def test_an_image_with_a_flipped_bit_is_bad_and_no_other(images, copied):
    content = (images / "kinds" / "RGB.jpg").read_bytes()
    flip(shard_of(copied, content), content, len(content) // 2)
    opened = PackedFolder(str(copied))
    index = opened.find(copied / "kinds" / "RGB.jpg")
    with pytest.raises(BadImage, match=r"RGB\.jpg is not what was packed, by its checksum"):
        opened.read(index)
    assert sum(is_bad(opened, index) for index in range(len(opened))) == 1
    census = open_all(str(copied), 1)
    assert {os.path.relpath(path, copied): reason for path, reason in census.bad.items()} == {
        "kinds/RGB.jpg": "is not what was packed, by its checksum"
    }


def is_bad(folder: PackedFolder, index: int) -> bool:
    try:
        folder.read(index)
    except BadImage:
        return True
    return False


def test_training_puts_the_next_good_image_in_the_place_of_a_damaged_one_up_to_the_share(images, copied, tmp_path):
    content = (images / "kinds" / "RGB.jpg").read_bytes()
    flip(shard_of(copied, content), content, 99)
    lines: list[str] = []
    report = SimpleNamespace(bad_images=tmp_path / "bad_images.txt", line_of_any_rank=lines.append)

    def train(share: float) -> int:
        data = TrainingData(data_dir=str(copied), workers=0, bad_images=share)
        loader = TrainingLoader(data, 16, [0.5] * 3, [0.5] * 3, 5, World(), seed=0, report=report)
        return len(list(loader.batches(0, loader.steps_per_epoch)))

    assert train(0.04) == 5
    assert len(lines) == 1
    assert f"{copied}/kinds/RGB.jpg is not what was packed" in lines[0]
    with pytest.raises(UserError, match="found 1 bad image among the 25"):
        train(0)
    # What an earlier start found counts until the pack is mended.
    with pytest.raises(UserError, match="found 1 bad image"):
        BadImages(str(copied), 25, 0.0, report)
    flip(shard_of(copied, content[:99]), content[:99], 99)
    BadImages(str(copied), 25, 0.0, report)


def rewrite(folder: Path, change: Callable[[list[dict]], None]) -> None:
    """Change the records of a pack's first file, as a stranger might, and have the index fit it."""
    index = read_index(folder)
    path = folder / index.shards[0].name
    with pyarrow.ipc.open_file(path) as file:
        records = file.read_all().to_pylist()
    change(records)
    with pyarrow.ipc.new_file(str(path), schema()) as writer:
        writer.write_table(pyarrow.Table.from_pylist(records, schema()))
    shard = replace(index.shards[0], bytes=path.stat().st_size)
    (folder / INDEX).write_bytes(replace(index, shards=(shard, *index.shards[1:])).as_json())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("path", b"Kinds/8.png", "is not what was packed, by its checksum"),
        ("crc32", 7, "is not what was packed, by its checksum"),
        ("image", b"", "is not what was packed, by its checksum"),
        ("label", 1, "its labels are not those of pack.json"),
        ("label", -1, "its labels are not those of pack.json"),
        ("path", b"kinds/0.png", "it names an image that is not in its class"),
        ("path", b"Kinds", "it names an image that is not in its class"),
        ("path", b"Kinds/../../x.png", "it names an image that is not in its class"),
        ("path", b"/etc/x.png", "it names an image that is not in its class"),
        ("path", b"Kinds/" + b"x" * 5000, "it names an image that is not in its class"),
    ],
)
def test_a_changed_record_is_never_used(copied, column, value, reason):
    rewrite(copied, lambda records: records[0].update({column: value}))
    opened = PackedFolder(str(copied))
    with pytest.raises(BadImage, match=reason):
        opened.read(0)
    if "checksum" in reason:
        assert is_bad(opened, 0)
        assert not is_bad(opened, 1)
        return
    # Then nothing of the file can be trusted.
    assert is_bad(opened, 1)
    with pytest.raises(UserError, match=rf"00000\.arrow is damaged: {reason}; copy it again, or pack again"):
        list(opened.samples)


def test_names_that_changed_with_their_checksums_are_no_longer_those_of_the_index(copied):
    def rename(records: list[dict]) -> None:
        record = records[0] | {"path": b"Kinds/00.png"}
        records[0] = record | {"crc32": checksum(record["path"], record["label"], record["image"])}

    rewrite(copied, rename)
    assert not is_bad(PackedFolder(str(copied)), 0)
    with pytest.raises(UserError, match="whose names are not those of its index; pack the folder again"):
        open_all(str(copied), 1)


def test_a_pack_of_which_a_part_is_missing_is_refused_when_it_is_opened(copied):
    shard = sorted(copied.glob("*.arrow"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    for read in (PackedFolder, open_image_folder, lambda folder: check_image_folder(folder, 3)):
        with pytest.raises(UserError, match=r"00001\.arrow has [\d,]+ bytes and must have [\d,]+; copy the pack again"):
            read(str(copied))
    shard.unlink()
    with pytest.raises(UserError, match=r"00001\.arrow: No such file or directory; it is a part of the pack"):
        PackedFolder(str(copied))


def test_a_folder_without_an_index_is_no_pack_and_a_changed_index_is_refused(copied):
    index = (copied / INDEX).read_bytes()
    (copied / INDEX).write_bytes(index.replace(b'"Kinds"', b'"Linds"'))
    with pytest.raises(UserError, match="is not what was written, by its digest"):
        open_image_folder(str(copied))
    (copied / INDEX).write_bytes(index[:-20])
    with pytest.raises(UserError, match="is not JSON"):
        class_names(str(copied))
    (copied / INDEX).unlink()
    assert class_names(str(copied)) == []
    with pytest.raises(UserError, match="holds no class folder"):
        open_image_folder(str(copied))


def test_an_index_of_a_later_version_is_refused_by_name(copied):
    data = json.loads((copied / INDEX).read_text())
    (copied / INDEX).write_text(json.dumps(data | {"version": 2}))
    with pytest.raises(UserError, match=r"is of version 2, and 1 is the one that is read here"):
        read_index(copied)


def test_images_in_common_are_found_by_name_and_content(images, packed, tmp_path):
    places = (str(images), str(packed))
    for first, second in (places, places[::-1], (str(packed), str(packed))):
        assert common_image(first, second) is not None
    other = tmp_path / "other"
    for name in class_names(str(images)):
        save(noise("RGB", 50), other / name / "0.png")
        save(noise("RGB", 51), other / name / "1.png")
    other_pack = tmp_path / "other.pack"
    pack(other, other_pack, PackOptions(), 1)
    for first, second in ((packed, other), (other, packed), (images, other_pack), (other_pack, packed)):
        assert common_image(str(first), str(second)) is None


def test_a_missing_pyarrow_is_named_with_the_extra_that_brings_it(packed, monkeypatch):
    monkeypatch.setattr("vitas.data.pack_index.find_spec", lambda name: None)
    for read in (open_image_folder, lambda folder: check_image_folder(folder, 3)):
        with pytest.raises(UserError, match=r"packed folders need pyarrow: pip install 'vitas\[pack\]'"):
            read(str(packed))
    # Class names do not need it.
    assert len(class_names(str(packed))) == 3


def test_any_arrow_library_reads_a_shard(images, packed):
    with pyarrow.memory_map(str(sorted(packed.glob("*.arrow"))[0])) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    assert table.column_names == ["path", "label", "image", "crc32"]
    first = os.fsdecode(table["path"][0].as_py())
    assert (images / first).read_bytes() == table["image"][0].as_py()


def test_the_listing_of_a_pack_is_what_a_resume_compares(images, packed):
    plain = open_image_folder(str(images))
    assert PackedFolder(str(packed)).listing() == listing(plain.classes, plain.samples)

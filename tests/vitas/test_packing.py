"""`vitas pack`: the same bytes for the same images, whole or not there, and nothing overwritten."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import ENVIRONMENT, REPOSITORY
from vitas.data.pack_index import INDEX, read_index
from vitas.data.packed import PackedFolder
from vitas.data.packing import LEFT_OUT, PackOptions, pack
from vitas.data.pictures import read_image, size_of
from vitas.errors import UserError

OPTIONS = PackOptions(shard_bytes=15_000)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty small photos, smooth as photos are, in two classes."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    rng = np.random.default_rng(0)
    for number in range(40):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.{('jpg', 'png')[number % 4 == 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


@pytest.fixture
def images(photos, tmp_path) -> Path:
    """Them, for a test to change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "options",
    [OPTIONS, PackOptions(size=32, shard_bytes=8000), PackOptions(shard_bytes=100_000, uncompressed=True)],
)
def test_the_bytes_do_not_depend_on_the_number_of_processes(photos, tmp_path, options):
    made = [pack(photos, tmp_path / str(processes), options, processes) for processes in (1, 3)]
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert made[0] == made[1]
    assert len(made[0].index.shards) > 2
    for shard in made[0].index.shards[:-1]:
        assert shard.bytes >= options.shard_bytes


def test_larger_images_are_brought_to_a_size_and_others_stay_as_they_are(photos, tmp_path):
    pack(photos, tmp_path / "small", PackOptions(size=32), 1)
    pack(photos, tmp_path / "coarse", PackOptions(size=32, quality=20), 1)
    pack(photos, tmp_path / "whole", PackOptions(size=64), 1)
    small, coarse, whole = (PackedFolder(str(tmp_path / name)) for name in ("small", "coarse", "whole"))
    for index, (path, _) in enumerate(whole.samples):
        file = photos / os.path.relpath(path, tmp_path / "whole")
        assert whole.content(index) == file.read_bytes()
        content = small.content(index)
        with Image.open(io.BytesIO(content)) as image:
            assert (image.size, image.format) == ((48, 32), "PNG" if file.suffix == ".png" else "JPEG")
        with Image.open(file) as image:
            resized = image.convert("RGB").resize((48, 32), Image.Resampling.BICUBIC)
        error = np.abs(np.asarray(small.read(index), int) - np.asarray(resized, int)).mean()
        assert error == 0 if file.suffix == ".png" else error < 6
        assert file.suffix == ".png" or len(coarse.content(index)) < len(content)


def test_a_turned_image_is_packed_as_viewers_show_it(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "in" / "a" / "x.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (100, 60)).save(path, exif=exif)
    pack(tmp_path / "in", tmp_path / "out", PackOptions(size=30), 1)
    assert size_of(PackedFolder(str(tmp_path / "out")).read(0)) == (30, 50)


def test_an_uncompressed_image_is_read_as_its_file_is_bit_for_bit(photos, tmp_path):
    """Also of files of which Pillow alone would show something else, or which it shows in other colours."""
    photo = Image.open(photos / "cat" / "0.jpg")
    exif = Image.Exif()
    exif[274] = 6
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("L").save(folder / "grey.webp")
    rgba = photo.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(photo.size))
    rgba.save(folder / "transparent.png")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(folder / "deep.png")
    pack(tmp_path / "in", tmp_path / "out", PackOptions(uncompressed=True), 1)
    packed = PackedFolder(str(tmp_path / "out"))
    assert len(packed) == 6
    for index, (path, _) in enumerate(packed.samples):
        expected = read_image(folder / os.path.basename(path))
        assert packed.content(index).startswith(b"P6\n")
        assert size_of(packed.read(index)) == expected.size
        assert packed.read(index).tobytes() == expected.tobytes(), path
        # Without any program of ours.
        assert Image.open(io.BytesIO(packed.content(index))).tobytes() == expected.tobytes()


def test_an_uncompressed_image_is_brought_to_a_size_without_loss(photos, tmp_path):
    pack(photos, tmp_path / "out", PackOptions(size=32, uncompressed=True), 1)
    packed = PackedFolder(str(tmp_path / "out"))
    for index, (path, _) in enumerate(packed.samples):
        image = read_image(photos / os.path.relpath(path, tmp_path / "out"))
        assert packed.read(index).tobytes() == image.resize((48, 32), Image.Resampling.BICUBIC).tobytes()


def break_two(images: Path) -> None:
    (images / "cat" / "8.jpg").write_bytes(b"no image")
    (images / "dog" / "5.jpg").write_bytes((images / "dog" / "5.jpg").read_bytes()[:300])


def test_bad_images_are_refused_with_all_their_names_and_what_is_finished_is_kept(images, tmp_path):
    break_two(images)
    told: list[str] = []
    with pytest.raises(UserError, match="found 2 bad images among the 40 of") as raised:
        pack(images, tmp_path / "out", OPTIONS, 1, tell=told.append)
    assert [line.partition("photos/")[2] for line in str(raised.value).split("\n")[1:]] == ["cat/8.jpg", "dog/5.jpg"]
    assert told[0] == f"{images}/cat/8.jpg is not an image"
    assert not (tmp_path / "out").exists()
    # Mended, they are packed: those that were found bad are read again.
    shutil.copy(images / "cat" / "0.jpg", images / "cat" / "8.jpg")
    shutil.copy(images / "dog" / "1.jpg", images / "dog" / "5.jpg")
    pack(images, tmp_path / "out", OPTIONS, 1)
    pack(images, tmp_path / "anew", OPTIONS, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


def test_bad_images_are_left_out_where_that_is_said_and_named(images, tmp_path):
    break_two(images)
    options = PackOptions(shard_bytes=15_000, leave_out_bad=True)
    made = pack(images, tmp_path / "out", options, 1)
    assert made.left_out.keys() == {"cat/8.jpg", "dog/5.jpg"}
    assert "cat/8.jpg\tis not an image\n" in (tmp_path / "out" / LEFT_OUT).read_text()
    names = list(PackedFolder(str(tmp_path / "out")).names())
    assert len(names) == made.index.images == 38
    assert not made.left_out.keys() & set(names)
    # It is known again; and is not what is asked for where nothing may be left out.
    assert pack(images, tmp_path / "out", options, 1).left_out == made.left_out
    with pytest.raises(UserError, match="with bad images left out"):
        pack(images, tmp_path / "out", OPTIONS, 1)
    # Without them in the folder, the same files.
    for name in made.left_out:
        (images / name).unlink()
    pack(images, tmp_path / "others", options, 1)
    left, right = contents(tmp_path / "out"), contents(tmp_path / "others")
    assert {name for name in left if left[name] != right.get(name)} == {INDEX, LEFT_OUT}
    for path in (images / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="which has no good image of class 'cat'"):
        pack(images, tmp_path / "third", options, 1)


class DeathError(Exception):
    """Stands for the death of the process."""


def die_at(count: int):
    def progress(done: int, total: int) -> None:
        if done == count:
            raise DeathError

    return progress


@pytest.mark.parametrize("count", [1, 15, 30, 40])
def test_a_packing_that_ended_in_the_middle_goes_on_after_its_finished_files(photos, tmp_path, count):
    pack(photos, tmp_path / "undisturbed", OPTIONS, 1)
    with pytest.raises(DeathError):
        pack(photos, tmp_path / "out", OPTIONS, 1, die_at(count))
    assert not (tmp_path / "out").exists()
    finished = sorted((tmp_path / ".out.unfinished").glob("*.arrow"))
    before = {path.name: path.stat().st_mtime_ns for path in finished}
    assert bool(before) == (count > 1)
    began: list[int] = []
    pack(photos, tmp_path / "out", OPTIONS, 1, lambda done, total: began.append(done))
    assert (began[0] > 0) == bool(before)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()
    assert not (tmp_path / ".out.unfinished").exists()


@pytest.mark.parametrize("changed", ["image", "options", "uncompressed", "names", "file", "journal"])
def test_what_changed_meanwhile_is_packed_anew(images, tmp_path, changed):
    with pytest.raises(DeathError):
        pack(images, tmp_path / "out", OPTIONS, 1, die_at(30))
    unfinished = tmp_path / ".out.unfinished"
    options = OPTIONS
    if changed == "image":
        shutil.copy(images / "dog" / "1.jpg", images / "cat" / "12.jpg")
    elif changed == "names":
        (images / "cat" / "0.jpg").rename(images / "cat" / "00.jpg")
    elif changed == "options":
        options = PackOptions(shard_bytes=20_000)
    elif changed == "uncompressed":
        options = PackOptions(shard_bytes=15_000, uncompressed=True)
    elif changed == "file":
        (unfinished / "00000.arrow").write_bytes(b"")
    else:
        with open(unfinished / "packing.jsonl", "ab") as file:
            file.write(b'{"half a li')
    pack(images, tmp_path / "out", options, 1)
    pack(images, tmp_path / "anew", options, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


@pytest.mark.slow
def test_a_killed_packing_leaves_no_pack_and_no_process_and_the_same_command_ends_it(photos, tmp_path):
    arguments = ["pack", photos, tmp_path / "out", "--workers", "2", "--shard-size", "15k"]
    command = [sys.executable, "-m", "vitas", *map(str, arguments)]
    unfinished = tmp_path / ".out.unfinished"
    process = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT)
    while not unfinished.exists():
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(0.3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 images of 2 classes" in done.stdout
    pack(photos, tmp_path / "undisturbed", OPTIONS, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_says_what_it_made_and_does_it_once(vitas, photos, tmp_path):
    out = tmp_path / "p.pack"
    arguments = ("pack", photos, out, "--workers", 1, "--shard-size", "15k")
    code, printed, err = vitas(*arguments)
    assert (code, err) == (0, "")
    assert printed.startswith(f"{out}: 40 images of 2 classes in ")
    assert printed.endswith(f"use it: data_dir: {out}\n")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    code, printed, _ = vitas(*arguments, "--json")
    found = json.loads(printed)
    index = read_index(out)
    assert found == {
        "pack": str(out), "images": 40, "classes": 2, "files": len(index.shards),
        "bytes": sum(path.stat().st_size for path in out.glob("*.arrow")), "left_out": {},
    }  # fmt: skip
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_the_command_names_bad_images_and_leaves_them_out(vitas, images, tmp_path):
    break_two(images)
    code, out, err = vitas("pack", images, tmp_path / "out", "--workers", 1)
    assert (code, out) == (2, "")
    assert f"warning: {images}/cat/8.jpg is not an image\n" in err
    assert "mend or remove them, or pack the others with --leave-out-bad" in err
    code, out, err = vitas("pack", images, tmp_path / "out", "--workers", 1, "--leave-out-bad")
    assert code == 0
    assert f"2 bad ones left out ({tmp_path}/out/left_out.txt)" in out
    code, out, _ = vitas("pack", images, tmp_path / "out", "--workers", 1, "--leave-out-bad", "--json")
    assert json.loads(out)["left_out"]["cat/8.jpg"] == "is not an image"


def test_what_cannot_be_packed_is_refused_and_nothing_is_touched(vitas, images, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".strange.unfinished").mkdir()
    (tmp_path / ".strange.unfinished" / "mine").write_text("mine")
    pack(images, tmp_path / "packed", PackOptions(), 1)
    (tmp_path / "holes" / "cat").mkdir(parents=True)

    def refusal(*arguments: object) -> str:
        code, out, err = vitas("pack", *arguments, "--workers", 1)
        assert (code, out) == (2, "")
        return err

    assert "is not a folder" in refusal(tmp_path / "gone", tmp_path / "out")
    assert "is not a folder" in refusal(tmp_path / "file", tmp_path / "out")
    assert "holds no folder" in refusal(tmp_path / "empty", tmp_path / "out")
    assert "which has no image of class 'cat'" in refusal(tmp_path / "holes", tmp_path / "out")
    assert "is packed already" in refusal(tmp_path / "packed", tmp_path / "out")
    assert "is there already and is no pack" in refusal(images, tmp_path / "file")
    assert "is there already and is no pack" in refusal(images, tmp_path / "empty")
    assert "is there already, with another size" in refusal(images, tmp_path / "packed", "--size", 32)
    assert "is there already, with compressed images" in refusal(images, tmp_path / "packed", "--uncompressed")
    pack(images, tmp_path / "raw", PackOptions(uncompressed=True), 1)
    assert "is there already, with images that are uncompressed" in refusal(images, tmp_path / "raw")
    both = ("--size", 32, "--quality", 80, "--uncompressed")
    assert "--uncompressed writes none; leave one out" in refusal(images, tmp_path / "out", *both)
    assert "is in the folder that is packed" in refusal(images, images / "out")
    assert "is no unfinished pack; move it away" in refusal(images, tmp_path / "strange")
    assert "it must be a number of bytes, as 1G or 500M" in refusal(images, tmp_path / "out", "--shard-size", "much")
    assert "--quality is of images that --size makes smaller" in refusal(images, tmp_path / "out", "--quality", 80)
    (images / "cat" / "0.jpg").unlink()
    assert "is there already, of other images" in refusal(images, tmp_path / "packed")
    assert (tmp_path / ".strange.unfinished" / "mine").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_missing_pyarrow_is_named_with_the_extra_that_brings_it(vitas, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("vitas.data.pack_index.find_spec", lambda name: None)
    code, _, err = vitas("pack", photos, tmp_path / "out")
    assert code == 2
    assert "packed folders need pyarrow: pip install 'vitas[pack]'" in err


def test_two_packings_of_one_name_are_not_at_work_at_once(photos, tmp_path):
    def start_another(done: int, total: int) -> None:
        if done == 3:
            with pytest.raises(UserError, match="is being written by another vitas pack; wait for it"):
                pack(photos, tmp_path / "out", OPTIONS, 1)

    pack(photos, tmp_path / "out", OPTIONS, 1, start_another)
    assert read_index(tmp_path / "out").images == 40

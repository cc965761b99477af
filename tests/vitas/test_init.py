"""`vitas init`: what it writes passes `vitas check` and runs, whatever the images are."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.processes import run_here
from vitas import config
from vitas.data.packing import PackOptions, pack
from vitas.data.survey import survey
from vitas.errors import UserError


@pytest.fixture
def make_images(tmp_path):
    """(part: images of each class, side, mode) -> a folder of such parts, with `classes` classes."""

    def make(parts: dict[str, int], side: int = 40, classes: int = 3, mode: str = "RGB", name: str = "images"):
        for part, count in parts.items():
            rng = np.random.default_rng(len(part))
            for i in range(classes):
                folder = tmp_path / name / part / f"class {i}"
                folder.mkdir(parents=True)
                for j in range(count):
                    pixels = rng.integers(0, 255, (side, side + 7, 3), dtype=np.uint8)
                    Image.fromarray(pixels).convert(mode).save(folder / f"{j}.png")
        return tmp_path / name

    return make


def written(vitas, folder, tmp_path, *options):
    """The YAML that it writes for a folder, checked."""
    path = tmp_path / "new.yaml"
    code, out, err = vitas("init", folder, "--output", path, "--save-path", tmp_path / "run", *options)
    assert (code, err) == (0, "")
    assert out.endswith(f"next: vitas check {path}\n")
    code, out, _ = vitas("check", path)
    assert code == 0, out
    return path


def test_the_yaml_for_small_images_passes_every_check_and_runs(vitas, digits, tmp_path):
    path = written(vitas, digits, tmp_path, "--gpus", 0)
    loaded = config.load(path)
    assert (loaded.model.image_size, loaded.model.num_classes) == (32, 10)
    assert loaded.flagged(("search", "sample", "retrain", "test")) == ["search", "sample", "retrain", "test"]
    short = ("search.epochs=1", "search.warmup_epochs=0", "retrain.epochs=1", "retrain.warmup_epochs=0")
    few = ("sample.generations=0", "sample.initial_population=3", "search.batch_size=256", "retrain.batch_size=256")
    for program in ("search", "retrain", "inference"):
        run_here(program, path, *short, *few)
    assert loaded.folder.results.exists()


@pytest.mark.parametrize("side", [5, 28, 50, 70, 100, 150, 250])
@pytest.mark.parametrize("gpus", [0, 4])
def test_images_of_any_size_have_a_size_a_space_and_a_budget_that_fit(vitas, make_images, tmp_path, side, gpus):
    folder = make_images({"train": 6, "val": 2, "test": 2}, side, mode="L" if side < 50 else "RGB")
    loaded = config.load(written(vitas, folder, tmp_path, "--gpus", gpus))
    size = loaded.model.image_size
    assert size <= max(28, 1.15 * side)
    assert gpus or size <= 64
    loaded.macs_model.require(loaded.budget)


def test_a_data_set_of_millions_has_the_space_of_vitas(make_images, monkeypatch):
    from dataclasses import replace

    from vitas.suggestion import suggest

    found = survey(make_images({"train": 4, "val": 1, "test": 1}, 300))
    large = replace(found, images={"train": 1_281_167, "val": 50_000, "test": 50_000})
    chosen = suggest(large, "runs/x", "x.yaml", 8)
    assert (chosen.image_size, chosen.scale, chosen.batch_size) == (224, "that of ViTAS", 1024)
    assert chosen.epochs[0] >= 100
    assert "embed_dim: 384" in chosen.yaml
    assert "mixup: 0.8" in chosen.yaml


def test_what_is_odd_about_the_classes_is_said(vitas, make_images, tmp_path):
    folder = make_images({"train": 8, "val": 2, "test": 2})
    for path in sorted((folder / "train" / "class 1").iterdir())[1:]:
        path.unlink()
    text = written(vitas, folder, tmp_path).read_text()
    assert 'The classes are uneven, from 1 ("class 1") to 8 images' in text


@pytest.mark.parametrize("layout", ["train alone", "classes", "train and test"])
def test_without_val_images_a_share_of_train_is_held_out(vitas, make_images, tmp_path, layout):
    folder = make_images({"train": 20} | ({"test": 2} if layout == "train and test" else {}))
    loaded = config.load(written(vitas, folder / "train" if layout == "classes" else folder, tmp_path))
    assert loaded.search.data.holdout == loaded.sample.data.holdout == loaded.retrain.data.holdout == 0.1
    assert loaded.sample.data.data_dir == loaded.search.data.data_dir
    assert loaded.test.data.data_dir.endswith("test" if layout == "train and test" else "train")


def test_a_folder_with_quotes_and_a_hash_in_its_name_is_one(vitas, make_images, tmp_path):
    folder = make_images({"train": 6, "val": 2, "test": 2}, name='my "images": #1')
    assert config.load(written(vitas, folder, tmp_path)).search.data.data_dir == str(folder / "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "which is not a folder"),
        (lambda folder: (folder / "train").mkdir(parents=True), "has images of 0 classes"),
        (lambda folder: (folder / "val").mkdir(parents=True), "has no folder train beside val"),
    ],
)
def test_a_folder_without_images_is_refused_and_nothing_is_written(vitas, tmp_path, make, message):
    make(tmp_path / "images")
    code, out, err = vitas("init", tmp_path / "images", "--output", tmp_path / "new.yaml")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "new.yaml").exists()


def test_files_that_are_no_images_are_told_apart_from_few(make_images):
    folder = make_images({"train": 2})
    for path in folder.rglob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the images can be opened"):
        survey(folder)


def test_a_file_that_is_there_stays(vitas, digits, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    code, _, err = vitas("init", digits, "--output", path)
    assert (code, "is there already" in err, path.read_text()) == (2, True, "mine")
    assert vitas("init", digits, "--output", path, "--overwrite")[0] == 0


def test_the_yamls_of_the_project_are_listed_and_copied_with_their_comments(vitas, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    _, out, _ = vitas("init", "--list")
    assert {"quickstart.yaml", "search/ViTAS_1G.yaml", "retrain/ViTAS_1.3G.yaml"} <= set(out.split())
    assert vitas("init", "--from", "quickstart")[0] == 0
    assert (tmp_path / "quickstart.yaml").read_text() == (repository / "configs" / "quickstart.yaml").read_text()
    assert vitas("init", "--from", "vitas_1g", "--output", "own.yaml")[0] == 0
    assert (tmp_path / "own.yaml").read_text() == (repository / "configs" / "search" / "ViTAS_1G.yaml").read_text()
    code, _, err = vitas("init", "--from", "quickstrat")
    assert (code, "did you mean quickstart.yaml" in err) == (2, True)
    shutil.rmtree(tmp_path)


def test_packs_of_the_images_have_the_yaml_of_their_folders(vitas, make_images, tmp_path):
    folder = make_images({"train": 6, "val": 2, "test": 2}, 50)
    packs = tmp_path / "packs"
    for part in ("train", "val", "test"):
        pack(folder / part, packs / f"{part}.pack", PackOptions(), 1)
    plain, packed = survey(folder), survey(packs)
    assert packed == replace(plain, parts={part: packs / f"{part}.pack" for part in plain.parts})
    assert "train.pack" in written(vitas, packs, tmp_path, "--gpus", 0).read_text()

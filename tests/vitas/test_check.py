"""`vitas check`, and what a program says of the stages after its own."""

import json
import shutil

import pytest

from vitas import config
from vitas.data.census import open_all
from vitas.data.folders import IMAGE_ENDINGS, Part, count_images


@pytest.fixture
def images(digits, tmp_path):
    """A copy of the digits that a test may change."""
    shutil.copytree(digits, tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def of_images(images, make_config):
    """The YAML of a run on these."""
    return make_config({f"{stage}.data.data_dir": str(images / part) for stage, part in FOLDERS.items()})


FOLDERS = {"search": "train", "sample": "val", "retrain": "train", "test": "test"}


def test_a_run_that_can_work_has_nothing_to_mend_and_is_told_what_is_next(vitas, make_config):
    path = make_config()
    code, out, err = vitas("check", path, "seed=3")
    assert (code, err) == (0, "")
    assert out == f"{path}: nothing to mend (search, sample, retrain, test)\nnext: vitas search {path} seed=3\n"


def test_mistakes_of_all_kinds_in_all_stages_are_listed_at_once(vitas, make_config):
    overrides = (
        "search.epochs=x", "search.batch_size=4000", "sample.budgett=3", "sample.budget={minimum: 1, maximum: 2}",
        "retrain.warmup_epochs=9", "retrain.architecture=deit_tny", "retrain.from_checkpoint=gone.pth",
        "test.data.data_dir=nowhere", "test.load_name=gone.pth", "test.weights=ema",
    )  # fmt: skip
    code, out, _ = vitas("check", make_config(), "--json", *overrides)
    found = json.loads(out)
    assert code == 2
    for part in (
        "search.epochs: found 'x'", "search.batch_size: found 4,000, more than the 1,078 images",
        "sample.budgett: unknown key", "sample.budget: no architecture", "retrain.warmup_epochs: found 9",
        "retrain.architecture: no architecture is named 'deit_tny'", "retrain.from_checkpoint: found 'gone.pth'",
        "test.data.data_dir: found 'nowhere'", "test.load_name: found 'gone.pth'", "test.weights: found 'ema'",
    ):  # fmt: skip
        assert sum(line.startswith(part) for line in found["mistakes"]) == 1, part
    assert len(found["mistakes"]) == len(overrides)


def test_more_mistakes_than_a_stage_lists_are_all_listed(vitas, make_config):
    code, out, _ = vitas("check", make_config(), *(f"search.k{i}=1" for i in range(30)))
    assert (code, out.count("unknown key")) == (2, 30)


def test_without_a_flag_every_stage_that_has_a_section_is_looked_at(vitas, make_config):
    path = make_config({f"{stage}.flag": False for stage in FOLDERS})
    code, out, _ = vitas("check", path, "test.batch_size=0")
    assert code == 2
    assert "test.batch_size: found 0" in out
    assert "(search, sample, retrain, test)" in out


def test_a_stage_that_is_not_flagged_is_not_looked_at(vitas, make_config):
    assert vitas("check", make_config(), "test.flag=false", "test.data.data_dir=nowhere")[0] == 0


def test_empty_classes_and_classes_that_differ_are_named(vitas, images, of_images):
    for path in (images / "test" / "3").iterdir():
        path.unlink()
    (images / "test" / "3" / "notes.txt").write_text("no image")
    (images / "val" / "7").rename(images / "val" / "seven")
    code, out, _ = vitas("check", of_images)
    assert code == 2
    assert f"test.data.data_dir: found '{images / 'test'}', which has no image of '3'" in out
    assert "sample.data.data_dir: found" in out
    assert "'7' is in one of them only, and so are 1 more" in out


def test_with_data_every_image_is_opened(vitas, images, of_images):
    (images / "test" / "3" / "bad.png").write_bytes(b"no picture")
    original = min((images / "train" / "5").iterdir())
    shutil.copy(original, images / "test" / "5" / "copy.png")
    assert vitas("check", of_images)[0] == 0
    code, out, _ = vitas("check", of_images, "--data", "--json", "--processes", 2)
    found = json.loads(out)
    assert code == 2
    (mistake,) = found["mistakes"]
    assert mistake.startswith("test.data.bad_images: 1 of the 362 images of")
    assert f"{images / 'test' / '3' / 'bad.png'} is not an image" in mistake
    assert [line for line in found["warnings"] if f"copy.png is {original}" in line]
    assert found["images"][str(images / "test")]["bad"] == 1
    code, out, _ = vitas("check", of_images, "--data", "test.data.bad_images=0.01")
    assert code == 0
    assert "warning: test.data.bad_images: 1 of the 362" in out


def test_a_checkpoint_that_a_flagged_stage_will_write_and_keep_is_none_to_mend(vitas, make_config):
    path = make_config()
    assert vitas("check", path, "sample.load_name=epoch_2_ckpt.pth.tar", "test.start=1", "test.end=2")[0] == 0
    code, out, _ = vitas("check", path, "test.start=1", "test.end=2", "retrain.keep=1")
    assert (code, "the checkpoint of epoch 1 is not there and will not be (retrain.keep is 1)" in out) == (2, True)
    code, out, _ = vitas("check", path, "search.flag=false")
    assert (code, "holds no checkpoint, and search.flag is false" in out) == (2, True)


def test_a_program_warns_of_what_later_stages_would_refuse(make_config):
    path = make_config({"test.weights": "ema", "retrain.batch_size": 3000})
    warning = config.load(path, stages=("search", "sample")).warning
    assert "test.weights: found 'ema'" in warning
    assert "retrain.batch_size: found 3,000, more than the 1,078 images" in warning
    assert "`retrain` will need it" in warning


def test_endings_of_images_are_those_of_torchvision():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert IMAGE_ENDINGS == IMG_EXTENSIONS


def test_images_are_counted_up_to_enough(digits):
    assert count_images(str(digits / "train")) == 1078
    assert count_images(str(digits / "train"), enough=5) < 200
    train, held_out = (count_images(str(digits / "train"), Part(0.1, held_out)) for held_out in (False, True))
    assert train + held_out == 1078
    assert held_out == sum(max(1, round(0.1 * len(list(path.iterdir())))) for path in (digits / "train").iterdir())


def test_a_census_tells_how_far_it_is(digits):
    told = []
    census = open_all(str(digits / "val"), 1, lambda done, total: told.append((done, total)))
    assert told[-1] == (359, 359)
    assert (census.total, len(census.images), census.bad) == (359, 10, {})

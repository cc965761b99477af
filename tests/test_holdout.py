"""A share of each class that is held out of a training folder: the same in every stage, seed and place."""

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrain.retrain import retrain
from search.asvit.scoring import ntk_images
from search.sample import sample
from search.search import search
from tests.retrain.conftest import write_few_digits
from vitas import config as configuration
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData, Part, TrainingData
from vitas.data.images import open_image_folder
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.errors import UserError

SHARE = 0.25


@pytest.fixture(scope="module")
def few_digits(digits, tmp_path_factory) -> Path:
    return write_few_digits(digits, tmp_path_factory.mktemp("few") / "digits")


def names(folder: Path, part: Part = Part()) -> set[str]:
    return {str(Path(path).relative_to(folder)) for path, _ in open_image_folder(str(folder), part).samples}


def both(share: float) -> tuple[Part, Part]:
    return Part(share), Part(share, held_out=True)


@given(st.floats(0.001, 0.5), st.lists(st.integers(2, 40), min_size=1, max_size=5))
def test_the_two_parts_are_the_whole_and_every_class_has_its_share_and_an_image_in_each(share, counts):
    classes = [f"class {label}" for label in range(len(counts))]
    samples = [(f"/x/{classes[label]}/{i}.png", label) for label, count in enumerate(counts) for i in range(count)]
    train, held_out = ([samples[i] for i in part.indices(classes, samples)] for part in both(share))
    assert sorted(train + held_out) == sorted(samples)
    assert train == [sample for sample in samples if sample in set(train)]
    for label, count in enumerate(counts):
        assert sum(each == label for _, each in held_out) == max(1, round(share * count))
        assert any(each == label for _, each in train)


def test_the_split_is_what_it_was_in_every_version_so_far():
    """So that an old run resumes; and no library's generator decides it."""
    samples = [(f"anywhere/cat/{i}.png", 0) for i in range(8)]
    assert [samples[i][0] for i in Part(0.25, held_out=True).indices(["cat"], samples)] == HELD_OUT


HELD_OUT = ["anywhere/cat/4.png", "anywhere/cat/5.png"]


def test_the_split_does_not_change_where_the_folder_moves_or_gets_further_classes(few_digits, tmp_path):
    moved = shutil.copytree(few_digits, tmp_path / "elsewhere")
    held_out = names(few_digits, Part(SHARE, True))
    assert len(held_out) == 40
    assert names(moved, Part(SHARE, True)) == held_out
    shutil.copytree(moved / "3", moved / "0 new")
    assert {name for name in names(moved, Part(SHARE, True)) if not name.startswith("0 new")} == held_out


def test_a_larger_share_holds_out_the_same_images_and_further_ones(few_digits):
    assert names(few_digits, Part(0.1, True)) < names(few_digits, Part(0.5, True))


def test_a_class_of_one_image_is_refused_by_name(few_digits, tmp_path):
    folder = shutil.copytree(few_digits, tmp_path / "images")
    for image in sorted((folder / "7").iterdir())[1:]:
        image.unlink()
    with pytest.raises(UserError, match="class '7' has one image, and holdout needs two"):
        open_image_folder(str(folder), Part(SHARE))
    assert len(names(folder)) == 145


def test_training_sees_the_one_part_and_evaluation_the_other(few_digits):
    folder = str(few_digits)
    loader = TrainingLoader(
        TrainingData(data_dir=folder, workers=0, holdout=SHARE), 32, [0.5] * 3, [0.5] * 3, 20, World(), 0
    )
    assert loader.steps_per_epoch == 120 // 20
    assert sum(count for count, _ in loader.listing.values()) == 120
    images = EvaluationSet.load(
        EvaluationData(data_dir=folder, workers=0, holdout=SHARE), 32, [0.5] * 3, [0.5] * 3, World(), True
    )
    assert images.total == 40
    whole = EvaluationSet.load(EvaluationData(data_dir=folder, workers=0), 32, [0.5] * 3, [0.5] * 3, World(), True)
    assert images.names != whole.names


# What the YAML may say


@pytest.fixture
def split_run(make_config, digits):
    """(overrides) -> a configuration whose search, sample and retrain share one folder."""
    train = str(digits / "train")

    def load(*overrides: str):
        path = make_config(
            {
                "search.data.holdout": SHARE, "sample.data.data_dir": train, "sample.data.holdout": SHARE,
                "retrain.data.holdout": SHARE, "retrain.architecture": "p8-e32-token-h2q96m64x2",
                "retrain.val": {"data_dir": train, "workers": 0, "crop_fraction": 1.0, "holdout": SHARE},
            }
        )  # fmt: skip
        return configuration.load(path, overrides, ("search", "sample", "retrain"))

    return load


def test_one_folder_serves_all_stages(split_run):
    assert split_run().warning is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.data.holdout=null"], r"search\.data\.holdout: is missing; sample\.data holds 0\.25 of the same"),
        (["retrain.data.holdout=null"], r"retrain\.data\.holdout: is missing; retrain\.val holds 0\.25"),
        (
            ["retrain.data.holdout=null", "retrain.val=null", "retrain.from_supernet=true"],
            r"retrain\.data\.holdout: is missing; sample\.data holds",
        ),
        (["sample.data.holdout=0.1"], r"sample\.data\.holdout: found 0\.1, and search\.data\.holdout is 0\.25"),
        (["sample.data.holdout=null"], "among the images of search.data.data_dir"),
        (["retrain.val.holdout=null"], "among the images of retrain.data.data_dir"),
        (["search.data.holdout=0.6"], r"search\.data\.holdout: found 0\.6; it must be less than or equal to 0\.5"),
        (["search.data.holdout=0"], r"search\.data\.holdout: found 0; it must be greater than 0"),
        (["retrain.val.data_dir=nowhere"], r"retrain\.val\.data_dir: found 'nowhere', which is not a folder"),
        (["retrain.val=null", "retrain.patience=3"], r"retrain\.patience: found 3, but retrain\.val is missing"),
    ],
)  # fmt: skip
def test_training_on_what_is_measured_on_is_refused_by_key(split_run, overrides, message):
    with pytest.raises(UserError, match=message):
        split_run(*overrides)


def test_a_folder_is_known_by_any_of_its_names(split_run, digits, tmp_path):
    (tmp_path / "link").symlink_to(digits / "train")
    with pytest.raises(UserError, match=r"search\.data\.holdout: is missing"):
        split_run("search.data.holdout=null", f"search.data.data_dir={tmp_path / 'link'}")


def test_a_network_may_be_trained_on_all_images_in_the_end_and_that_is_said(split_run):
    assert "must be tested on others" in split_run("retrain.data.holdout=null", "retrain.val=null").warning


# Whoever uses train images


@pytest.fixture
def opened(monkeypatch):
    """The parts in which folders were opened, in order."""
    parts = []
    real = Part.indices
    monkeypatch.setattr(Part, "indices", lambda part, *given: parts.append(part) or real(part, *given))
    return parts


def test_search_and_sample_and_what_adapts_candidates_keep_the_parts_apart(make_config, few_digits, opened):
    shared = {f"{stage}.data.{key}": value for stage in ("search", "sample")
              for key, value in (("data_dir", str(few_digits)), ("holdout", SHARE))}  # fmt: skip
    path = make_config(
        shared | {"search.batch_size": 20, "search.panel": {"size": 2, "epochs": 1}, "search.epochs": 1,
                  "search.warmup_epochs": 0, "sample.adapt": {"steps": 1, "batch_size": 20}, "sample.generations": 0}
    )  # fmt: skip
    config = configuration.load(path)
    search(config, World())
    # The panel's images, and those of the training.
    assert sorted(opened, key=str) == sorted(both(SHARE), key=str)
    opened.clear()
    sample(config, World())
    assert sorted(opened, key=str) == sorted(both(SHARE), key=str)


def test_asvit_scores_with_the_training_part(tmp_path, few_digits, opened):
    run = {
        "save_path": str(tmp_path), "model": {"image_size": 32, "num_classes": 10},
        "search": {"method": "asvit", "flag": True, "batch_size": 8, "growth": {"macs": 10**9},
                   "data": {"data_dir": str(few_digits), "holdout": SHARE, "workers": 0}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    assert len(ntk_images(configuration.load(tmp_path / "config.yaml"))) == 8
    assert opened == [Part(SHARE)]


def test_another_share_is_not_resumed_unless_it_is_allowed(make_config, few_digits):
    path = make_config(
        {"retrain.data.data_dir": str(few_digits), "retrain.batch_size": 20, "retrain.data.holdout": 0.25,
         "retrain.architecture": "p8-e32-token-h2q96m64x2", "retrain.epochs": 1, "retrain.warmup_epochs": 0}
    )  # fmt: skip
    retrain(configuration.load(path), World())
    with pytest.raises(
        UserError, match=r"trained with data\.holdout 0\.25, and now it is 0\.5.*allow_changes=\[data\]"
    ):
        retrain(configuration.load(path, ["retrain.data.holdout=0.5"]), World())
    retrain(configuration.load(path, ["retrain.data.holdout=0.5", "retrain.allow_changes=[data]"]), World())


def test_scores_belong_to_one_part_of_the_val_images(make_config, few_digits):
    path = make_config(
        {"sample.data.data_dir": str(few_digits), "sample.data.holdout": 0.25, "search.epochs": 1,
         "search.warmup_epochs": 0, "sample.generations": 0, "search.data.holdout": 0.5}
    )  # fmt: skip
    config = configuration.load(path)
    search(config, World())
    sample(config, World())
    with pytest.raises(UserError, match="made with another images"):
        sample(configuration.load(path, ["sample.data.holdout=0.5"]), World())

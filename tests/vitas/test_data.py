"""Training batches that depend on seed and step alone, evaluation images in memory, and the digits."""

import multiprocessing
import os
import random
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from tests.vitas.conftest import assert_equal_batches
from vitas import distributed
from vitas.data.augmentation import posterize, training_transform
from vitas.data.evaluation import EvaluationSet
from vitas.data.example_images import write_digits
from vitas.data.folders import Augmentation, EvaluationData, TrainingData, WeakAugmentation, check_image_folder
from vitas.data.images import Pictures, decode, find_pictures, open_image_folder
from vitas.data.training import AugmentedImages, TrainingLoader
from vitas.data.workers import number_of_workers
from vitas.distributed import World
from vitas.errors import UserError

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
# Nothing is varied, so that the same image always looks the same.
PLAIN = Augmentation(auto_augment=None, color_jitter=0, random_erasing=0, flip=0, scale=[1.0, 1.0], ratio=[1.25, 1.25])


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """20 random images of 40 x 32 in two classes."""
    folder, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for i in range(20):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    return folder


def loader(folder, batch_size, world=World(), seed=0, workers=0, augmentation=Augmentation(), size=16):
    settings = TrainingData(data_dir=str(folder), workers=workers, augmentation=augmentation)
    return TrainingLoader(settings, size, MEAN, STD, batch_size, world, seed)


def seen_images(loader: TrainingLoader, steps: int) -> list[bytes]:
    """The images of the first steps, in order; two of them are equal where they are the same image."""
    return [image.numpy().tobytes() for images, _ in loader.batches(0, steps) for image in images]


# Training


def test_batches_hold_normalised_images_of_the_asked_size_and_their_labels(few_images):
    ((images, labels),) = loader(few_images, 20, augmentation=PLAIN).batches(0, 1)
    assert images.shape == (20, 3, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert sorted(labels.tolist()) == [0] * 10 + [1] * 10
    low = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    high = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    for channel in range(3):
        values = images[:, channel]
        assert low[channel] <= values.min() < values.max() <= high[channel] + 1e-6


def test_the_published_recipe_survives_randaugments_highest_level(few_images):
    """timm then asks for 0 bits a channel, which Pillow refuses since its version 13."""
    strongest = Augmentation(auto_augment="rand-m10-inc1-n8", random_erasing=0)
    for images, _ in loader(few_images, 10, augmentation=strongest).batches(0, 20):
        assert images.isfinite().all()
    assert posterize(Image.new("RGB", (2, 2), "white"), 0).getextrema() == ((0, 0),) * 3
    assert posterize(Image.new("RGB", (2, 2), "white"), 1).getextrema() == ((128, 128),) * 3


@pytest.mark.parametrize("start", [1, 4, 5, 9])
def test_batches_from_a_step_are_the_tail_of_those_from_the_first(few_images, start):
    # Four steps an epoch: within one, at the first of one, and epochs later.
    batches = loader(few_images, 5).batches
    assert_equal_batches(batches(start, 12), list(batches(0, 12))[start:])


@pytest.mark.parametrize("augmentation", [Augmentation(), WeakAugmentation()], ids=["strong", "weak"])
def test_batches_do_not_depend_on_workers(few_images, augmentation):
    none, two = (loader(few_images, 5, workers=workers, augmentation=augmentation) for workers in (0, 2))
    assert_equal_batches(two.batches(1, 9), none.batches(1, 9))


@pytest.mark.parametrize("size", [2, 5])
def test_the_parts_of_the_ranks_make_up_the_batches_of_one_process(few_images, size):
    parts = zip(*(loader(few_images, 10, World(rank, size)).batches(0, 3) for rank in range(size)), strict=True)
    joined = [tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in parts]
    assert_equal_batches(joined, loader(few_images, 10).batches(0, 3))


def test_an_epoch_sees_every_image_at_most_once_and_the_next_one_in_another_order(few_images):
    assert loader(few_images, 6, augmentation=PLAIN).steps_per_epoch == 3
    seen = seen_images(loader(few_images, 6, augmentation=PLAIN), 6)
    first, second = seen[:18], seen[18:]
    assert len(set(first)) == len(set(second)) == 18
    assert first != second


def test_an_image_is_augmented_anew_each_epoch_and_under_each_seed(few_images):
    def augmented(seed: int, epoch: int) -> torch.Tensor:
        transform = training_transform(Augmentation(), 16, MEAN)
        return (
            AugmentedImages(open_image_folder(str(few_images)), transform, seed).__getitems__([(epoch, 7, 0)])[0].image
        )

    assert torch.equal(augmented(0, 0), augmented(0, 0))
    assert not torch.equal(augmented(0, 0), augmented(0, 1))
    assert not torch.equal(augmented(0, 0), augmented(1, 0))


def test_what_an_image_takes_does_not_grow_with_the_folder(few_images):
    few = open_image_folder(str(few_images))
    # 200,000 entries, of few files.
    many = few.part([index % len(few) for index in range(200_000)])
    images = AugmentedImages(many, training_transform(PLAIN, 16, MEAN), seed=0)
    images.__getitems__([(0, 7, 0)])
    tracemalloc.start()
    try:
        images.__getitems__([(0, 8, 0)])
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < 500_000


def test_the_seed_decides_the_order(few_images):
    orders = [seen_images(loader(few_images, 5, seed=seed, augmentation=PLAIN), 4) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_main_processs_generators_are_left_alone(few_images, workers):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    for _ in loader(few_images, 5, workers=workers).batches(0, 4):
        assert states() == before
    assert states() == before


def test_no_steps_are_no_batches(few_images):
    assert list(loader(few_images, 5).batches(4, 4)) == []


@pytest.mark.parametrize(
    ("batch_size", "world", "message"),
    [(21, World(), "found 21, more than the 20 images"), (5, World(0, 2), "found 5.*multiple of the 2 processes")],
)
def test_a_batch_that_cannot_be_made_is_refused(few_images, batch_size, world, message):
    with pytest.raises(UserError, match=f"batch_size: {message}"):
        loader(few_images, batch_size, world)


# Folders


def test_a_class_without_images_is_refused_by_its_name(tmp_path):
    (tmp_path / "empty_class").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}.*empty_class"):
        loader(tmp_path, 1)


def test_a_folder_of_other_classes_is_refused_with_both_counts(few_images, tmp_path):
    check_image_folder(str(few_images), 2)
    with pytest.raises(UserError, match=r"holds 2 class folders; model\.num_classes is 3"):
        check_image_folder(str(few_images), 3)
    with pytest.raises(UserError, match="is not a folder"):
        check_image_folder(str(tmp_path / "nowhere"), 2)


# Evaluation


def evaluation_set(folder, world=World(), crop_fraction=1.0, size=32, workers=0) -> EvaluationSet:
    settings = EvaluationData(data_dir=str(folder), workers=workers, crop_fraction=crop_fraction)
    return EvaluationSet.load(settings, size, MEAN, STD, world, everything=False)


def test_evaluation_images_are_kept_as_bytes_in_the_folders_order(digits):
    images = evaluation_set(digits / "val")
    folder = ImageFolder(digits / "val")
    assert images.images.dtype == torch.uint8
    assert images.images.shape == (len(folder), 3, 32, 32)
    assert images.labels.tolist() == folder.targets
    assert images.total == len(folder)
    for index in (0, 100, len(folder) - 1):
        decoded = torch.from_numpy(np.array(folder[index][0])).permute(2, 0, 1)
        assert torch.equal(images.images[index], decoded)


def test_evaluation_batches_are_normalised_and_cover_the_set_once(digits):
    images = evaluation_set(digits / "val")
    batches = list(images.batches(100))
    assert [len(batch) for batch, _ in batches] == [100, 100, 100, images.total - 300]
    whole = torch.cat([batch for batch, _ in batches])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(whole, (images.images / 255 - mean) / std)
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)


def test_the_centre_of_the_resized_image_is_seen(few_images):
    # 40 x 32 -> the shorter side to 32 -> the central 16 of it.
    images = evaluation_set(few_images, crop_fraction=0.5, size=16)
    first = np.array(ImageFolder(few_images)[0][0])
    assert images.images[0].permute(1, 2, 0).numpy().tolist() == first[8:24, 12:28].tolist()


def test_the_ranks_hold_a_share_each_of_the_evaluation_images(few_images, as_ranks):
    whole = evaluation_set(few_images)
    shares = as_ranks(3, lambda world: evaluation_set(few_images, world))
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)
    assert {share.total for share in shares} == {20}


def test_evaluation_images_do_not_depend_on_workers(few_images):
    assert torch.equal(evaluation_set(few_images, workers=2).images, evaluation_set(few_images).images)


def test_a_set_on_another_device_than_its_images_is_normalised_there(few_images):
    images = evaluation_set(few_images)
    moved = replace(images, mean=images.mean.to("meta"), std=images.std.to("meta"))
    assert {batch.device.type for batch, _ in moved.batches(7)} == {"meta"}


# The digits


def test_the_digits_are_split_whole_disjoint_and_by_class(digits):
    folders = {part: ImageFolder(digits / part) for part in ("train", "val", "test")}
    indices = [path.rsplit("/", 1)[1] for folder in folders.values() for path, _ in folder.samples]
    assert len(indices) == len(set(indices)) == 1797
    whole = sum(np.bincount(folder.targets, minlength=10) for folder in folders.values())
    for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert folders[part].classes == [str(digit) for digit in range(10)]
        assert np.abs(np.bincount(folders[part].targets) - share * whole).max() <= 1


def test_the_digits_are_rgb_of_32_by_32(digits):
    for path in list(digits.rglob("*.png"))[::100]:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")


def test_digits_that_are_there_are_left_as_they_are(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "mine").touch()
    write_digits(folder)
    assert sorted(tmp_path.rglob("*")) == [folder, folder / "mine"]


# Pictures from anywhere


def test_pictures_are_found_below_folders_by_extension_sorted_and_once(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a/deep/er/3.webp", "b/notes.txt", "c/picture.data", "0.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    below = ["0.jpeg", "a/deep/er/3.webp", "b/1.png", "b/2.JPG", "linked/deep/er/3.webp"]
    assert find_pictures([tmp_path]) == Pictures([tmp_path / name for name in below], [], {})
    # A file is taken at its word, whatever its name.
    places = [tmp_path / "b" / "2.JPG", tmp_path / "c" / "picture.data", tmp_path / "b"]
    assert find_pictures(places) == Pictures([*places[:2], tmp_path / "b" / "1.png"], [], {})


def test_a_place_without_pictures_is_named_and_the_others_are_found(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "1.png").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    places = [tmp_path / name for name in ("gone.png", "1.png", "empty", "loop.png", "x" * 300, "1.png/2.png")]
    found = find_pictures(places)
    assert found.paths == [tmp_path / "1.png"]
    told = ["does not exist", "holds no image", "does not exist", "does not exist", "does not exist"]
    others = [place for place in places if place.name != "1.png"]
    for place, what, line in zip(others, told, found.missing, strict=True):
        assert line.startswith(f"found {str(place)!r}, which {what}")


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_decoded_as_the_evaluation_set_decodes_its_own(few_images, tmp_path, workers):
    settings = EvaluationData(data_dir=str(few_images), workers=0, crop_fraction=0.8)
    expected = EvaluationSet.load(settings, 16, MEAN, STD, World(), everything=True).images
    paths = find_pictures([few_images]).paths
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:200])
    batches = list(decode([*paths[:7], broken, *paths[7:]], 16, 0.8, 4, workers))
    assert [path for batch in batches for path in batch.paths] == paths
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    assert [list(batch.refused) for batch in batches] == [[], [broken], [], [], [], []]
    assert batches[1].refused[broken].startswith(("is a damaged image", "cannot be read"))


def test_workers_that_decode_end_when_they_are_told_to(few_images):
    before = multiprocessing.active_children()
    batches = decode(find_pictures([few_images]).paths, 16, 1.0, 2, workers=1)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - set(before)
    ignored, ours = signals_ignored_by(worker.pid), signals_ignored_by(os.getpid())
    batches.close()
    assert signal.SIGTERM not in ignored
    # A shell may have started this process in the background, with SIGINT ignored; workers inherit that.
    assert (signal.SIGINT in ignored) == (signal.SIGINT in ours)


def signals_ignored_by(pid: int) -> set[int]:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mask = int(status["SigIgn"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


# Workers


@pytest.fixture
def machine(monkeypatch):
    """(cores, variables) -> a machine of so many cores, in such an environment."""

    def have(count: int, **variables: str) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)))
        for name in ("SLURM_STEP_ID", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return have


@pytest.mark.parametrize(
    ("cores", "variables", "expected"),
    [
        (12, {}, 12),
        (12, {"LOCAL_WORLD_SIZE": "5", "TORCHELASTIC_RUN_ID": "x"}, 2),
        (2, {"LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}, 1),
        (12, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "4"}, 4),
        # Bound to its own cores, fewer than were asked for because of hyper-threads.
        (2, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "4"}, 2),
        (12, {"SLURM_STEP_ID": "0"}, 1),
        # A batch script is no step, and torchrun in a step shares its cores out itself.
        (12, {"SLURM_CPUS_PER_TASK": "4"}, 12),
        (12, {"SLURM_STEP_ID": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, 6),
    ],
)
def test_a_rank_has_its_share_of_the_cores_of_its_node(machine, cores, variables, expected):
    machine(cores, **variables)
    assert distributed.cores() == expected


@pytest.mark.parametrize(
    ("cores", "asked", "images", "computes", "expected"),
    [
        (8, None, 10_000, True, 7),
        (8, None, 10_000, False, 8),
        (64, None, 10**6, True, 16),
        (1, None, 10_000, True, 0),
        (8, None, 600, False, 2),
        (8, None, 255, True, 0),
        (1, 8, 100, True, 8),
        (64, 0, 10**6, False, 0),
    ],
)
def test_workers_are_as_many_as_asked_for_or_as_there_are_cores_and_work_for(
    machine, cores, asked, images, computes, expected
):
    machine(cores)
    assert number_of_workers(asked, images, computes) == expected


def test_the_default_number_of_workers_changes_no_batch(digits, machine):
    """A thousand images, so that on a machine of four cores there are three workers."""
    settings = TrainingData(data_dir=str(digits / "train"))
    assert settings.workers is None
    machine(4)

    def batches(settings: TrainingData) -> list[torch.Tensor]:
        loader = TrainingLoader(settings, 32, [0.5] * 3, [0.5] * 3, 128, World(), 0)
        return [images for images, _ in loader.batches(0, 8)]

    for ours, others in zip(batches(settings), batches(settings.model_copy(update={"workers": 0})), strict=True):
        assert torch.equal(ours, others)

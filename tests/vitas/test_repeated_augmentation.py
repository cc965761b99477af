"""Repeated augmentation: an image comes several times in a row, each time varied anew, wherever a run was resumed."""

import pytest
import torch

from vitas.data.folders import Augmentation, TrainingData
from vitas.data.training import TrainingLoader
from vitas.distributed import World

BATCH = 12


@pytest.fixture
def make_loader(digits):
    """(repeats, world) -> a loader of the digits whose images are cropped at random."""
    augmentation = Augmentation(auto_augment=None, color_jitter=0.0, random_erasing=0.0, flip=0.0, scale=[0.3, 1.0])
    data = TrainingData(data_dir=str(digits / "train"), workers=0, augmentation=augmentation)
    mean, std = [0.5] * 3, [0.5] * 3

    def make(repeats: int, world: World = World()) -> TrainingLoader:
        return TrainingLoader(data, 32, mean, std, BATCH, world, seed=3, repeats=repeats)

    return make


def batches(loader, start, end):
    return [(images.clone(), labels.clone()) for images, labels in loader.batches(start, end)]


def test_an_image_comes_so_many_times_in_a_row_and_never_twice_alike(make_loader):
    images, labels = batches(make_loader(3), 0, 1)[0]
    assert labels.view(-1, 3).eq(labels.view(-1, 3)[:, :1]).all()
    for group in images.view(-1, 3, *images.shape[1:]):
        assert not torch.equal(group[0], group[1])
        assert not torch.equal(group[1], group[2])


def test_the_first_repeat_is_the_image_of_a_run_without(make_loader):
    """Both see the images in the same order: three steps of repeats hold one step's worth of images."""
    plain = torch.cat([images for images, _ in batches(make_loader(1), 0, 1)])
    repeated = torch.cat([images for images, _ in batches(make_loader(3), 0, 3)])
    assert torch.equal(repeated[::3], plain)


def test_an_epoch_has_as_many_steps_as_ever(make_loader):
    assert make_loader(3).steps_per_epoch == make_loader(1).steps_per_epoch


def test_a_resumed_run_sees_the_same_images(make_loader):
    steps = make_loader(3).steps_per_epoch
    whole, resumed = batches(make_loader(3), steps - 2, steps + 2), batches(make_loader(3), steps, steps + 2)
    for (images, labels), (again, labels_again) in zip(whole[2:], resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


def test_two_ranks_share_the_images_of_one(make_loader):
    one, _ = batches(make_loader(3), 4, 5)[0]
    parts = [batches(make_loader(3, World(rank, 2)), 4, 5)[0][0] for rank in range(2)]
    assert torch.equal(torch.cat(parts), one)

"""Batches on their way to the device: normalised and erased there, the same whichever other images they hold."""

import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, IterableDataset

from tests.vitas.conftest import assert_equal_batches
from vitas.data.erasing import Erased, draw_erased, erase
from vitas.data.folders import Augmentation, TrainingData
from vitas.data.on_device import ByteBatch, ToDevice
from vitas.data.training import TrainingLoader
from vitas.distributed import World

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    """40 images of white alone: what is not white is erased."""
    folder = tmp_path_factory.mktemp("white")
    for i in range(40):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), "white").save(path)
    return folder


def loader(folder, batch_size=10, world=World(), workers=0, erasing=0.5, seed=0, repeats=1) -> TrainingLoader:
    augmentation = Augmentation(auto_augment=None, color_jitter=0.0, random_erasing=erasing)
    settings = TrainingData(data_dir=str(folder), workers=workers, augmentation=augmentation)
    return TrainingLoader(settings, 16, MEAN, STD, batch_size, world, seed, repeats)


def byte_batches(count: int = 5, images: int = 6) -> list[ByteBatch]:
    rng = torch.Generator().manual_seed(0)
    return [
        ByteBatch(
            torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8, generator=rng),
            torch.randint(0, 9, (images,), generator=rng),
            [(index, Erased(2, 3, 5 + index, 7, 100 * step + index)) for index in range(0, images, 2)],
        )
        for step in range(count)
    ]


# Where is erased


@pytest.mark.parametrize(("probability", "side"), [(0.25, 224), (1.0, 16), (1.0, 8)])
def test_rectangles_are_drawn_as_by_timm(probability, side):
    timms, image = RandomErasing(probability, mode="pixel", device="cpu"), torch.empty(3, side, side)
    for seed in range(200):
        random.seed(seed)
        torch.manual_seed(seed)
        erased_CHW = ~torch.isnan(timms(image.fill_(math.nan)))
        random.seed(seed)
        ours = draw_erased(probability, side)
        assert bool(erased_CHW.any()) == (ours is not None)
        if ours:
            rows, columns = slice(ours.top, ours.top + ours.height), slice(ours.left, ours.left + ours.width)
            assert erased_CHW[:, rows, columns].all()
            assert erased_CHW.sum() == 3 * ours.height * ours.width


def test_what_is_erased_is_noise_of_mean_0_and_std_1_and_nothing_else_changes():
    images = torch.full((2, 3, 224, 224), 7.0)
    erase(images, [(1, Erased(10, 20, 100, 90, seed=5))])
    noise = images[1, :, 10:110, 20:110].clone()
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert len(noise.unique()) > 0.99 * noise.numel()
    images[1, :, 10:110, 20:110] = 7
    assert (images == 7).all()


def test_the_noise_of_an_image_depends_on_no_other_image():
    alone, together = torch.zeros(1, 3, 16, 16), torch.zeros(3, 3, 16, 16)
    wanted = Erased(1, 2, 8, 9, seed=5)
    erase(alone, [(0, wanted)])
    erase(together, [(0, Erased(0, 0, 3, 3, seed=1)), (1, wanted), (2, Erased(0, 0, 5, 7, seed=2))])
    assert torch.equal(together[1], alone[0])


def test_erased_batches_depend_neither_on_workers_nor_on_ranks_nor_on_the_start(white):
    whole = list(loader(white).batches(0, 8))
    assert_equal_batches(loader(white, workers=2).batches(0, 8), whole)
    assert_equal_batches(loader(white).batches(5, 8), whole[5:])
    parts = zip(*(loader(white, world=World(rank, 2)).batches(0, 8) for rank in range(2)), strict=True)
    assert_equal_batches((tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in parts), whole)


def test_every_image_repeat_epoch_and_seed_has_noise_of_its_own(white):
    seen = []
    for seed in (0, 1):
        # Two epochs, of 20 images each, twice.
        for images, _ in loader(white, erasing=1.0, seed=seed, repeats=2).batches(0, 8):
            seen += [image.numpy().tobytes() for image in images]
    assert len(set(seen)) == len(seen) == 160


def test_as_many_images_are_erased_as_asked_for(white):
    images = torch.cat([images for images, _ in loader(white, 40, erasing=0.3).batches(0, 25)])
    top = ((1 - torch.tensor(MEAN)) / torch.tensor(STD)).view(1, 3, 1, 1)
    share = (images != top).flatten(1).any(dim=1).float().mean()
    # Three standard deviations of a thousand draws.
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 1000)
    assert all((images == top).all() for images, _ in loader(white, erasing=0.0).batches(0, 8))


def test_the_devices_generator_is_left_alone(white):
    before = torch.get_rng_state()
    for _ in loader(white, erasing=1.0).batches(0, 4):
        assert torch.equal(torch.get_rng_state(), before)


# On the way


def test_what_the_workers_give_is_bytes(white):
    (batch,) = loader(white).bytes(0, 1)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert batch.images.shape == (10, 3, 16, 16)
    assert batch.images.is_contiguous()
    assert len(batch.erased) > 0


@pytest.mark.parametrize("side", [16, 240])
def test_a_batch_crosses_from_a_worker_as_it_is_and_can_be_written_to(side):
    """Small batches and large ones cross in two ways."""
    images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    sent = ByteBatch(images, torch.arange(8), [(3, Erased(1, 2, 3, 4, 5))])
    (received,) = DataLoader(_Sent(sent), batch_size=None, num_workers=1)
    assert torch.equal(received.images, images)
    assert received.labels.tolist() == list(range(8))
    assert (received.images.dtype, received.labels.dtype) == (torch.uint8, torch.int64)
    assert received.images.is_contiguous()
    assert received.erased == sent.erased
    # Memory of its own: another batch is not changed by it.
    received.images.zero_()
    received.labels.zero_()
    assert torch.equal(sent.labels, torch.arange(8))


class _Sent(IterableDataset):
    def __init__(self, batch: ByteBatch) -> None:
        self.batch = batch

    def __iter__(self):
        yield self.batch


def test_kept_bytes_become_the_same_batches_each_time(white):
    of = loader(white)
    kept = list(of.bytes(0, 8))
    assert_equal_batches(of.on_device(kept), of.batches(0, 8))
    assert_equal_batches(of.on_device(kept), of.on_device(kept))


def test_images_are_normalised_by_channel():
    batch = byte_batches(1)[0]
    ((images, labels),) = ToDevice(CPU, MEAN, STD)([ByteBatch(batch.images, batch.labels, [])])
    expected = (batch.images.numpy() / 255 - np.array(MEAN).reshape(3, 1, 1)) / np.array(STD).reshape(3, 1, 1)
    assert np.allclose(images.numpy(), expected, atol=1e-6)
    assert labels is batch.labels


def test_closing_the_batches_ends_the_workers(white):
    batches = loader(white, workers=2).batches(0, 100)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


def test_without_a_gpu_no_batch_is_asked_for_before_it_is_needed():
    asked = []

    def batches():
        for batch in byte_batches():
            asked.append(batch)
            yield batch

    ready = ToDevice(CPU, MEAN, STD)(batches())
    next(ready)
    assert len(asked) == 1


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_gets_the_same_images_and_labels_in_order():
    gpu = torch.device("cuda", torch.cuda.current_device())
    batches = byte_batches(20, 64)
    plain = [ByteBatch(batch.images, batch.labels, []) for batch in batches]
    expected = list(ToDevice(CPU, MEAN, STD)(plain))
    for (images, labels), (ours, our_labels) in zip(
        ToDevice(gpu, MEAN, STD)(batch.pin_memory() for batch in plain), expected, strict=True
    ):
        # The step is busy while the next batch is written.
        torch.randn(2048, 2048, device=gpu).mm(torch.randn(2048, 2048, device=gpu))
        assert images.device == labels.device == gpu
        assert torch.allclose(images.cpu(), ours, atol=1e-6)
        assert torch.equal(labels.cpu(), our_labels)


@pytest.mark.gpu
@needs_gpu
def test_the_memory_of_a_batch_is_not_given_to_the_next_one_while_a_step_reads_it():
    gpu = torch.device("cuda", torch.cuda.current_device())
    batches = [ByteBatch(torch.full((64, 3, 64, 64), step, dtype=torch.uint8), torch.full((64,), step), [])
               for step in range(30)]  # fmt: skip
    sums = []
    for images, _ in ToDevice(gpu, [0.0] * 3, [1 / 255] * 3)(batch.pin_memory() for batch in batches):
        # Long enough that the CPU is batches ahead, and frees them, before the sum is computed.
        torch.cuda._sleep(20_000_000)
        sums.append(images.mean())
        del images
    assert torch.stack(sums).cpu().round().tolist() == list(range(30))


@pytest.mark.gpu
@needs_gpu
def test_noise_on_the_gpu_is_a_function_of_the_image():
    gpu = torch.device("cuda", torch.cuda.current_device())
    once, again = (list(ToDevice(gpu, MEAN, STD)(batch.pin_memory() for batch in byte_batches())) for _ in range(2))
    assert_equal_batches(once, again)
    whole = byte_batches(1)[0]
    index, rectangle = whole.erased[1]
    alone = ByteBatch(whole.images[index : index + 1], whole.labels[index : index + 1], [(0, rectangle)])
    ((images, _),) = ToDevice(gpu, MEAN, STD)([alone.pin_memory()])
    assert torch.equal(images[0], once[0][0][index])

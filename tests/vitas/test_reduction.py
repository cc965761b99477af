"""Gradients are averaged while the backward passes go on."""

import pytest
import torch
import torch.distributed as dist

from tests.conftest import largest
from tests.vitas.conftest import random_images, randomise
from vitas import SuperNet, reduction
from vitas.distributed import World
from vitas.models.step_weights import StepWeights
from vitas.reduction import Reduction

SIDES = ("left", "right")


@pytest.fixture
def world(tmp_path):
    """A world that says two but holds one rank: a sum over it is this rank's own, and an average half of it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield World(rank=0, size=2)
    dist.destroy_process_group()


@pytest.fixture
def sent(monkeypatch):
    """The numbers of elements of all reductions, in order, and `backward` for each backward pass that ended."""
    told, all_reduce = [], dist.all_reduce

    def note(tensor, *arguments, **options):
        told.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    monkeypatch.setattr(reduction.dist, "all_reduce", note)
    return told


@pytest.fixture
def supernet(supernet_space):
    return randomise(SuperNet(supernet_space, 10, 16, "bilateral"))


def uses(supernet, subnets) -> list:
    return [supernet.parameters_in_use(subnet, side) for subnet in subnets for side in SIDES]


def gradients(supernet) -> list:
    return [None if p.grad is None else p.grad.clone() for p in supernet.parameters()]


def train(supernet, subnets, averaged=None, told=None) -> None:
    weights = StepWeights(supernet, arrived=averaged.arrived if averaged else lambda parameters: None)
    weights.begin((subnet, side) for subnet in subnets for side in SIDES)
    for subnet in subnets:
        logits = sum(supernet(random_images(2, 16), subnet, side, weights.of(subnet, side)) for side in SIDES)
        logits.square().sum().backward()
        if told is not None:
            told.append("backward")


@pytest.mark.parametrize("bucket_bytes", [1, 2000, 2**30])
def test_each_gradient_is_averaged_once_whatever_the_buckets(supernet, supernet_space, world, sent, bucket_bytes):
    subnets = [largest(supernet_space), supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0])]
    train(supernet, subnets)
    expected = gradients(supernet)
    supernet.zero_grad()
    averaged = Reduction(world, bucket_bytes)
    losses = [torch.tensor([3.0, 5.0])]
    slices = supernet.slices_in_use(subnets, SIDES)
    # Twice: a step leaves nothing behind for the next.
    for _ in range(2):
        supernet.zero_grad()
        sent.clear()
        averaged.begin(slices, uses(supernet, subnets))
        train(supernet, subnets, averaged)
        averaged.finish(losses)
        for found, whole in zip(gradients(supernet), expected, strict=True):
            assert (found is None and whole is None) or torch.equal(found, whole / 2)
        assert sum(sent) == sum(each.numel() for each in slices) + 2
    assert losses[0].tolist() == [0.75, 1.25]
    if bucket_bytes == 2**30:
        assert len(sent) == 2


def test_what_is_complete_leaves_during_the_last_backward_pass_that_adds_to_it(supernet, supernet_space, world, sent):
    subnets = [supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0]), largest(supernet_space)]
    averaged = Reduction(world, 1)
    averaged.begin(supernet.slices_in_use(subnets, SIDES), uses(supernet, subnets))
    train(supernet, subnets, averaged, sent)
    before_the_end = list(sent)
    averaged.finish([])
    first, last = (i for i, each in enumerate(before_the_end) if each == "backward")
    assert first == 0, "the second pass adds to the head, which is the first to leave"
    assert last - first > len(before_the_end) // 2
    assert last == len(before_the_end) - 1 == len(sent) - 1, "nothing is left for the end"


def test_a_rank_without_images_sends_zeros(supernet, supernet_space, world, sent):
    averaged = Reduction(world)
    slices = supernet.slices_in_use([largest(supernet_space)], SIDES)
    averaged.begin(slices, [])
    averaged.finish([])
    assert sum(sent) == sum(each.numel() for each in slices)
    assert not any(each.gradient().any() for each in slices)


def test_a_backward_pass_that_was_not_announced_is_an_error(supernet, supernet_space, world):
    averaged = Reduction(world, 1)
    subnet = largest(supernet_space)
    averaged.begin(supernet.slices_in_use([subnet], SIDES), uses(supernet, [subnet]))
    train(supernet, [subnet], averaged)
    with pytest.raises(RuntimeError, match="not told of"):
        train(supernet, [subnet], averaged)


def test_outside_of_a_step_gradients_are_left_alone(supernet, supernet_space, world, sent):
    train(supernet, [largest(supernet_space)], Reduction(world))
    assert not sent

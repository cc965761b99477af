"""What a training step uses of the supernet's weights: the same passes and gradients as by autograd alone, for less."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import largest
from tests.vitas.conftest import random_images, randomise
from vitas import SuperNet
from vitas.models.step_weights import StepWeights, weights_of
from vitas.sharing import SCHEMES


@pytest.fixture(params=SCHEMES)
def supernet(supernet_space, request):
    return randomise(SuperNet(supernet_space, 10, 16, request.param))


@pytest.fixture
def subnets(supernet_space):
    return [largest(supernet_space), supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0])]


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype is not None)


def train(supernet, subnets, dtype=None, weights=None) -> list:
    """The gradients of two subnets' passes, None where there is none."""
    supernet.zero_grad()
    sides = supernet.scheme.training_sides(0)
    if weights:
        weights.begin((subnet, side) for subnet in subnets for side in sides)
    for subnet in subnets:
        with autocast(dtype):
            logits = sum(
                supernet(random_images(2, 16), subnet, side, weights.of(subnet, side) if weights else None)
                for side in sides
            )
        logits.float().square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in supernet.parameters()]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_autograd_alone(supernet, subnets, dtype, recompute) -> None:
    supernet.set_grad_checkpointing(recompute)
    weights = StepWeights(supernet, dtype)
    expected = train(supernet, subnets, dtype)
    # Twice: a step leaves nothing behind for the next.
    for _ in range(2):
        for found, wanted in zip(train(supernet, subnets, dtype, weights), expected, strict=True):
            assert (found is None) == (wanted is None)
            # Sums of two sides are taken in another order.
            if found is not None:
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_of_one_subnet_they_are_equal_to_the_bit(supernet, subnets) -> None:
    expected = train(supernet, subnets[:1])
    for found, wanted in zip(train(supernet, subnets[:1], None, StepWeights(supernet)), expected, strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)


def test_what_changed_between_steps_is_cast_anew(supernet, subnets) -> None:
    weights = StepWeights(supernet, torch.bfloat16)
    train(supernet, subnets, torch.bfloat16, weights)
    randomise(supernet)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(0.5)
    expected = train(supernet, subnets, torch.bfloat16)
    for found, wanted in zip(train(supernet, subnets, torch.bfloat16, weights), expected, strict=True):
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_each_use_tells_of_its_parameters_once_the_last_layers_first(supernet, subnets) -> None:
    told = []
    weights = StepWeights(supernet, arrived=lambda parameters: told.append([id(p) for p in parameters]))
    train(supernet, subnets[1:], None, weights)
    sides = supernet.scheme.training_sides(0)
    expected = Counter(id(p) for side in sides for p in supernet.parameters_in_use(subnets[1], side))
    assert Counter(each for use in told for each in use) == expected
    assert id(supernet.head.weight) in told[0]
    assert any(id(p) in told[-1] for p in supernet.stems.parameters())


def test_scoring_has_the_same_logits_and_no_casts_of_its_own(supernet, subnets) -> None:
    supernet.eval()
    for subnet in subnets:
        for side in supernet.scheme.scoring_sides:
            weights = weights_of(supernet, subnet, side, torch.bfloat16)
            with torch.inference_mode(), autocast(torch.bfloat16):
                expected = supernet(random_images(2, 16), subnet, side)
                assert torch.equal(supernet(random_images(2, 16), subnet, side, weights), expected)
            with torch.inference_mode():
                expected = supernet(random_images(2, 16), subnet, side)
                found = supernet(random_images(2, 16), subnet, side, weights_of(supernet, subnet, side))
                assert torch.equal(found, expected)


class Kernels(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def test_no_gradient_is_filled_up_and_weights_are_cast_once_a_step(supernet, subnets) -> None:
    with Kernels() as alone:
        train(supernet, subnets, torch.bfloat16)
    with Kernels() as together:
        train(supernet, subnets, torch.bfloat16, StepWeights(supernet, torch.bfloat16))
    assert alone.counts["slice_backward"] > 50
    passes = 2 * len(supernet.scheme.training_sides(0))
    # What is left is cut from tokens: the class token, in the last block.
    assert together.counts["slice_backward"] <= 3 * passes
    assert together.counts["_to_copy"] < alone.counts["_to_copy"] / 2

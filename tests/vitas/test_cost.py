"""Counts of multiply-adds and parameters, budgets, and how populations are brought into them."""

import time
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitas import VisionTransformer, create_model, zoo
from vitas.architecture import CONVENTIONS
from vitas.budget import Budget, MacsModel
from vitas.errors import UserError
from vitas.evaluate import images_per_second

IMAGE_SIZE, NUM_CLASSES = 16, 10

PUBLISHED = {
    "vitas_a": (858_652_480, 3_679_478),
    "vitas_b": (990_624_768, 4_400_248),
    "vitas_c": (1_303_042_496, 6_048_414),
    "vitas_e": (2_706_797_632, 12_550_598),
    "vitas_f": (4_930_994_656, 22_540_277),
}


# One architecture


@pytest.mark.parametrize(("name", "numbers"), PUBLISHED.items())
def test_published_macs_and_parameters_are_exact(name, numbers):
    architecture = zoo()[name]
    assert (architecture.macs(convention="released"), architecture.parameters()) == numbers


def test_deit_has_the_parameters_and_macs_it_is_known_by():
    tiny, small = zoo()["deit_tiny"], zoo()["deit_small"]
    assert (tiny.parameters(), small.parameters()) == (5_717_416, 22_050_664)
    assert (round(tiny.macs() / 1e9, 1), round(small.macs() / 1e9, 1)) == (1.3, 4.6)


def counted_macs(network: VisionTransformer) -> float:
    images = torch.zeros(1, 3, network.image_size, network.image_size)
    # The mathematical form of attention is two matrix products, which the counter knows on every device.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(images)
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.aten.bmm] > 0, "attention was not counted"
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", zoo())
def test_true_macs_and_parameters_are_those_of_the_zoos_networks(name):
    network = create_model(name)
    assert zoo()[name].macs() == counted_macs(network)
    assert zoo()[name].parameters() == sum(p.numel() for p in network.parameters())


@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**32), num_classes=st.integers(1, 20))
def test_true_macs_and_parameters_are_those_of_random_members(spaces, data, seed, num_classes):
    architecture = data.draw(spaces).sample(np.random.default_rng(seed))
    network = VisionTransformer(architecture, num_classes, IMAGE_SIZE)
    assert architecture.macs(IMAGE_SIZE, num_classes) == counted_macs(network)
    assert architecture.parameters(IMAGE_SIZE, num_classes) == sum(p.numel() for p in network.parameters())


def test_counts_are_plain_integers(small_space):
    architecture = small_space.largest
    assert {type(architecture.macs()), type(architecture.parameters())} == {int}


def test_an_unknown_convention_is_refused(small_space):
    with pytest.raises(ValueError, match=r"'flops'.*true, released"):
        small_space.largest.macs(convention="flops")


# Populations


@cache
def costs_and_members(space, convention="released"):
    """The counter of a tiny space and the MACs of all its members, ascending."""
    costs = MacsModel(space, IMAGE_SIZE, NUM_CLASSES, convention)
    genomes = np.stack(np.meshgrid(*map(np.arange, space.gene_counts), indexing="ij"), axis=-1)
    genomes = genomes.reshape(-1, space.gene_counts.size)
    return costs, np.unique(costs.macs(genomes[space.columns(genomes).active.any(axis=1)]))


def distances(macs: np.ndarray, budget: Budget) -> np.ndarray:
    return np.maximum(np.maximum(budget.minimum - macs, macs - budget.maximum), 0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_costs_of_a_population_are_those_of_its_members(tiny_space, all_genomes, convention):
    genomes = all_genomes(tiny_space)
    counted = MacsModel(tiny_space, IMAGE_SIZE, NUM_CLASSES, convention).macs(genomes)
    assert counted.dtype == np.int64
    assert counted.tolist() == [tiny_space.decode(g).macs(IMAGE_SIZE, NUM_CLASSES, convention) for g in genomes]


@given(data=st.data(), seed=st.integers(0, 2**32), convention=st.sampled_from(CONVENTIONS))
def test_costs_of_random_members_of_random_spaces(spaces, data, seed, convention):
    space = data.draw(spaces)
    genomes = space.sample_genomes(np.random.default_rng(seed), 5)
    counted = MacsModel(space, 48, 7, convention).macs(genomes)
    assert counted.tolist() == [space.decode(genome).macs(48, 7, convention) for genome in genomes]


# Budgets


def test_both_ends_of_a_budget_are_inside():
    budget = Budget(10, 20)
    assert [macs in budget for macs in (9, 10, 20, 21)] == [False, True, True, False]


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["identity", "deep", "no identity", "shared", "shared, no identity"]),
    convention=st.sampled_from(CONVENTIONS),
    data=st.data(),
)
def test_nearest_and_require_agree_with_every_member(tiny_spaces, kind, convention, data):
    costs, members = costs_and_members(tiny_spaces[kind], convention)
    # Ends on, next to and between the members' costs, and outside them all.
    end = st.sampled_from(members.tolist()) | st.integers(0, int(members[-1]) + 10)
    low, high = sorted(data.draw(end) + data.draw(st.integers(-1, 1)) for _ in range(2))
    if data.draw(st.booleans()):
        high = low
    budget = Budget(low, high, convention)
    nearest = costs.nearest(budget)
    shortest = distances(members, budget).min()
    assert nearest in members
    assert distances(np.array(nearest), budget) == shortest
    if shortest:
        with pytest.raises(UserError, match=f"{low:,} to {high:,} MACs .*{convention}.* nearest has {nearest:,}"):
            costs.require(budget)
    else:
        costs.require(budget)


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_move_into_stays_in_the_space_and_comes_no_farther_from_any_budget(spaces, data, seed):
    space = data.draw(spaces)
    costs = MacsModel(space, IMAGE_SIZE, NUM_CLASSES)
    low, high = sorted(data.draw(st.integers(0, space.largest.macs(16, 10) * 2)) for _ in range(2))
    budget, rng = Budget(low, high), np.random.default_rng(seed)
    genomes = space.sample_genomes(rng, 20)
    moved = costs.move_into(budget, genomes, rng, steps=50)
    assert np.array_equal(moved, space.canonical(moved))
    assert space.columns(moved).active.any(axis=1).all()
    assert ((moved >= 0) & (moved < space.gene_counts)).all()
    assert (distances(costs.macs(moved), budget) <= distances(costs.macs(genomes), budget)).all()


@pytest.mark.parametrize(("name", "numbers"), [item for item in PUBLISHED.items() if item[0] != "vitas_c"])
def test_move_into_brings_random_genomes_into_the_published_budgets(vitas_spaces, name, numbers):
    """Most of them: a row from which every single change leads away stays outside."""
    space = vitas_spaces[name]
    costs, rng = MacsModel(space, 224, 1000), np.random.default_rng(0)
    budget = Budget(int(0.98 * numbers[0]), int(1.02 * numbers[0]))
    genomes = space.sample_genomes(rng, 100)
    assert (distances(costs.macs(genomes), budget) == 0).mean() < 0.1
    moved = costs.move_into(budget, genomes, rng)
    assert (distances(costs.macs(moved), budget) == 0).mean() > 0.6


def test_move_into_leaves_what_is_inside_and_its_input_as_they_are(tiny_space):
    costs, members = costs_and_members(tiny_space)
    genomes = tiny_space.sample_genomes(np.random.default_rng(0), 100)
    before = genomes.copy()
    budget = Budget(int(members[0]), int(np.median(members)))
    inside = distances(costs.macs(genomes), budget) == 0
    assert 0 < inside.sum() < len(genomes)
    moved = costs.move_into(budget, genomes, np.random.default_rng(1))
    assert np.array_equal(genomes, before)
    assert np.array_equal(moved[inside], genomes[inside])


def test_move_into_gives_a_genome_of_identities_a_block(tiny_spaces):
    """A child without any block is in no budget: it is no member of the space."""
    space = tiny_spaces["identity"]
    costs, members = costs_and_members(space)
    empty = np.array([[0, 2, 2, 0, 0, 0, 0, 0]])
    moved = costs.move_into(Budget(0, int(members[-1])), empty, np.random.default_rng(0))
    assert space.columns(moved).active.any()


@settings(max_examples=20)
@given(share=st.floats(0.05, 0.95), shared_blocks=st.booleans())
def test_random_subnets_cost_the_middle_of_the_budget_on_average(tiny_spaces, share, shared_blocks):
    space = tiny_spaces["shared" if shared_blocks else "deep"]
    costs, _ = costs_and_members(space)

    def mean_macs(probability):
        return costs.macs(space.sample_genomes(np.random.default_rng(1), 4096, probability)).mean()

    cheapest, dearest = mean_macs(1.0), mean_macs(0.0)
    middle = cheapest + share * (dearest - cheapest)
    probability = costs.identity_probability(Budget(int(0.9 * middle), int(1.1 * middle)))
    assert mean_macs(probability) == pytest.approx(middle, rel=0.04)


def test_identity_probability_is_zero_where_full_depth_is_below_the_middle(small_space):
    costs = MacsModel(small_space, 32, 10)
    dearest = small_space.largest.macs(32, 10, "released")
    assert costs.identity_probability(Budget(dearest, dearest)) == 0


def test_identity_probability_is_none_in_a_space_without_identities(tiny_spaces):
    for kind in ("no identity", "shared, no identity"):
        costs, members = costs_and_members(tiny_spaces[kind])
        assert costs.identity_probability(Budget(int(members[0]), int(members[-1]))) is None


# Measured speed


def test_speed_is_measured_in_evaluation_mode_and_leaves_the_network_as_it_was():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen = set()

        def forward(self, images):
            self.seen.add((tuple(images.shape), self.training, torch.is_grad_enabled()))
            time.sleep(0.1)
            return images

    network = Slow().train()
    rate = images_per_second(network, image_size=8, batch_size=5, seconds=0.3)
    assert network.seen == {((5, 3, 8, 8), False, False)}
    assert network.training
    assert 0 < rate <= 50

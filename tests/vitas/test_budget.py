"""Budgets, and what populations cost."""

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import largest
from vitas.budget import Budget, MacsModel, identity_probability
from vitas.costs import CONVENTIONS
from vitas.errors import UserError

IMAGE_SIZE, NUM_CLASSES = 16, 10

# Populations


@cache
def model_and_members(space, convention="released"):
    """The counter of a tiny space and the MACs of all its members, ascending."""
    model = MacsModel(space, IMAGE_SIZE, NUM_CLASSES, convention)
    genomes = np.stack(np.meshgrid(*map(np.arange, space.gene_counts), indexing="ij"), axis=-1)
    genomes = genomes.reshape(-1, space.gene_counts.size)
    return model, np.unique(model.predict(genomes[space.columns(genomes).active.any(axis=1)]))


def distances(macs: np.ndarray, budget: Budget) -> np.ndarray:
    return np.maximum(np.maximum(budget.minimum - macs, macs - budget.maximum), 0)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_costs_of_a_population_are_those_of_its_members(tiny_space, all_genomes, convention):
    genomes = all_genomes(tiny_space)
    counted = MacsModel(tiny_space, IMAGE_SIZE, NUM_CLASSES, convention).predict(genomes)
    assert counted.dtype == np.int64
    assert counted.tolist() == [tiny_space.decode(g).macs(IMAGE_SIZE, NUM_CLASSES, convention) for g in genomes]


@given(data=st.data(), seed=st.integers(0, 2**32), convention=st.sampled_from(CONVENTIONS))
def test_costs_of_random_members_of_random_spaces(spaces, data, seed, convention):
    space = data.draw(spaces)
    genomes = space.sample_genomes(np.random.default_rng(seed), 5)
    counted = MacsModel(space, 48, 7, convention).predict(genomes)
    assert counted.tolist() == [space.decode(genome).macs(48, 7, convention) for genome in genomes]


# Budgets


def test_both_ends_of_a_budget_are_inside():
    budget = Budget(10, 20)
    assert [macs in budget for macs in (9, 10, 20, 21)] == [False, True, True, False]


def test_the_distance_to_a_budget_is_how_far_costs_lie_outside():
    budget = Budget(10, 20)
    assert [budget.distance(macs) for macs in (7, 10, 20, 24)] == [3, 0, 0, 4]
    assert budget.distance(np.array([7, 15, 24])).tolist() == [3, 0, 4]


def test_the_nearest_of_costs_is_the_least_far_outside():
    assert Budget(10, 20).nearest(np.array([5, 23, 30])) == 23
    assert Budget(10, 20).nearest(np.array([9, 15, 21])) == 15
    assert Budget(10, 20).middle == 15


def test_a_budget_that_holds_nothing_is_refused():
    with pytest.raises(UserError, match=r"^minimum: found 21; .*20$"):
        Budget(21, 20)
    Budget(20, 20)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["identity", "deep", "no identity", "shared", "shared, no identity"]),
    convention=st.sampled_from(CONVENTIONS),
    data=st.data(),
)
def test_nearest_and_require_agree_with_every_member(tiny_spaces, kind, convention, data):
    model, members = model_and_members(tiny_spaces[kind], convention)
    # Ends on, next to and between the members' model, and outside them all.
    end = st.sampled_from(members.tolist()) | st.integers(0, int(members[-1]) + 10)
    low, high = sorted(data.draw(end) + data.draw(st.integers(-1, 1)) for _ in range(2))
    if data.draw(st.booleans()):
        high = low
    budget = Budget(low, high, convention)
    nearest = model.nearest(budget)
    shortest = distances(members, budget).min()
    assert nearest in members
    assert distances(np.array(nearest), budget) == shortest
    if shortest:
        told = f"nearest has {nearest:,}, .* from {members[0]:,} to {members[-1]:,}"
        with pytest.raises(UserError, match=f"{low:,} to {high:,} MACs .*{convention}.* {told}"):
            model.require(budget)
    else:
        model.require(budget)


@settings(max_examples=20)
@given(share=st.floats(0.05, 0.95), shared_blocks=st.booleans())
def test_random_subnets_cost_the_middle_of_the_budget_on_average(tiny_spaces, share, shared_blocks):
    space = tiny_spaces["shared" if shared_blocks else "deep"]
    model, _ = model_and_members(space)

    def mean_macs(probability):
        return model.predict(space.sample_genomes(np.random.default_rng(1), 4096, probability)).mean()

    cheapest, dearest = mean_macs(1.0), mean_macs(0.0)
    middle = cheapest + share * (dearest - cheapest)
    probability = identity_probability(model, Budget(int(0.9 * middle), int(1.1 * middle)))
    assert mean_macs(probability) == pytest.approx(middle, rel=0.04)


def test_identity_probability_is_zero_where_full_depth_is_below_the_middle(small_space):
    model = MacsModel(small_space, 32, 10)
    dearest = largest(small_space).macs(32, 10, "released")
    assert identity_probability(model, Budget(dearest, dearest)) == 0


def test_identity_probability_is_none_in_a_space_without_identities(tiny_spaces):
    for kind in ("no identity", "shared, no identity"):
        model, members = model_and_members(tiny_spaces[kind])
        assert identity_probability(model, Budget(int(members[0]), int(members[-1]))) is None


def test_a_share_of_the_widest_network_is_a_budget(tiny_space):
    model = MacsModel(tiny_space, 16, 10)
    low, high = model.reach()
    budget = model.resolve(Budget("50%", "99.5 %"))
    assert (budget.low, budget.high) == (int(0.5 * high), int(0.995 * high))
    assert model.resolve(Budget("0%", "100%")).high == high
    assert model.resolve(Budget(int(low), "100%")) == Budget(int(low), int(high))


def test_a_budget_of_shares_compares_with_nothing_before_the_space_is_known():
    with pytest.raises(ValueError, match="before a space is known"):
        Budget("50%", "60%").distance(3)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"minimum": "60%", "maximum": "50%"}, "minimum: found 60%; it must be at most the maximum, 50%"),
        ({"minimum": 0, "maximum": "0%"}, "maximum: found '0%'; it must be above 0%"),
        (
            {"minimum": "10%", "maximum": 20, "convention": "images_per_second"},
            "minimum: found '10%'; images per second are given as a number",
        ),
    ],
)
def test_shares_that_mean_nothing_are_refused(ends, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Budget(**ends)


def test_a_share_that_is_less_than_a_number_beside_it_is_refused_when_the_space_is_known(tiny_space):
    model = MacsModel(tiny_space, 16, 10)
    with pytest.raises(UserError, match="minimum: found"):
        model.resolve(Budget(int(model.reach()[1]), "1%"))

"""Genomes inside a budget: how they are drawn, and how others are brought in."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import largest
from tests.vitas.test_budget import distances, model_and_members
from vitas import SearchSpace, zoo
from vitas.budget import Budget, MacsModel, SpeedModel
from vitas.errors import UserError
from vitas.in_budget import InBudget, move_into_budget

RATIOS = (0.25, 0.5, 0.75, 1.0)


def space_of(**changes) -> SearchSpace:
    return SearchSpace(
        **{
            "patch_sizes": (4, 8),
            "embed_dim": 32,
            "depth": 5,
            "heads": (2, 4),
            "qkv_dim": 96,
            "mlp_dim": 64,
            "widths": RATIOS,
            **changes,
        }
    )


def around(cost: float, share: float = 0.1) -> Budget:
    return Budget(int((1 - share) * cost), int((1 + share) * cost))


# Drawing


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_what_is_drawn_is_in_the_budget_and_canonical_in_any_space(spaces, data, seed):
    space = data.draw(spaces)
    model, rng = MacsModel(space, 48, 10), np.random.default_rng(seed)
    budget = around(model.predict(space.sample_genomes(rng, 1))[0])
    genomes = InBudget(model, budget).draw(rng, 50)
    assert genomes.shape == (50, space.gene_counts.size)
    assert ((genomes >= 0) & (genomes < space.gene_counts)).all()
    assert np.array_equal(genomes, space.canonical(genomes))
    assert (distances(model.predict(genomes), budget) == 0).all()


def test_patch_sizes_depths_and_embedding_dims_are_drawn_equally_often():
    space = space_of()
    model = MacsModel(space, 32, 10)
    genomes = InBudget(model, around(600_000, 0.3)).draw(np.random.default_rng(0), 4000)
    columns = space.columns(genomes)
    cells = Counter(zip(columns.patch.tolist(), columns.active.sum(1).tolist(), columns.embed.tolist(), strict=True))
    for patch in (0, 1):
        of_patch = {cell: count for cell, count in cells.items() if cell[0] == patch}
        assert sum(of_patch.values()) == pytest.approx(2000, abs=40)
        depths = {depth for _, depth, _ in of_patch}
        assert len(depths) > 2
        for depth in depths:
            counts = [count for cell, count in of_patch.items() if cell[1] == depth]
            assert sum(counts) == pytest.approx(2000 / len(depths), abs=20)
            assert max(counts) - min(counts) <= 2


def test_a_size_bias_favours_deep_and_wide_networks_and_leaves_patch_sizes_even():
    space = space_of()
    model = MacsModel(space, 32, 10)

    def counted(size_bias: float) -> Counter:
        genomes = InBudget(model, around(600_000, 0.3), size_bias).draw(np.random.default_rng(0), 8000)
        columns = space.columns(genomes)
        return Counter(zip(columns.patch.tolist(), columns.active.sum(1).tolist(), columns.embed.tolist(), strict=True))

    even, biased = counted(0.0), counted(2.0)
    assert even.keys() == biased.keys()
    for patch in (0, 1):
        cells = [cell for cell in even if cell[0] == patch]
        assert sum(biased[cell] for cell in cells) == pytest.approx(4000, abs=40)
        ratios = {cell: biased[cell] / even[cell] / (cell[1] * space.embed_dims[cell[2]]) ** 2 for cell in cells}
        assert max(ratios.values()) / min(ratios.values()) < 1.35


def test_genomes_of_equal_cost_are_equally_likely(tiny_spaces, all_genomes):
    """Of one patch size, depth and embedding dim."""
    space = tiny_spaces["deep"]
    model, members = model_and_members(space)
    budget = Budget(int(np.quantile(members, 0.3)), int(np.quantile(members, 0.7)))
    drawn = InBudget(model, budget).draw(np.random.default_rng(0), 40_000)
    counts = Counter(map(bytes, drawn))
    all_canonical = np.unique(space.canonical(all_genomes(space)), axis=0)
    inside = all_canonical[distances(model.predict(all_canonical), budget) == 0]
    columns = space.columns(inside)
    groups: dict[tuple, list[int]] = {}
    keys = zip(columns.patch, columns.active.sum(1), columns.embed, model.predict(inside), strict=True)
    for key, genome in zip(keys, inside, strict=True):
        groups.setdefault(key, []).append(counts[genome.tobytes()])
    assert sum(map(sum, groups.values())) == len(drawn)
    large = [counts for counts in groups.values() if len(counts) > 3]
    assert len(large) > 5
    for counts in large:
        mean = np.mean(counts)
        assert mean > 0
        # Poisson's deviation, five times.
        assert np.abs(np.array(counts) - mean).max() < 5 * np.sqrt(mean) + 1


def test_the_mean_cost_is_near_the_middle_of_the_budget(vitas_spaces):
    space = vitas_spaces["vitas_a"]
    model = MacsModel(space, 224, 1000)
    budget = around(1e9, 0.25)
    costs = model.predict(InBudget(model, budget).draw(np.random.default_rng(0), 3000))
    assert costs.mean() == pytest.approx(budget.middle, rel=0.08)
    # From end to end, not at one of them.
    assert np.quantile(costs, 0.1) < 0.9 * budget.middle < 1.05 * budget.middle < np.quantile(costs, 0.9)


def test_draws_depend_on_the_generator_alone():
    model = MacsModel(space_of(), 32, 10)
    first, second = (InBudget(model, around(600_000)) for _ in range(2))
    assert np.array_equal(*(d.draw(np.random.default_rng(3), 64) for d in (first, second)))
    assert not np.array_equal(*(first.draw(np.random.default_rng(seed), 64) for seed in (3, 4)))


def test_a_budget_in_images_per_second_is_drawn_from_too():
    space = space_of()
    model = SpeedModel(space, 32, (1e-5, 1e-10, 1e-6, 1e-9, 1e-10, 1e-10, 1e-10, 1e-10, 1e-10))
    speeds = model.predict(space.sample_genomes(np.random.default_rng(0), 200))
    budget = Budget(int(np.quantile(speeds, 0.4)), int(np.quantile(speeds, 0.6)), "images_per_second")
    drawn = model.predict(InBudget(model, budget).draw(np.random.default_rng(0), 200))
    assert ((0.999 * budget.minimum <= drawn) & (drawn <= 1.001 * budget.maximum)).all()


@pytest.mark.parametrize("count", [1, 6])
def test_different_genomes_are_as_many_as_asked(tiny_space, count):
    model, members = model_and_members(tiny_space)
    budget = Budget(*(int(np.quantile(members, share)) for share in (0.4, 0.6)))
    drawn = InBudget(model, budget).draw_different(np.random.default_rng(0), count)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == count
    assert (distances(model.predict(drawn), budget) == 0).all()


def test_where_few_genomes_are_in_a_budget_all_of_them_are_drawn(tiny_spaces, all_genomes):
    space = tiny_spaces["shared"]
    model, members = model_and_members(space)
    budget = Budget(int(members[5]), int(members[7]))
    genomes = all_genomes(space)
    inside = distances(model.predict(genomes), budget) == 0
    drawn = InBudget(model, budget).draw_different(np.random.default_rng(0), 100)
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, genomes[inside]))


def test_a_budget_that_no_draw_meets_is_refused_with_what_the_space_reaches(tiny_spaces):
    model, members = model_and_members(tiny_spaces["identity"])
    above = int(members[-1]) + 1
    with pytest.raises(UserError, match=f"{above:,} to {above:,} MACs.*from {members[0]:,} to {members[-1]:,}"):
        InBudget(model, Budget(above, above))


@pytest.mark.parametrize("kind", ["identity", "deep", "no identity", "shared", "shared, no identity"])
def test_reach_is_from_the_cheapest_member_to_the_dearest(tiny_spaces, kind):
    model, members = model_and_members(tiny_spaces[kind])
    assert model.reach() == (members[0], members[-1])


# Bringing in


def test_single_changes_are_all_there_are(tiny_spaces):
    space = tiny_spaces["deep"]
    widths, heads = len(space.widths), len(space.heads)
    rng = np.random.default_rng(0)
    for genome in space.sample_genomes(rng, 20, 0.3):
        depth = int(space.columns(genome).active.sum())
        changes = space.single_changes(genome)
        expected = (widths - 1) * (1 + 2 * depth) + (heads - 1) * depth
        expected += depth * (depth > 1) + depth * (depth < space.depth)
        assert len(changes) == expected
        assert np.array_equal(changes, space.canonical(changes))
        depths = space.columns(changes).active.sum(1)
        assert set(depths) <= {depth - 1, depth, depth + 1} - {0}
        assert (changes[:, 0] == genome[0]).all()


def test_a_doubled_block_is_a_copy_of_its_neighbour_and_a_missing_one_moves_the_rest_up():
    space = space_of()
    genome = space.encode(space.decode(space.sample_genomes(np.random.default_rng(1), 1, 0.4)[0]))
    blocks = space.decode(genome).active_blocks
    assert 1 < len(blocks) < space.depth
    reached = {space.decode(changed).active_blocks for changed in space.single_changes(genome)}
    for i in range(len(blocks)):
        assert blocks[:i] + blocks[i + 1 :] in reached
        assert blocks[: i + 1] + blocks[i:] in reached


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_what_is_brought_in_stays_in_the_space_and_comes_no_farther_from_any_budget(spaces, data, seed):
    space = data.draw(spaces)
    model = MacsModel(space, 16, 10)
    low, high = sorted(data.draw(st.integers(0, largest(space).macs(16, 10) * 2)) for _ in range(2))
    budget, rng = Budget(low, high), np.random.default_rng(seed)
    genomes = space.sample_genomes(rng, 5)
    moved = move_into_budget(genomes, model, budget, rng)
    assert np.array_equal(moved, space.canonical(moved))
    assert space.columns(moved).active.any(axis=1).all()
    assert ((moved >= 0) & (moved < space.gene_counts)).all()
    assert (distances(model.predict(moved), budget) <= distances(model.predict(genomes), budget)).all()


def test_what_one_change_can_bring_in_is_brought_in_by_one_change_any_of_them():
    space = space_of()
    model, rng = MacsModel(space, 32, 10), np.random.default_rng(0)
    budget = around(700_000, 0.05)
    seen = Counter()
    (member,) = InBudget(model, budget).draw(rng, 1)

    def ways_in(genome: np.ndarray) -> set[bytes]:
        return {g.tobytes() for g in space.single_changes(genome) if model.predict(g[None])[0] in budget}

    outside = max(
        (g for g in space.single_changes(member) if model.predict(g[None])[0] not in budget),
        key=lambda g: len(ways_in(g)),
    )
    possible = ways_in(outside)
    for genome in move_into_budget(np.repeat(outside[None], 60 * len(possible), axis=0), model, budget, rng):
        seen[genome.tobytes()] += 1
    assert set(seen) == possible
    assert len(possible) > 1
    assert min(seen.values()) > 30


@pytest.mark.parametrize("name", ["vitas_a", "vitas_b", "vitas_e", "vitas_f"])
def test_random_genomes_are_brought_into_the_published_budgets(vitas_spaces, name):
    space = vitas_spaces[name]
    model, rng = MacsModel(space, 224, 1000), np.random.default_rng(0)
    budget = around(zoo()[name].macs(convention="released"), 0.02)
    genomes = space.sample_genomes(rng, 40)
    assert (distances(model.predict(genomes), budget) == 0).mean() < 0.1
    moved = move_into_budget(genomes, model, budget, rng)
    assert (distances(model.predict(moved), budget) == 0).all()


def test_what_is_inside_and_the_input_stay_as_they_are(tiny_space):
    model, members = model_and_members(tiny_space)
    genomes = tiny_space.sample_genomes(np.random.default_rng(0), 100)
    before = genomes.copy()
    budget = Budget(int(members[0]), int(np.median(members)))
    inside = distances(model.predict(genomes), budget) == 0
    assert 0 < inside.sum() < len(genomes)
    moved = move_into_budget(genomes, model, budget, np.random.default_rng(1))
    assert np.array_equal(genomes, before)
    assert np.array_equal(moved[inside], genomes[inside])


def test_the_patch_size_changes_only_where_no_network_of_it_is_inside():
    space = space_of(depth=1, patch_sizes=(4, 16))
    model, rng = MacsModel(space, 32, 10), np.random.default_rng(0)
    dearest = space.encode(largest(space))
    dearest[0] = 0
    cheapest = np.zeros_like(dearest)
    least = int(model.predict(cheapest[None])[0])
    assert model.predict(dearest[None])[0] > least
    assert move_into_budget(dearest[None], model, Budget(0, least - 1), rng)[0, 0] == 1
    assert move_into_budget(dearest[None], model, Budget(0, least), rng)[0, 0] == 0

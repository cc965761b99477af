"""How evolution changes genomes: each operator's distribution, and that children resemble their parents."""

from collections import Counter

import numpy as np
import pytest
from pymoo.core.population import Population

from search.operators import BlockCrossover, BlockMutation, DropKnown, MoveIntoBudget
from tests.vitas.test_in_budget import around, space_of
from vitas import SearchSpace
from vitas.budget import MacsModel
from vitas.in_budget import InBudget

PER_BLOCK, SHARED = space_of(), space_of(shared_blocks=True)


def parents(space: SearchSpace, count: int, seed: int = 0) -> np.ndarray:
    return space.sample_genomes(np.random.default_rng(seed), count, 0.4)


def crossed(space: SearchSpace, first: np.ndarray, second: np.ndarray, seed: int = 0) -> np.ndarray:
    """Children [2, matings, genes]."""
    return BlockCrossover(space)._do(None, np.stack([first, second]), random_state=np.random.default_rng(seed))


def mutated(space: SearchSpace, genomes: np.ndarray, probability: float, seed: int = 7) -> np.ndarray:
    return BlockMutation(space, probability)._do(None, genomes, random_state=np.random.default_rng(seed))


# Crossover


def test_every_block_of_a_child_is_whole_from_a_parent_that_has_it_and_its_shape_is_a_parents():
    space = PER_BLOCK
    first, second = parents(space, 300, 1), parents(space, 300, 2)
    for children in crossed(space, first, second):
        assert np.array_equal(children, space.canonical(children))
        for a, b, child in zip(*(map(space.decode, part) for part in (first, second, children)), strict=True):
            shapes = [(parent.patch_size, parent.embed_dim, parent.depth) for parent in (a, b)]
            assert (child.patch_size, child.embed_dim, child.depth) in shapes
            for i, block in enumerate(child.active_blocks):
                assert block in [parent.active_blocks[i] for parent in (a, b) if i < parent.depth]


def test_two_children_share_out_the_genes_of_their_parents():
    """Where both have a block, one child has the one, and one the other."""
    space = PER_BLOCK
    first, second = parents(space, 200, 1), parents(space, 200, 2)
    one, other = crossed(space, first, second)
    for a, b, c, d in zip(*(map(space.decode, part) for part in (first, second, one, other)), strict=True):
        assert Counter((a.depth, b.depth)) == Counter((c.depth, d.depth))
        assert Counter((a.patch_size, b.patch_size)) == Counter((c.patch_size, d.patch_size))
        for i in range(min(a.depth, b.depth)):
            assert Counter((a.blocks[i], b.blocks[i])) == Counter((c.blocks[i], d.blocks[i]))


def test_a_child_takes_each_block_from_either_parent_equally_often():
    space = PER_BLOCK
    full = space.sample_genomes(np.random.default_rng(3), 2, 0.0)
    full[1] = (full[0] + 1) % space.gene_counts
    full[:, 1 : 1 + space.depth] %= len(space.heads)
    child = crossed(space, *np.repeat(full[:, None], 4000, axis=1))[0]
    of_blocks = np.r_[1 : 1 + space.depth, 2 + space.depth : space.gene_counts.size]
    assert (child == full[0]).mean(axis=0)[of_blocks] == pytest.approx(0.5, abs=0.04)


def test_equal_blocks_are_crossed_gene_by_gene():
    space = SHARED
    first, second = parents(space, 400, 1), parents(space, 400, 2)
    one, other = crossed(space, first, second)
    assert ((one == first) | (one == second)).all()
    assert (one + other == first + second).all()
    differ = first != second
    assert (one == first)[differ].mean() == pytest.approx(0.5, abs=0.05)


def test_parents_that_are_equal_have_equal_children():
    genomes = parents(PER_BLOCK, 100)
    for children in crossed(PER_BLOCK, genomes, genomes):
        assert np.array_equal(children, genomes)


# Mutation


def test_a_gene_in_use_changes_with_its_probability():
    space, probability = space_of(identity=False), 0.2
    genomes = parents(space, 3000)
    changed = (mutated(space, genomes, probability) != genomes).mean(axis=0)
    counts = space.gene_counts
    # A gene that is drawn anew may stay as it is.
    assert changed == pytest.approx(probability * (1 - 1 / counts), abs=0.03)


def test_blocks_are_left_out_as_often_as_they_are_doubled():
    space, probability = PER_BLOCK, 0.15
    genomes = np.repeat(space.sample_genomes(np.random.default_rng(5), 1, 0.0), 6000, axis=0)
    # Three blocks, so that neither end of the depths is near.
    genomes = np.array([space.rearranged(genome, [0, 1, 2]) for genome in genomes])
    depths = space.columns(mutated(space, genomes, probability)).active.sum(1)
    rate = probability / (len(space.heads) + 1)
    assert depths.mean() == pytest.approx(3, abs=0.03)
    assert (depths < 3).mean() == pytest.approx(3 * rate, abs=0.03)
    assert (depths > 3).mean() == pytest.approx(3 * rate, abs=0.03)


def test_a_new_block_is_a_copy_of_its_neighbour():
    """At a probability so small that in nearly all of the deeper children nothing but the depth changes."""
    space = PER_BLOCK
    full = space.sample_genomes(np.random.default_rng(5), 8000, 0.0)
    genomes = np.array([space.rearranged(genome, [0, 1, 2]) for genome in full])
    is_copy = []
    for before, after in zip(genomes, mutated(space, genomes, 0.01), strict=True):
        old, new = space.decode(before).active_blocks, space.decode(after).active_blocks
        if len(new) == 4:
            is_copy.append(any(new == old[: i + 1] + old[i:] for i in range(3)))
    assert len(is_copy) > 40
    assert np.mean(is_copy) > 0.8


def test_a_mutated_genome_has_a_block_and_no_more_than_the_space_holds():
    for space in (PER_BLOCK, SHARED, space_of(depth=1), space_of(identity=False)):
        genomes = mutated(space, parents(space, 500), 0.9)
        assert np.array_equal(genomes, space.canonical(genomes))
        assert ((genomes >= 0) & (genomes < space.gene_counts)).all()
        assert space.columns(genomes).active.any(axis=1).all()


def test_mutation_without_probability_changes_nothing():
    genomes = parents(PER_BLOCK, 50)
    assert np.array_equal(mutated(PER_BLOCK, genomes, 0.0), genomes)


# Together


def test_children_resemble_their_parents_after_the_repair():
    """In the published space, though the parents are random: most blocks of a child are a parent's, in their places."""
    space = SearchSpace((14, 16, 32), 384, 16, (3, 6, 12, 16), 1440, 1440, tuple(i / 10 for i in range(1, 11)))
    model, budget, rng = MacsModel(space, 224, 1000), around(1e9, 0.02), np.random.default_rng(0)
    genomes = InBudget(model, budget).draw(rng, 200)
    children = crossed(space, genomes[:100], genomes[100:])[0]
    repaired = MoveIntoBudget(model, budget)._do(None, children, random_state=rng)
    assert (budget.distance(model.predict(repaired)) == 0).all()
    kept = []
    for a, b, child in zip(
        *(map(space.decode, part) for part in (genomes[:100], genomes[100:], repaired)), strict=True
    ):
        for i, block in enumerate(child.active_blocks):
            kept.append(any(block in parent.active_blocks[i : i + 1] for parent in (a, b)))
    assert np.mean(kept) > 0.65


def test_a_network_is_proposed_once():
    genomes = parents(PER_BLOCK, 5)
    known = DropKnown()
    twice = np.concatenate([genomes, genomes])
    assert len(known.do(Population.new("X", twice))) == len(np.unique(genomes, axis=0))
    # Those that were not given out may come again, those that were may not.
    known.add(genomes[:2])
    left = known.do(Population.new("X", twice)).get("X")
    assert sorted(map(tuple, left)) == sorted(map(tuple, np.unique(genomes[2:], axis=0)))
    # Nor may those that pymoo has already.
    assert len(known.do(Population.new("X", twice), Population.new("X", genomes[2:]))) == 0

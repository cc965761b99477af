"""The space of a pretrained network: its members, their genomes, and what works on genomes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.operators import BlockCrossover, BlockMutation, MoveIntoBudget
from search.predictor import Choices
from tests.vitas.test_in_budget import around
from vitas import Architecture
from vitas.budget import Budget, MacsModel, SpeedModel
from vitas.elastic_space import ElasticSpace, Shares, read_elastic_space
from vitas.errors import UserError
from vitas.in_budget import InBudget, move_into_budget

# Blocks that differ: the network of a search may be pretrained too.
NETWORK = Architecture.parse("vit8-e32-token-h4q96m64-h2q48m48-h4q96m64")
SHARES = Shares((0.5, 1.0), (0.5, 1.0), (0.25, 1.0), (0.4, 1.0))
SPACE = ElasticSpace(NETWORK, (2, 0, 1), SHARES)
MACS = MacsModel(SPACE, 32, 10, "true")


def all_genomes(space: ElasticSpace) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, space.gene_counts))))


@st.composite
def elastic_spaces(draw) -> ElasticSpace:
    count = draw(st.integers(1, 4))
    heads = [draw(st.sampled_from([1, 2, 3, 4])) for _ in range(count)]
    blocks = "-".join(f"h{h}q{3 * h * draw(st.sampled_from([2, 4]))}m{draw(st.integers(4, 40))}" for h in heads)
    network = Architecture.parse(
        f"vit8-e{draw(st.integers(4, 40))}-{draw(st.sampled_from(['token', 'mean']))}-{blocks}"
    )
    shares = {
        part: tuple(sorted({*draw(st.sets(st.sampled_from([0.25, 0.5, 0.75]), max_size=2)), 1.0}))
        for part in ("embed", "heads", "mlp", "depth")
    }
    kept = draw(st.sets(st.sampled_from(["embed", "heads", "mlp", "depth", "blocks.0"]), max_size=2))
    return ElasticSpace(network, tuple(draw(st.permutations(range(count)))), Shares(**shares, keep=tuple(sorted(kept))))


# Members


def test_the_network_is_the_widest_member_and_shares_are_of_it():
    assert SPACE.decode(SPACE.extreme(np.zeros(9, dtype=int), widest=True)) == NETWORK
    assert SPACE.embed_dims == (16, 32)
    assert SPACE.head_counts == ((2, 4), (1, 2), (2, 4))
    assert SPACE.mlp_counts == ((16, 64), (12, 48), (16, 64))
    assert SPACE.depths == (1, 3)


def test_a_head_keeps_its_dims():
    for genome in all_genomes(SPACE):
        for block in SPACE.decode(genome).blocks:
            assert block.attention_dim == 8 * block.heads


def test_a_shallower_member_has_the_most_important_blocks_in_their_order():
    space = ElasticSpace(NETWORK, (2, 0, 1), Shares(depth=(0.3, 0.6, 1.0)))
    assert [space.block_positions(depth) for depth in space.depths] == [(2,), (0, 2), (0, 1, 2)]
    with pytest.raises(UserError, match="depth 4 is not in this space"):
        space.block_positions(4)


def test_what_is_kept_stays_as_it_is():
    space = ElasticSpace(NETWORK, (2, 0, 1), Shares(keep=("embed", "blocks.1"), depth=(0.1, 1.0)))
    for genome in space.sample_genomes(np.random.default_rng(0), 200):
        member = space.decode(genome)
        assert member.embed_dim == 32
        assert NETWORK.blocks[1] in member.blocks
    assert space.depths == (1, 3)
    assert space.block_positions(1) == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": (0.5, 0.25)}, "embed: found"),
        ({"heads": ()}, "heads: found"),
        ({"mlp": (0.5, 1.5)}, "mlp: found 1.5"),
        ({"keep": ("block.1",)}, "keep: found 'block.1'; it must be embed, heads, mlp, depth or blocks.N"),
    ],
)
def test_wrong_shares_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Shares(**changes)


def test_shares_that_do_not_fit_the_network_are_refused():
    with pytest.raises(UserError, match=r"keep: found blocks.3; the network's blocks are 0 to 2"):
        ElasticSpace(NETWORK, (0, 1, 2), Shares(keep=("blocks.3",)))
    with pytest.raises(UserError, match="block_order"):
        ElasticSpace(NETWORK, (0, 1, 1))
    with pytest.raises(UserError, match="not of the family vit"):
        ElasticSpace(Architecture.parse("p8-e32-token-h4q96m64"), (0,))


def test_one_is_always_among_the_shares():
    assert Shares(embed=(0.5,)).embed == (0.5, 1.0)


# Genomes


@given(space=elastic_spaces(), seed=st.integers(0, 2**32))
def test_genomes_survive_the_codec_and_equal_networks_have_equal_canonical_genomes(space, seed):
    genomes = np.random.default_rng(seed).integers(0, space.gene_counts, (30, space.gene_counts.size))
    members = [space.decode(genome) for genome in genomes]
    for row, member in zip(space.canonical(genomes), members, strict=True):
        assert np.array_equal(space.encode(member), row)
        assert space.decode(row) == member
        assert Architecture.parse(str(member)) == Architecture.from_dict(member.to_dict()) == member


def test_size_counts_the_members():
    assert SPACE.size == len({SPACE.decode(genome) for genome in all_genomes(SPACE)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p8-e32-token-h4q96m64x3", "family vitas is not"),
        ("vit4-e32-token-h4q96m64-h2q48m48-h4q96m64", "patch size 4 is not"),
        ("vit8-e32-mean-h4q96m64-h2q48m48-h4q96m64", "classifier mean is not"),
        ("vit8-e24-token-h4q96m64-h2q48m48-h4q96m64", "embedding dim 24 is not in this space: 16, 32"),
        ("vit8-e32-token-h4q96m64-h2q48m48", "depth 2 is not"),
        ("vit8-e32-token-h3q72m64-h2q48m48-h4q96m64", "head count 3 is not in this space: 2, 4"),
        ("vit8-e32-token-h4q48m64-h2q48m48-h4q96m64", "a head of block 0 has 8 dims"),
        ("vit8-e32-token-h4q96m64-h2q48m40-h4q96m64", "MLP dim 40 is not in this space: 12, 48"),
    ],
)
def test_what_is_outside_the_space_is_named(text, message):
    with pytest.raises(UserError, match=message):
        SPACE.encode(Architecture.parse(text))


def test_complementary_genomes_are_each_others():
    for genome in SPACE.canonical(all_genomes(SPACE)):
        other = SPACE.complementary(genome)
        assert np.array_equal(SPACE.complementary(other), genome)
        ours, theirs = (SPACE.columns(g) for g in (genome, other))
        assert np.array_equal(ours.active, theirs.active)
        assert ours.embed + theirs.embed == len(SPACE.embed_dims) - 1
        assert ((ours.mlp + theirs.mlp == 1) | ~ours.active).all()


def test_a_yaml_form_parses_back():
    assert ElasticSpace.from_dict(SPACE.to_dict()) == SPACE
    with pytest.raises(UserError, match="the space of a pretrained network"):
        ElasticSpace.from_dict({"network": "x"})


def test_a_file_that_is_not_there_or_is_another_is_refused(tmp_path):
    with pytest.raises(UserError, match="`search` writes it"):
        read_elastic_space(tmp_path / "pretrained.yaml", Shares())
    (tmp_path / "pretrained.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="must hold the architecture"):
        read_elastic_space(tmp_path / "pretrained.yaml", Shares())


# Costs and budgets


@given(space=elastic_spaces(), seed=st.integers(0, 2**32))
def test_the_macs_of_a_population_are_those_of_its_architectures(space, seed):
    genomes = space.sample_genomes(np.random.default_rng(seed), 20)
    for convention in ("true", "released"):
        counted = MacsModel(space, 32, 10, convention).predict(genomes)
        assert counted.tolist() == [space.decode(genome).macs(32, 10, convention) for genome in genomes]


def test_the_nearest_cost_is_exact():
    costs = np.unique(MACS.predict(all_genomes(SPACE)))
    for wanted in range(int(costs[0]) - 1000, int(costs[-1]) + 1000, 997):
        budget = Budget(wanted, wanted, "true")
        assert budget.distance(MACS.nearest(budget)) == budget.distance(costs).min()
    low, high = MACS.reach()
    assert (low, high) == (costs[0], costs[-1])


@settings(max_examples=40)
@given(space=elastic_spaces(), seed=st.integers(0, 2**32))
def test_what_is_drawn_is_in_the_budget_and_canonical(space, seed):
    model, rng = MacsModel(space, 48, 10), np.random.default_rng(seed)
    budget = around(model.predict(space.sample_genomes(rng, 1))[0])
    genomes = InBudget(model, budget, 1.5).draw(rng, 50)
    assert ((genomes >= 0) & (genomes < space.gene_counts)).all()
    assert np.array_equal(genomes, space.canonical(genomes))
    assert (budget.distance(model.predict(genomes)) == 0).all()


def test_everything_in_a_budget_is_drawn():
    budget = Budget(150_000, 400_000, "true")
    inside = {g.tobytes() for g in SPACE.canonical(all_genomes(SPACE)) if MACS.predict(g)[0] in budget}
    drawn = {g.tobytes() for g in InBudget(MACS, budget).draw(np.random.default_rng(0), 5000)}
    assert drawn == inside


def test_a_speed_model_draws_too():
    # Seconds for MACs alone.
    model = SpeedModel(SPACE, 32, (0, 1e-9, 0, 0, 1e-9, 1e-9, 0, 1e-9, 0))
    speeds = model.predict(all_genomes(SPACE))
    budget = Budget(int(np.quantile(speeds, 0.3)), int(np.quantile(speeds, 0.6)), "images_per_second")
    genomes = InBudget(model, budget).draw(np.random.default_rng(0), 100)
    assert (budget.distance(model.predict(genomes)) == 0).all()


def test_genomes_are_moved_into_a_budget_by_the_smallest_change():
    budget, rng = Budget(150_000, 300_000, "true"), np.random.default_rng(0)
    genomes = SPACE.sample_genomes(rng, 200)
    moved = move_into_budget(genomes, MACS, budget, rng)
    assert (budget.distance(MACS.predict(moved)) == 0).all()
    inside = budget.distance(MACS.predict(genomes)) == 0
    assert np.array_equal(moved[inside], SPACE.canonical(genomes)[inside])


def test_single_changes_are_another_value_of_one_gene_that_counts():
    for genome in SPACE.canonical(all_genomes(SPACE)):
        changes = SPACE.single_changes(genome)
        assert len(np.unique(changes, axis=0)) == len(changes)
        of_depth = changes[:, 1] != genome[1]
        assert ((changes != genome).sum(axis=1)[~of_depth] == 1).all()
        # A block that comes back is as the one before it, or as the first that was there.
        deeper = changes[of_depth & (changes[:, 1] > genome[1])]
        for row in deeper:
            assert (row[3:6] == genome[5]).all()
            assert (row[6:9] == genome[8]).all()


# Evolution


def test_children_have_a_parents_shape_and_blocks_of_either():
    rng = np.random.default_rng(0)
    first, second = SPACE.sample_genomes(rng, 200), SPACE.sample_genomes(rng, 200)
    children = BlockCrossover(SPACE)._do(None, np.stack([first, second]), random_state=rng)
    for child, shape, other in ((children[0], first, second), (children[1], second, first)):
        assert np.array_equal(child, SPACE.canonical(child))
        assert np.array_equal(child[:, :3], shape[:, :3])
        for i in range(3):
            genes = child[:, [3 + i, 6 + i]]
            pairs = [(parent[:, [3 + i, 6 + i]] == genes).all(axis=1) for parent in (shape, other)]
            assert (pairs[0] | pairs[1]).all()


def test_mutation_reaches_every_member_and_nothing_else():
    rng = np.random.default_rng(0)
    start = np.repeat(SPACE.extreme(np.zeros(9, dtype=int), False)[None], 100_000, axis=0)
    mutated = BlockMutation(SPACE, 0.5)._do(None, start, random_state=rng)
    assert np.array_equal(mutated, SPACE.canonical(mutated))
    assert len(np.unique(mutated, axis=0)) == SPACE.size


def test_without_mutation_nothing_changes():
    genomes = SPACE.sample_genomes(np.random.default_rng(0), 50)
    assert np.array_equal(BlockMutation(SPACE, 0.0)._do(None, genomes, random_state=np.random.default_rng(1)), genomes)


def test_repair_brings_children_into_the_budget():
    budget = Budget(150_000, 300_000, "true")
    genomes = SPACE.sample_genomes(np.random.default_rng(0), 50)
    repaired = MoveIntoBudget(MACS, budget)._do(None, genomes, random_state=np.random.default_rng(0))
    assert (budget.distance(MACS.predict(repaired)) == 0).all()


def test_choices_tell_members_apart():
    genomes = np.unique(SPACE.canonical(all_genomes(SPACE)), axis=0)
    features = Choices(SPACE).features(genomes)
    assert len(np.unique(features, axis=0)) == len(genomes)

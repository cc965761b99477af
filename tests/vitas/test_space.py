"""Search spaces, and the codec between genomes and architectures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import largest
from vitas import Architecture, Block, SearchSpace
from vitas.architecture import IDENTITY
from vitas.errors import UserError

# The codec, over every genome


def test_decode_then_encode_keeps_every_gene_but_the_widths_of_identities(tiny_space, all_genomes):
    for genome in all_genomes(tiny_space):
        expected = genome.copy()
        if not tiny_space.shared_blocks:
            columns = tiny_space.columns(expected)
            columns.qkv[~columns.active] = 0
            columns.mlp[~columns.active] = 0
        assert tiny_space.encode(tiny_space.decode(genome)).tolist() == expected.tolist()


def test_every_genome_decodes_to_the_widths_that_its_genes_index(tiny_spaces):
    space = tiny_spaces["identity"]
    # patch, choice, choice, embedding, (qkv, MLP), (qkv, MLP)
    assert space.decode([1, 0, 2, 1, 1, 0, 1, 1]) == Architecture(8, 32, (Block(2, 96, 32), IDENTITY))
    # patch, heads, embedding, qkv, MLP, identities
    block = Block(4, 24, 64)
    assert tiny_spaces["shared"].decode([0, 1, 1, 0, 2, 1]) == Architecture(4, 16, (block, block, IDENTITY))


def test_every_architecture_survives_its_text_yaml_and_net_id_forms(tiny_space, all_genomes):
    for architecture in {tiny_space.decode(genome) for genome in all_genomes(tiny_space)}:
        assert Architecture.parse(str(architecture)) == architecture
        assert Architecture.from_dict(architecture.to_dict()) == architecture
        if not tiny_space.shared_blocks:
            assert tiny_space.from_net_id(tiny_space.to_net_id(architecture)) == architecture


def test_canonical_genomes_are_equal_exactly_where_the_networks_are(tiny_space, all_genomes):
    genomes = all_genomes(tiny_space)
    canonical = tiny_space.canonical(genomes)
    pairs = {
        (row.tobytes(), tiny_space.decode(genome).shifted()) for row, genome in zip(canonical, genomes, strict=True)
    }
    rows, networks = zip(*pairs, strict=True)
    assert len(pairs) == len(set(rows)) == len(set(networks))


def test_canonical_genomes_mean_the_same_network_and_are_fixed_points(tiny_space, all_genomes):
    genomes = all_genomes(tiny_space)
    before = genomes.copy()
    canonical = tiny_space.canonical(genomes)
    assert np.array_equal(genomes, before)
    assert np.array_equal(tiny_space.canonical(canonical), canonical)
    for row, genome in zip(canonical, genomes, strict=True):
        assert tiny_space.decode(row) == tiny_space.decode(genome).shifted()


def test_canonical_genomes_keep_the_order_of_many_blocks(vitas_spaces):
    space, rng = vitas_spaces["vitas_a"], np.random.default_rng(0)
    genomes = rng.integers(0, space.gene_counts, size=(200, space.gene_counts.size))
    for row, genome in zip(space.canonical(genomes), genomes, strict=True):
        assert space.decode(row) == space.decode(genome).shifted()


def test_size_counts_the_different_networks_of_at_least_one_block(tiny_space, all_architectures):
    assert tiny_space.size == len(all_architectures(tiny_space))


@given(data=st.data())
def test_random_genomes_of_random_spaces_survive_the_codec(spaces, data):
    space = data.draw(spaces)
    genome = [data.draw(st.integers(0, int(count) - 1)) for count in space.gene_counts]
    architecture = space.decode(genome)
    assert space.decode(space.encode(architecture)) == architecture
    assert space.decode(space.canonical(genome)[0]) == architecture.shifted()


@pytest.mark.parametrize("kind", ["identity", "deep", "shared"])
def test_positions_that_an_architecture_lacks_are_identities(tiny_spaces, all_architectures, kind):
    space = tiny_spaces[kind]
    for architecture in all_architectures(space):
        assert space.encode(architecture.compact()).tolist() == space.encode(architecture).tolist()


def test_lists_of_a_space_become_tuples_so_that_equal_spaces_are_one_key():
    lists, tuples = (SearchSpace(kind((4, 8)), 32, 2, kind((2, 4)), 96, 64, kind((0.5, 1.0))) for kind in (list, tuple))
    assert lists == tuples
    assert hash(lists) == hash(tuples)


def test_net_id_holds_the_choices_then_two_zeros_then_the_widths(tiny_spaces):
    space = tiny_spaces["identity"]
    architecture = Architecture(8, 32, (IDENTITY, Block(4, 48, 64)))
    assert space.to_net_id(architecture) == "1 2 1 0 0 1 0 0 0 1"
    assert space.from_net_id([1, 2, 1, 0, 0, 1, 1, 1, 0, 1]) == architecture


def test_widths_are_pythons_rounding_of_the_ratios():
    space = SearchSpace((16,), 25, 1, (1,), 30, 7, (0.5, 0.9, 1.0))
    # 12.5, 22.5 and 3.5: halves go to the even neighbour.
    assert (space.embed_dims, space.qkv_dims, space.mlp_dims) == ((12, 22, 25), (15, 27, 30), (4, 6, 7))


# Random members


@given(data=st.data(), seed=st.integers(0, 2**32))
def test_sample_is_reproducible_and_a_member_with_identities_last(spaces, data, seed):
    space = data.draw(spaces)
    one, other = (space.sample(np.random.default_rng(seed)) for _ in range(2))
    assert one == other == one.shifted()
    assert one.depth >= 1
    space.encode(one)


@given(data=st.data(), probability=st.floats(0, 1))
def test_sampled_genomes_are_canonical_and_never_without_a_block(spaces, data, probability):
    space = data.draw(spaces)
    genomes = space.sample_genomes(np.random.default_rng(0), 50, probability)
    assert np.array_equal(genomes, space.canonical(genomes))
    assert space.columns(genomes).active.any(axis=1).all()
    assert (genomes >= 0).all()
    assert (genomes < space.gene_counts).all()


@pytest.mark.parametrize("shared_blocks", [False, True])
def test_identity_probability_is_that_of_each_position(small_space, shared_blocks):
    space = replace(small_space, shared_blocks=shared_blocks)

    def mean_depth(probability):
        genomes = space.sample_genomes(np.random.default_rng(0), 20_000, probability)
        return space.columns(genomes).active.sum(axis=1).mean()

    assert mean_depth(0.0) == 3
    # Where all three are identities, one becomes a block.
    assert mean_depth(0.4) == pytest.approx(3 * 0.6 + 0.4**3, abs=0.03)
    assert mean_depth(1.0) == 1


def test_without_a_probability_an_identity_is_as_likely_as_a_head_count(small_space):
    genomes = small_space.sample_genomes(np.random.default_rng(0), 20_000)
    depth = small_space.columns(genomes).active.sum(axis=1).mean()
    assert depth == pytest.approx(3 * 2 / 3 + (1 / 3) ** 3, abs=0.03)


def test_samples_reach_every_network_of_the_space(tiny_space, all_architectures):
    genomes = tiny_space.sample_genomes(np.random.default_rng(0), 100_000)
    assert len(np.unique(genomes, axis=0)) == len(all_architectures(tiny_space))


# Mistakes


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"patch_sizes": ()}, ["patch_sizes", "[]"]),
        ({"patch_sizes": (8, 4)}, ["patch_sizes", "[8, 4]"]),
        ({"patch_sizes": (0, 4)}, ["patch_sizes", "[0, 4]"]),
        ({"heads": (2, 2)}, ["heads", "[2, 2]"]),
        ({"heads": (-2,)}, ["heads", "[-2]"]),
        ({"heads": (2, 5)}, ["heads", "found 5", "attention dim 16", "qkv_dim 96 at width 0.5"]),
        ({"heads": (2, 32), "qkv_dim": 192}, ["heads", "found 32", "embedding dim 16"]),
        ({"widths": (1.0, 0.5)}, ["widths", "[1.0, 0.5]"]),
        ({"widths": (0.5, 1.5)}, ["widths", "1.5"]),
        ({"widths": (0.5, float("nan"))}, ["widths", "nan"]),
        ({"widths": (0.5, 0.51, 1.0)}, ["widths", "[0.5, 0.51, 1.0]", "embed_dim", "[16, 16, 32]"]),
        ({"widths": (0.01, 1.0)}, ["widths", "0.01", "embed_dim", "[0, 32]"]),
        ({"embed_dim": 0}, ["embed_dim", "found 0"]),
        ({"depth": -1}, ["depth", "found -1"]),
        ({"qkv_dim": 0}, ["qkv_dim", "found 0"]),
        ({"mlp_dim": 0}, ["mlp_dim", "found 0"]),
        ({"classifier": "both"}, ["classifier", "'both'", "token"]),
    ],
)
def test_a_space_with_a_member_that_cannot_be_built_names_field_and_value(small_space, changes, fragments):
    with pytest.raises(UserError) as error:
        replace(small_space, **changes)
    assert str(error.value).startswith(f"{fragments[0]}: ")
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize(
    ("net_id", "fragments"),
    [
        ("1 2 x", ["'1 2 x'", "integers"]),
        ("1 2 1", ["3 integers", "2 positions", "needs 10"]),
        ("1 2 1 0 1 1 0 0 0 1", ["entries 4 and 5", "[0, 1]", "must be 0"]),
        ("1 3 1 0 0 1 0 0 0 1", ["gene 1", "is 3", "0 to 2"]),
        ("1 2 1 0 0 1 0 0 0 -1", ["is -1", "0 to 1"]),
        (5, ["net_id", "5"]),
        (None, ["net_id", "None"]),
        ([1, 2, None, 0, 0, 1, 0, 0, 0, 1], ["net_id", "None"]),
        ([1, 2, 1.7, 0, 0, 1, 0, 0, 0, 1], ["net_id", "1.7"]),
    ],
)
def test_a_wrong_net_id_is_refused_by_entry_and_value(tiny_spaces, net_id, fragments):
    with pytest.raises(UserError) as error:
        tiny_spaces["identity"].from_net_id(net_id)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_net_ids_belong_to_per_block_spaces(tiny_spaces):
    space = tiny_spaces["shared"]
    with pytest.raises(UserError, match="shares its blocks"):
        space.from_net_id("0 0 0")
    with pytest.raises(UserError, match="shares its blocks"):
        space.to_net_id(largest(space))


@pytest.mark.parametrize(
    ("space", "architecture", "fragment"),
    [
        ("identity", "p16-e32-token-h2q96m64x2", "patch size 16"),
        ("identity", "p8-e30-token-h2q96m64x2", "embedding dim 30"),
        ("identity", "p8-e32-token-h1q96m64x2", "head count 1"),
        ("identity", "p8-e32-token-h2q24m64x2", "qkv dim 24"),
        ("identity", "p8-e32-token-h2q96m63x2", "MLP dim 63"),
        ("identity", "p8-e32-mean-h2q96m64x2", "classifier is token"),
        ("identity", "p8-e32-token-h2q96m64x3", "3 positions"),
        ("no identity", "p8-e32-token-h2q96m64-id", "has none"),
        ("no identity", "p8-e32-token-h2q96m64", "1 positions"),
        ("shared", "p8-e32-token-h2q96m64-id-h2q96m64", "identities last"),
        ("shared", "p8-e32-token-h2q96m64x2-h4q96m64", "repeats one block"),
    ],
)
def test_an_architecture_outside_the_space_is_refused_by_what_lies_outside(tiny_spaces, space, architecture, fragment):
    with pytest.raises(UserError, match=fragment):
        tiny_spaces[space].encode(Architecture.parse(architecture))


@pytest.mark.parametrize(
    ("genome", "fragment"),
    [([0] * 7, "7 genes.*8"), ([2] + [0] * 7, "gene 0 .*2.*0 to 1"), ([0] * 7 + [-1], "gene 7 .*-1.*0 to 1")],
)
def test_a_genome_outside_the_space_is_refused_by_gene_and_value(tiny_spaces, genome, fragment):
    with pytest.raises(UserError, match=fragment):
        tiny_spaces["identity"].decode(genome)

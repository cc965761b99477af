"""Architectures, search spaces and the codec between genomes and architectures."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vitas import Architecture, Block, SearchSpace
from vitas.architecture import IDENTITY
from vitas.catalog import Found, read_found, write_found
from vitas.errors import UserError

blocks = st.just(IDENTITY) | st.builds(
    lambda heads, share, mlp: Block(heads, 3 * heads * share, mlp),
    st.integers(1, 20),
    st.integers(1, 100),
    st.integers(1, 4000),
)
architectures = st.builds(
    Architecture,
    st.integers(1, 64),
    st.integers(20, 2000),
    st.lists(blocks, max_size=8).map(tuple),
    st.sampled_from(["token", "mean"]),
)


# Forms of an architecture


@given(architectures)
def test_text_is_one_word_and_parses_back_to_an_equal_architecture(architecture):
    text = str(architecture)
    assert len(text.split()) == 1
    assert "/" not in text
    assert Architecture.parse(text) == architecture


@given(architectures)
def test_yaml_form_loads_back_to_an_equal_architecture(architecture):
    assert Architecture.from_dict(yaml.safe_load(yaml.safe_dump(architecture.to_dict()))) == architecture


@given(architectures, architectures)
def test_text_is_canonical(one, other):
    assert (str(one) == str(other)) == (one == other)


def test_text_of_a_known_architecture():
    architecture = Architecture(16, 230, (Block(3, 432, 720),) * 2 + (IDENTITY,) * 2 + (Block(3, 432, 720),))
    assert str(architecture) == "p16-e230-token-h3q432m720x2-idx2-h3q432m720"


def test_yaml_form_takes_repeat_and_defaults_to_the_class_token():
    block = {"heads": 3, "qkv_dim": 432, "mlp_dim": 720, "repeat": 12}
    architecture = Architecture.from_dict({"patch_size": 16, "embed_dim": 230, "blocks": [block]})
    assert architecture == Architecture(16, 230, (Block(3, 432, 720),) * 12, "token")


@given(architectures)
def test_shifted_keeps_the_network_and_moves_identities_last(architecture):
    shifted = architecture.shifted()
    assert shifted.active_blocks == architecture.active_blocks == shifted.blocks[: shifted.depth]
    assert len(shifted.blocks) == len(architecture.blocks)
    assert shifted.shifted() == shifted


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


def test_largest_is_a_member_and_the_dearest_one(tiny_space, all_architectures):
    members = all_architectures(tiny_space)
    assert tiny_space.largest in members
    assert tiny_space.largest.macs(16, 10) == max(member.macs(16, 10) for member in members)


@given(data=st.data())
def test_random_genomes_of_random_spaces_survive_the_codec(spaces, data):
    space = data.draw(spaces)
    genome = [data.draw(st.integers(0, int(count) - 1)) for count in space.gene_counts]
    architecture = space.decode(genome)
    assert space.decode(space.encode(architecture)) == architecture
    assert space.decode(space.canonical(genome)[0]) == architecture.shifted()


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
    ("build", "fragments"),
    [
        (lambda: Block(5, 96, 64), ["qkv_dim 96", "5 heads", "multiple of 15"]),
        (lambda: Block(0, 96, 64), ["heads=0", "positive"]),
        (lambda: Block(2, 96, -1), ["mlp_dim=-1", "positive"]),
        (lambda: Architecture(0, 32, ()), ["patch size 0"]),
        (lambda: Architecture(4, 0, ()), ["embedding dim 0"]),
        (lambda: Architecture(4, 32, (), "cls"), ["classifier", "'cls'", "token", "mean"]),
        (lambda: Architecture(4, 2, (Block(4, 96, 64),)), ["4 heads", "embedding dim 2"]),
    ],
)
def test_an_architecture_that_cannot_be_built_names_field_and_value(build, fragments):
    with pytest.raises(UserError) as error:
        build()
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "''"),
        ("vitas_a", "'vitas_a'"),
        ("p16-e230-cls-h3q432m720", "'p16-e230-cls-h3q432m720'"),
        ("p16-e230-token-h3q432", "'h3q432' is no block"),
        ("p16-e230-token-h3q432m720x-id", "'h3q432m720x' is no block"),
        ("p16-e230-token-", "'' is no block"),
        ("p16-e230-token-h3q430m720", "qkv_dim 430"),
        ("p0-e230-token-id", "patch size 0"),
        ("p16-e230-token-h3q432m720x0", "x0"),
        ("p16-e230-token-idx0", "idx0"),
    ],
)
def test_a_text_that_does_not_parse_is_refused_by_its_wrong_part(text, fragment):
    with pytest.raises(UserError) as error:
        Architecture.parse(text)
    assert fragment in str(error.value)


@given(st.text() | st.from_regex(r"p\d{1,2}-e\d{1,3}-(token|mean)(-[hqmidx\d]{0,9}){0,3}", fullmatch=True))
def test_any_text_parses_or_is_refused(text):
    try:
        architecture = Architecture.parse(text)
    except UserError:
        return
    assert Architecture.parse(str(architecture)) == architecture


BLOCK = {"heads": 2, "qkv_dim": 96, "mlp_dim": 64}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"patch_size": "4"}, ["architecture.patch_size", "'4'"]),
        ({"patch_size": True}, ["architecture.patch_size", "True"]),
        ({"embed_dim": 32.0}, ["architecture.embed_dim", "32.0"]),
        ({"classifier": "both"}, ["classifier", "'both'"]),
        ({"classifier": None}, ["classifier", "None"]),
        ({"depth": 3}, ["'depth'", "unknown key"]),
        ({1: 2, "depth": 3}, ["unknown key", "1"]),
        ({"blocks": "identity"}, ["architecture.blocks", "'identity'"]),
        ({"blocks": ["id"]}, ["architecture.blocks[0]", "'id'"]),
        ({"blocks": ["identity", {"heads": 2}]}, ["architecture.blocks[1]", "{'heads': 2}"]),
        ({"blocks": [BLOCK | {"heads": "2"}]}, ["architecture.blocks[0].heads", "'2'"]),
        ({"blocks": [BLOCK | {"repeat": 1.5}]}, ["architecture.blocks[0].repeat", "1.5"]),
        ({"blocks": [BLOCK | {"repeat": 0}]}, ["architecture.blocks[0].repeat", "0"]),
        ({"blocks": [BLOCK | {"repeat": -2}]}, ["architecture.blocks[0].repeat", "-2"]),
        ({"blocks": [BLOCK | {"heads": 5}]}, ["qkv_dim 96", "5 heads"]),
    ],
)
def test_a_yaml_form_that_is_wrong_is_refused_by_key_and_value(changes, fragments):
    with pytest.raises(UserError) as error:
        Architecture.from_dict({"patch_size": 4, "embed_dim": 32, "blocks": []} | changes)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize("key", ["patch_size", "embed_dim", "blocks"])
def test_a_yaml_form_without_a_needed_key_names_it(key):
    data = {"patch_size": 4, "embed_dim": 32, "blocks": []}
    del data[key]
    with pytest.raises(UserError, match=f"no key '{key}'"):
        Architecture.from_dict(data)


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
        space.to_net_id(space.largest)


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


# architectures.yaml


def test_found_architectures_read_back_in_order(tmp_path, small_space):
    rng = np.random.default_rng(0)
    entries = [Found(f"subnet_{i}", small_space.sample(rng), {"top1": 90.0 - i}) for i in range(1, 4)]
    write_found(tmp_path / "architectures.yaml", entries)
    found = read_found(tmp_path / "architectures.yaml")
    assert list(found.items()) == [(entry.name, entry.architecture) for entry in entries]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("[]", ["list of architectures"]),
        ("architectures: {a: 1}", ["list of architectures"]),
        ("architectures: [{name: a}]", ["entry 0"]),
        ("architectures: [{name: a, architecture: {patch_size: 4}}]", [": a: ", "embed_dim"]),
    ],
)
def test_a_file_of_another_form_is_refused_by_path_and_entry(tmp_path, text, fragments):
    path = tmp_path / "architectures.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_found(path)
    assert all(fragment in str(error.value) for fragment in [str(path), *fragments]), error.value

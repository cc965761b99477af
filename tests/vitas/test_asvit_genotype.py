"""Genotypes and their space: forms, costs and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitas import Genotype, GenotypeSpace
from vitas.asvit.genotype import Stage
from vitas.errors import UserError

# As-ViT Large and its seed topology, as published.
LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"
SEED_TOPOLOGY = "8,2,3|4,1,2|4,1,4|4,1,6|32"
SPACE = GenotypeSpace()


@st.composite
def genotypes(draw) -> Genotype:
    kernels = [draw(st.integers(4 if i == 0 else 2, 9)) for i in range(4)]
    stages = tuple(Stage(k, draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(1, 9))) for k in kernels)
    return Genotype(stages, draw(st.sampled_from([8, 16, 24, 64])), draw(st.integers(8, 300)))


def test_the_published_genotypes_mean_what_their_authors_say():
    large = Genotype.parse(LARGE)
    assert large.stages == (Stage(8, 2, 3, 5), Stage(4, 1, 2, 2), Stage(4, 1, 4, 5), Stage(4, 1, 6, 2))
    assert (large.heads, large.hidden_dim, large.depth) == (32, 180, 14)
    assert large.stage_heads == (4, 8, 16, 32)
    assert large.dims == (180, 360, 720, 1024)
    # Whole dims for each head: 360 / 8 and 720 / 16 are 45.
    assert large.attention_dims == (180, 360, 720, 1024)
    assert large.resolutions(224) == (56, 28, 14, 7)
    assert large.topology == SEED_TOPOLOGY
    # Published: 88.1 M parameters and 22.6 G FLOPs, of the authors' own training code.
    assert large.parameters() == pytest.approx(88.1e6, rel=0.01)
    assert large.macs() == pytest.approx(22.6e9, rel=0.02)


def test_a_topology_means_one_layer_a_stage_and_a_hidden_dim_of_32():
    topology = Genotype.parse(SEED_TOPOLOGY)
    assert str(topology) == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
    assert topology.topology == SEED_TOPOLOGY


@pytest.mark.parametrize("text", [LARGE, "4,2,2,1|2,1,2,2|3,1,3,1|2,1,2,1|16,16"])
def test_the_canonical_text_is_the_released_one(text):
    assert str(Genotype.parse(f" {text}\n")) == text


@given(genotypes())
def test_every_form_parses_back_to_an_equal_genotype(genotype):
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    topology = Genotype.parse(genotype.topology)
    assert topology.topology == genotype.topology
    assert (topology.hidden_dim, topology.depth) == (32, 4)


def test_the_yaml_form_may_leave_out_what_a_topology_does():
    stages = [{"kernel": k, "split": s, "expansion": e} for k, s, e in ((8, 2, 3), (4, 1, 2), (4, 1, 4), (4, 1, 6))]
    assert Genotype.from_dict({"stages": stages, "heads": 32}) == Genotype.parse(SEED_TOPOLOGY)


def test_heads_that_do_not_divide_the_dims_get_whole_shares():
    assert Genotype.parse("4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|32,37").attention_dims == (36, 72, 144, 288)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8,2,3,5|4,1,2,2|4,1,4,5|32,180", "found 4 parts; it must have 5"),
        ("vitas_c", "found 1 parts; it must have 5"),
        ("8,2,3,5|4,x,2,2|4,1,4,5|4,1,6,2|32,180", "split in stage 2 is 'x'; it must be a whole number"),
        ("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6.5,2|32,180", "expansion in stage 4 is '6.5'"),
        ("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,-180", "hidden dim in the last part is '-180'"),
        ("8,2,3,5|4,1|4,1,4,5|4,1,6,2|32,180", "stage 2 is '4,1'; it must hold kernel, split, expansion"),
        ("8,2,3,5|4,1,2,2|4,1,4,5,9|4,1,6,2|32,180", "stage 3 is '4,1,4,5,9'"),
        ("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180,1", "the last part is '32,180,1'; it must hold heads"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,180", "it must have the layers of every stage and the hidden dim, or none"),
        ("8,2,3,5|4,1,2|4,1,4,5|4,1,6,2|32,180", "it must have the layers of every stage"),
        ("3,2,3|4,1,2|4,1,4|4,1,6|32", "kernel of stage 1 is 3; it must be at least 4"),
        ("4,2,3|4,1,2|1,1,4|4,1,6|32", "kernel of stage 3 is 1; it must be at least 2"),
        ("8,2,3,5|4,0,2,2|4,1,4,5|4,1,6,2|32,180", "split of stage 2 is 0; it must be at least 1"),
        ("8,2,3,5|4,1,2,2|4,1,4,0|4,1,6,2|32,180", "layers of stage 3 is 0"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|12", "heads are 12; .* must be a multiple of 8"),
        ("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|64,7", "stage 1 has 8 heads, more than its 7 dims"),
    ],
)
def test_a_text_that_does_not_parse_is_refused_where_it_goes_wrong(text, message):
    with pytest.raises(UserError, match=message):
        Genotype.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "genotype: unknown key 'depth'"),
        ({"heads": None}, r"genotype.heads is None; it must be an integer"),
        ({"stages": "8,2,3"}, "genotype.stages is '8,2,3'; it must be a list"),
        ({"stages": [[8, 2, 3]]}, r"genotype.stages\[0\] is \[8, 2, 3\]; it must hold kernel, split"),
        ({"stages": [{"kernel": 8, "split": 2}]}, r"genotype.stages\[0\]: no key 'expansion'"),
        ({"stages": [{"kernel": 8, "split": 2, "expansion": True}]}, r"stages\[0\].expansion is True"),
        ({"stages": []}, "has 4 stages; found 0"),
    ],
)
def test_a_yaml_form_that_is_none_is_refused_by_key(change, message):
    with pytest.raises(UserError, match=message):
        Genotype.from_dict(Genotype.parse(LARGE).to_dict() | change)


@pytest.mark.parametrize(
    ("splits", "image_size", "nearest"),
    [
        ((8, 1, 1, 1), 40, "multiples of 32; the nearest are 32 and 64"),
        ((8, 4, 2, 1), 16, "multiples of 32; the nearest is 32"),
        ((7, 1, 1, 1), 256, "multiples of 224; the nearest are 224 and 448"),
        ((1, 1, 1, 3), 64, "multiples of 96; the nearest is 96"),
        ((1, 1, 1, 1), 0, "the nearest is 32"),
    ],
)
def test_an_image_size_that_the_windows_do_not_divide_is_refused_with_the_nearest(splits, image_size, nearest):
    genotype = Genotype(tuple(Stage(4, split, 2) for split in splits), 16)
    for refused in (genotype.check_image_size, genotype.macs, genotype.resolutions):
        with pytest.raises(UserError, match=f"image size {image_size} does not fit .*{nearest}"):
            refused(image_size)


@given(genotypes(), st.integers(1, 500))
def test_image_sizes_fit_exactly_if_stages_halve_and_windows_tile(genotype, image_size):
    tokens = [image_size / (4 * 2**i) for i in range(4)]
    fits = all(t % 1 == 0 and t % stage.split == 0 for t, stage in zip(tokens, genotype.stages, strict=True))
    if fits:
        assert genotype.resolutions(image_size) == tuple(tokens)
    else:
        with pytest.raises(UserError, match="does not fit"):
            genotype.check_image_size(image_size)


@pytest.mark.parametrize("convention", ["released", "flops"])
def test_macs_of_a_genotype_have_one_convention(convention):
    with pytest.raises(UserError, match=f"convention: found '{convention}'; it must be true"):
        Genotype.parse(LARGE).macs(convention=convention)


# The space


def test_the_default_space_is_the_published_one():
    assert SPACE.size == 5 * 3**3 * 3 * 3 * 2 * 5**4 * 3
    assert SPACE.choices["kernel 1"] == (4, 5, 6, 7, 8)
    assert SPACE.choices["split 3"] == (1, 2)
    assert SPACE.choices["heads"] == (16, 32, 64)
    SPACE.check_image_size(224)
    with pytest.raises(UserError, match=r"image size 48 does not fit this space.* 32 and 64"):
        SPACE.check_image_size(48)


def test_genomes_and_topologies_are_one_to_one():
    rng = np.random.default_rng(0)
    genomes = SPACE.sample_genomes(rng, 300)
    assert genomes.shape == (300, 13)
    for genome in genomes:
        genotype = SPACE.decode(genome)
        assert Genotype.parse(genotype.topology) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), genome)
    # Every value of every gene is drawn.
    assert [len(set(column)) for column in genomes.T] == list(SPACE.gene_counts)
    assert SPACE.sample(np.random.default_rng(0)) == SPACE.decode(genomes[0])


def test_a_grown_genotype_has_its_topologys_genome():
    np.testing.assert_array_equal(SPACE.encode(Genotype.parse(LARGE)), SPACE.encode(Genotype.parse(SEED_TOPOLOGY)))


def test_genomes_and_genotypes_outside_the_space_are_refused():
    with pytest.raises(UserError, match="genome has 2 genes; this space's genomes have 13"):
        SPACE.decode([0, 0])
    with pytest.raises(UserError, match="the gene split 3 of the genome is 2; it must be from 0 to 1"):
        SPACE.decode([0] * 7 + [2] + [0] * 5)
    with pytest.raises(UserError, match="expansion 2 is 7; in this space it is one of 2, 3, 4, 5, 6"):
        SPACE.encode(Genotype.parse(SEED_TOPOLOGY.replace("4,1,2", "4,1,7")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": (16, 20)}, "heads are 20"),
        ({"heads": ()}, r"heads: found \[\]"),
        ({"splits": ((2, 2), (1,), (1,), (1,))}, r"splits: found \[2, 2\]; it must be a list of different numbers"),
        ({"kernels": ((4,), (2,), (2,))}, "kernels: found 3 lists; there are 4 stages"),
        ({"kernels": ((4, 5, 3), (2,), (2,), (2,))}, "kernel of stage 1 is 3"),
    ],
)
def test_a_space_with_a_member_that_cannot_be_built_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        GenotypeSpace(**settings)

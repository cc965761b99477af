"""Architectures by name: the published ones, and those that a search found."""

import numpy as np
import pytest
import yaml

from vitas import Architecture, Genotype, zoo
from vitas.catalog import Found, find_architecture, find_architectures, read_found, write_found
from vitas.errors import UserError

# GMACs and millions of parameters, as published (arXiv 2202.11921).
ASVIT = {"asvit_small": (5.3, 29.0), "asvit_base": (8.9, 52.6), "asvit_large": (22.6, 88.1)}

# The zoo


def test_the_zoo_holds_the_published_networks():
    assert list(zoo()) == ["vitas_a", "vitas_b", "vitas_c", "vitas_e", "vitas_f", *ASVIT, "deit_tiny", "deit_small"]
    zoo().clear()
    assert len(zoo()) == 10


@pytest.mark.parametrize("name", ASVIT)
def test_asvits_networks_cost_what_is_published(name):
    """To the rounding, where position embeddings of all tokens of the first stage are counted too: ours has none."""
    gmacs, millions = ASVIT[name]
    genotype = zoo()[name]
    assert genotype.parameters() / 1e6 + 56**2 * genotype.hidden_dim / 1e6 == pytest.approx(millions, abs=0.06)
    assert genotype.macs() / 1e9 == pytest.approx(gmacs, rel=0.04)


# Every form of a reference

TEXT, OTHER = "p8-e32-token-h2q96m64", "p8-e32-token-h4q48m32x2-id"
GENOTYPE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"


@pytest.fixture
def found_file(tmp_path):
    path = tmp_path / "architectures.yaml"
    write_found(path, [Found(f"subnet_{i}", Architecture.parse(text), {}) for i, text in enumerate((OTHER, TEXT), 1)])
    return path


@pytest.mark.parametrize("form", [Architecture.parse, str, lambda text: Architecture.parse(text).to_dict()])
def test_an_architecture_its_text_and_its_mapping_mean_itself(form):
    assert find_architecture(form(TEXT)) == Architecture.parse(TEXT)


@pytest.mark.parametrize("form", [Genotype.parse, str, lambda text: Genotype.parse(text).to_dict()])
def test_a_genotype_its_text_and_its_mapping_mean_itself(form):
    assert find_architecture(form(GENOTYPE)) == Genotype.parse(GENOTYPE)


def test_a_file_of_several_means_all_and_one_by_its_name(found_file):
    assert list(find_architectures(str(found_file)).items()) == [
        ("subnet_1", Architecture.parse(OTHER)),
        ("subnet_2", Architecture.parse(TEXT)),
    ]
    assert find_architecture(f"{found_file}:subnet_2") == Architecture.parse(TEXT)
    with pytest.raises(UserError, match="holds subnet_1, subnet_2; name one of them"):
        find_architecture(str(found_file))
    with pytest.raises(UserError, match=r"no 'subnet_3'; it holds subnet_1, subnet_2"):
        find_architecture(f"{found_file}:subnet_3")


def test_a_file_of_one_architecture_means_it(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(Architecture.parse(TEXT).to_dict()))
    assert find_architecture(str(path)) == Architecture.parse(TEXT)


def test_what_a_search_found_goes_before_the_zoo_and_the_first_is_the_best(found_file):
    listed = read_found(found_file) | {"deit_tiny": Architecture.parse(TEXT)}
    assert find_architecture("best", listed) == Architecture.parse(OTHER)
    assert find_architecture("subnet_2", listed) == Architecture.parse(TEXT)
    assert find_architecture("deit_tiny", listed) == Architecture.parse(TEXT)
    assert find_architecture("deit_tiny") == zoo()["deit_tiny"]
    with pytest.raises(UserError, match="did you mean subnet_"):
        find_architecture("subnet_12", listed)


def test_a_net_id_means_an_architecture_of_its_space_alone(tiny_spaces):
    space = tiny_spaces["identity"]
    net_id = {"net_id": "1 2 1 0 0 1 0 0 0 1"}
    assert find_architecture(net_id, space=space) == space.from_net_id(net_id["net_id"])
    with pytest.raises(UserError, match=r"model\.space: is missing"):
        find_architecture(net_id)


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

"""Architectures: their forms, what one costs, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import largest
from tests.vitas.conftest import logits_of_all_tokens
from vitas import Architecture, Block, StagedTransformer, VisionTransformer, create_model, zoo
from vitas.architecture import IDENTITY
from vitas.errors import UserError

IMAGE_SIZE = 16

PUBLISHED = {
    "vitas_a": (858_652_480, 3_679_478),
    "vitas_b": (990_624_768, 4_400_248),
    "vitas_c": (1_303_042_496, 6_048_414),
    "vitas_e": (2_706_797_632, 12_550_598),
    "vitas_f": (4_930_994_656, 22_540_277),
}

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


def test_the_family_is_in_every_form_and_decides_class_token_scale_and_costs():
    ours, theirs = Architecture.parse("p8-e32-mean-h2q48m64"), Architecture.parse("vit8-e32-mean-h2q48m64")
    assert (ours.family, theirs.family) == ("vitas", "vit")
    assert (ours.prefix_tokens, theirs.prefix_tokens) == (1, 0)
    assert theirs.to_dict()["family"] == "vit"
    assert "family" not in ours.to_dict()
    assert ours.attention_scale(ours.blocks[0]) == 16**-0.5
    assert theirs.attention_scale(theirs.blocks[0]) == 8**-0.5
    # 16 patches: without a class token, a seventeenth of the tokens' multiply-adds are saved, and 2 x 32 parameters.
    assert theirs.macs(32, 10) < ours.macs(32, 10)
    assert theirs.macs(32, 10, "released") == ours.macs(32, 10, "released")
    assert ours.parameters(32, 10) - theirs.parameters(32, 10) == 64
    with pytest.raises(UserError, match="family is 'deit'; it must be vitas or vit"):
        Architecture.from_dict(theirs.to_dict() | {"family": "deit"})


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


@given(architectures)
def test_compact_keeps_the_network_and_drops_identities(architecture):
    compact = architecture.compact()
    assert compact.blocks == compact.active_blocks == architecture.active_blocks
    assert compact.costs(224, 10) == architecture.costs(224, 10)


# What one costs


@pytest.mark.parametrize(("name", "numbers"), PUBLISHED.items())
def test_published_macs_and_parameters_are_exact(name, numbers):
    architecture = zoo()[name]
    assert (architecture.macs(convention="released"), architecture.parameters()) == numbers


def test_deit_has_the_parameters_and_macs_it_is_known_by():
    tiny, small = zoo()["deit_tiny"], zoo()["deit_small"]
    assert (tiny.parameters(), small.parameters()) == (5_717_416, 22_050_664)
    assert (round(tiny.macs() / 1e9, 1), round(small.macs() / 1e9, 1)) == (1.3, 4.6)


def counted_macs(network: VisionTransformer | StagedTransformer) -> float:
    forward = partial(logits_of_all_tokens, network) if isinstance(network, VisionTransformer) else network
    images = torch.zeros(1, 3, network.image_size, network.image_size)
    # The mathematical form of attention is two matrix products, which the counter knows on every device.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(images)
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
    architecture = largest(small_space)
    assert {type(architecture.macs()), type(architecture.parameters())} == {int}


def test_costs_are_the_counts_by_name():
    architecture = zoo()["vitas_a"]
    assert architecture.costs() == {
        "macs": architecture.macs(),
        "macs_released": PUBLISHED["vitas_a"][0],
        "parameters": PUBLISHED["vitas_a"][1],
    }


def test_an_unknown_convention_is_refused(small_space):
    with pytest.raises(ValueError, match=r"'flops'.*true, released"):
        largest(small_space).macs(convention="flops")


# Mistakes


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
        ("p16-e230-token-h3q432", "found 'h3q432'; a block"),
        ("p16-e230-token-h3q432m720x-id", "found 'h3q432m720x'; a block"),
        ("p16-e230-token-", "found ''; a block"),
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

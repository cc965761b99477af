"""Descriptions of networks from strangers' files: each is read or refused, in bounded time and memory."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz import bounded, changed_data, changed_text, fuzzed, read_or_refused, scalars, values, yaml_like
from vitas import Architecture, Genotype
from vitas.architecture import MAX_BLOCKS
from vitas.catalog import (
    SPACE_ABE,
    SPACE_F,
    Found,
    find_architecture,
    find_architectures,
    parse_architecture,
    read_found,
    write_found,
    zoo,
)
from vitas.elastic_space import Shares, read_elastic_space
from vitas.errors import UserError

TEXTS = [str(architecture) for architecture in zoo().values()] + [
    "vit16-e384-token-h6q1152m1536x12",
    "p16-e230-mean-h3q432m720-idx4",
    "8,2,3|4,1,2|4,1,4|4,1,6|32",
]
FORMS = [zoo()[name].to_dict() for name in ("vitas_c", "vitas_a", "asvit_base")]
FORMS[0]["blocks"] = [FORMS[0]["blocks"][0] | {"repeat": 12}, "identity"]
NET_IDS = [SPACE_ABE.to_net_id(zoo()["vitas_a"]), SPACE_F.to_net_id(zoo()["vitas_f"])]

blocks = st.builds(
    "{}{}{}".format,
    st.sampled_from(("h3q432m720", "id", "h1q3m1", "h0q0m0", "h2q9m1", "h٣q9m1", "h3q432m720 ", "\nid", "")),
    st.sampled_from(("", "", "x", "x1", "x0", "x-1", "x99999999999", "x٣")) | st.integers(0, 600).map("x{}".format),
    st.sampled_from(("", "", "", "\n", "\x00", "-", "x2")),
)
architectures_by_grammar = st.builds(
    "{}{}-e{}-{}-{}".format,
    st.sampled_from(("p", "vit", "P", "", "-p")),
    st.sampled_from((16, 0, -1, "٣", 2**16, 2**16 + 1, "9" * 5000, "016", "1_6")),
    st.sampled_from((230, 1, 0, 2**16, 2**16 + 1, "9" * 5000, "")),
    st.sampled_from(("token", "mean", "token\n", "", "x")),
    st.lists(blocks, max_size=6).map("-".join),
)
numbers = st.sampled_from(
    (1, 2, 4, 8, 0, -1, " 2 ", "٣", "²", "", 2**16, 2**16 + 1, "9" * 5000, "1" * 10, "1_0", "2\n")
)
parts = st.lists(numbers, min_size=1, max_size=5).map(lambda found: ",".join(map(str, found)))
genotypes_by_grammar = st.lists(parts, min_size=3, max_size=6).map("|".join)


def use(architecture) -> None:
    """What is read must be whole: a text that says the same, and costs."""
    assert parse_architecture(str(architecture)) == architecture
    assert find_architecture(architecture.to_dict()) == architecture
    try:
        architecture.check_image_size(224)
    except UserError:
        return
    assert all(cost is None or cost > 0 for cost in architecture.costs().values())


@fuzzed()
@given(
    st.one_of(
        changed_text(TEXTS), changed_text(TEXTS), architectures_by_grammar, genotypes_by_grammar, scalars, st.text()
    )
)
def test_any_text_is_an_architecture_or_refused(text):
    for parse in (find_architecture, Architecture.parse, Genotype.parse):
        # What is no text stands in a journal or a checkpoint, not in a reference.
        if isinstance(text, str) or parse is not find_architecture:
            found = read_or_refused(lambda parse=parse: parse(text))
            if found is not None:
                with bounded():
                    use(found)


@fuzzed()
@given(
    st.one_of(
        changed_data(FORMS),
        changed_data([{"net_id": net_id} for net_id in NET_IDS]),
        changed_data([{"net_id": [int(entry) for entry in net_id.split()]} for net_id in NET_IDS]),
        changed_text(NET_IDS).map(lambda text: {"net_id": text}),
        st.dictionaries(st.sampled_from(("stages", "blocks", "net_id", "heads", "patch_size", "embed_dim")), values),
    ),
    st.sampled_from((None, SPACE_ABE, SPACE_F)),
)
def test_any_mapping_is_an_architecture_or_refused(data, space):
    if isinstance(data, dict):
        found = read_or_refused(lambda: find_architecture(data, space=space))
        if found is not None:
            with bounded():
                use(found)


@pytest.mark.parametrize(
    "read",
    [
        lambda: Architecture.parse("p16-e230-token-h3q432m720x100000000"),
        lambda: Architecture.parse("p16-e230-token-" + "-".join(["idx99"] * 1000)),
        lambda: Architecture.parse("p16-e230-token-h3q432m" + "9" * 5000),
        lambda: Architecture.parse("p16-e230-token" + "-id" * 10_000_000),
        lambda: Architecture.parse("p99999999-e230-token-id"),
        lambda: Genotype.parse("8,2,3,999999999|4,1,2,2|4,1,4,5|4,1,6,2|32,180"),
        lambda: Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|" + "8" * 5000),
        lambda: find_architecture(FORMS[0] | {"blocks": [FORMS[0]["blocks"][0] | {"repeat": 10**9}]}),
        lambda: find_architecture(FORMS[0] | {"embed_dim": 10**400}),
        lambda: find_architecture({"net_id": "1" * 5000}, space=SPACE_ABE),
        lambda: find_architecture({"net_id": [10**30] * 52}, space=SPACE_ABE),
        lambda: find_architecture({"net_id": "1 " * 10**7}, space=SPACE_ABE),
    ],
)
def test_a_description_that_asks_for_too_much_is_refused_at_once(read):
    start = time.process_time()
    with bounded(), pytest.raises(UserError) as error:
        read()
    assert time.process_time() - start < 2
    assert len(str(error.value)) < 3000


def test_as_many_blocks_as_there_may_be_are_read_in_every_form():
    deep = Architecture.parse(f"p16-e65536-token-h1q196608m65536x{MAX_BLOCKS}")
    use(deep)
    mixed = itertools.cycle(["h1q3m65535", "h1q3m65536"])
    use(Architecture.parse("-".join(["p16-e65536-token", *itertools.islice(mixed, MAX_BLOCKS)])))


# Files

FOUND = yaml.safe_dump(
    {
        "architectures": [
            {"name": f"subnet_{i}", "top1": 70.5, "text": str(zoo()[name]), "architecture": zoo()[name].to_dict()}
            for i, name in enumerate(("vitas_c", "asvit_small"))
        ]
    }
)
PRETRAINED = yaml.safe_dump(
    {
        "architecture": "vit16-e64-token-h2q192m128x3",
        "block_order": [2, 0, 1],
        "origin": {"source": "deit_tiny_patch16_224", "seed": 0, "mean": [0.5, 0.5, 0.5]},
    }
)


@fuzzed(0.5)
@given(content=yaml_like(FOUND, yaml.safe_dump(FORMS[0])))
def test_any_file_of_architectures_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "found.yaml"
    path.write_bytes(content)
    for found in (read_or_refused(lambda: read_found(path)), read_or_refused(lambda: find_architectures(str(path)))):
        with bounded():
            for architecture in (found or {}).values():
                use(architecture)


@fuzzed(0.5)
@given(content=yaml_like(PRETRAINED))
def test_any_file_of_a_pretrained_network_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "pretrained.yaml"
    path.write_bytes(content)
    space = read_or_refused(lambda: read_elastic_space(path, Shares()))
    if space is not None:
        with bounded():
            assert space.encode(space.network).size == space.gene_counts.size


def test_a_pretrained_network_without_blocks_is_refused(tmp_path: Path):
    path = tmp_path / "pretrained.yaml"
    path.write_text("architecture: vit16-e64-token\nblock_order: []\n")
    with pytest.raises(UserError, match="has no blocks"):
        read_elastic_space(path, Shares())


def test_what_is_written_is_read_again_though_it_is_long(tmp_path: Path):
    """The bounds are above what a search finds: a front of 500 networks of 16 different blocks."""
    path, network = tmp_path / "found.yaml", zoo()["vitas_a"]
    write_found(path, [Found(f"subnet_{i}", network, {"top1": 70.0, "macs": 858_652_480}) for i in range(500)])
    found = read_found(path)
    assert len(found) == 500
    assert set(found.values()) == {network}

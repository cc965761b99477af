"""YAML from strangers, of configurations in our keys and the released ones, and of the cluster: read or refused."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz import (
    bounded,
    changed_text,
    fuzzed,
    read_or_refused,
    scalars,
    yaml_bombs,
    yaml_by_grammar,
    yaml_like,
)
from vitas.config import load, require
from vitas.errors import UserError
from vitas.plain_data import MAX_BYTES, MAX_CONFIGURATION, MAX_DEPTH, MAX_VALUES, parse_yaml
from vitas.slurm.cluster import load_cluster, sbatch_options

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = (REPOSITORY / "configs" / "cluster.yaml").read_text()
OWN = [p.read_text() for p in sorted((REPOSITORY / "configs").rglob("*.yaml")) if p.name != "cluster.yaml"]
RELEASED = [(REPOSITORY / "tests" / "data" / "released_search.yaml").read_text()]
STAGES = ("search", "sample", "retrain", "test")
ALL_OF_CLUSTER = yaml.safe_dump(
    {
        "partition": "gpu",
        "nodes": 2,
        "gpus_per_node": 4,
        "gpu_type": "a100",
        "time": "1-00:00:00",
        "sbatch": {"exclusive": True},
    }
)


def plain(data: object) -> bool:
    if isinstance(data, dict):
        return all(isinstance(key, str) and plain(value) for key, value in data.items())
    if isinstance(data, list):
        return all(map(plain, data))
    return data is None or isinstance(data, bool | int | float | str)


@fuzzed(2)
@given(st.one_of(yaml_by_grammar, yaml_by_grammar, yaml_bombs(), changed_text(OWN + RELEASED), st.text()))
def test_any_yaml_is_plain_data_or_refused(text):
    data = read_or_refused(lambda: parse_yaml(text, "here"))
    with bounded():
        assert plain(data)


@fuzzed(0.5)
@given(
    content=yaml_like(*OWN),
    flagged=st.sampled_from(((), STAGES)),
    overrides=st.lists(
        st.builds("{}={}".format, st.sampled_from(("search.epochs", "model.space", "a..b", "=", "")), scalars),
        max_size=1,
    ),
)
def test_any_configuration_is_loaded_or_refused(tmp_path_factory, content, flagged, overrides):
    path = tmp_path_factory.getbasetemp() / "configuration.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: load(path, overrides, flagged))
    read_or_refused(lambda: require(path, overrides, ["model.sharing=ordinal", "search.method=supernet"]))


@fuzzed(0.5)
@given(content=yaml_like(*RELEASED), flagged=st.sampled_from(((), STAGES)))
def test_any_released_configuration_is_converted_or_refused(tmp_path_factory, content, flagged):
    path = tmp_path_factory.getbasetemp() / "released.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: load(path, stages=flagged))


@fuzzed()
@given(content=yaml_like(CLUSTER + ALL_OF_CLUSTER, ALL_OF_CLUSTER))
def test_any_file_of_a_cluster_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "cluster.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: sbatch_options(load_cluster(path)))


# Bombs


def doubling(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


BOMBS = {
    "aliases": (doubling(9, 9), "more than 200,000 values"),
    "merges": ("a0: &a {x: 1}\n" + "\n".join(f"a{i}: &a {{<<: [*a, *a, *a]}}" for i in range(40)), "anchor|values"),
    "depth": ("[" * 100_000, "inside each other"),
    "depth of aliases": (
        "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 600))]),
        "inside each other",
    ),
    "itself": ("a: &a [*a]", "a value that it is in itself"),
    "values": ("[" + "1," * (MAX_CONFIGURATION + 1) + "]", "more than 10,000 values"),
    "size": ("#" * (MAX_BYTES + 1), f"{MAX_BYTES:,}"),
    "digits": ("a: " + "9" * 5000, "a number of 5,000 characters"),
    "hexadecimal": ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(bomb):
    text, fault = BOMBS[bomb]
    start = time.process_time()
    with bounded(), pytest.raises(UserError, match=fault) as error:
        parse_yaml(text, "here", MAX_CONFIGURATION if bomb == "values" else MAX_VALUES)
    assert time.process_time() - start < 3
    assert len(str(error.value)) < 1000


def test_a_configuration_of_very_many_keys_is_refused_at_once(tmp_path):
    path = tmp_path / "configuration.yaml"
    for text in (
        "\n".join(f"serch{i}: 1" for i in range(20_000)),
        "retrain: {strategy: 1}\n" + "\n".join(f"search{i}: {{max_epoch: 1}}" for i in range(2000)),
    ):
        path.write_text(text)
        start = time.process_time()
        with bounded(), pytest.raises(UserError) as error:
            load(path)
        assert time.process_time() - start < 5
        assert len(str(error.value)) < 10_000


SPACE = {
    "patch_sizes": [16],
    "embed_dim": 64,
    "depth": 2,
    "heads": [1],
    "qkv_dim": 96,
    "mlp_dim": 64,
    "widths": [0.5, 1.0],
}
HUGE = {
    "depth": {"depth": 10**9},
    "dims": {"embed_dim": 10**15},
    "patches": {"patch_sizes": [10**15]},
    "choices": {"widths": [i / 5000 for i in range(1, 5001)]},
    # Allowed one by one, and together too many to be looked through.
    "cells": {
        "patch_sizes": [2**i for i in range(1, 6)],
        "depth": 256,
        "embed_dim": 65536,
        "qkv_dim": 196608,
        "mlp_dim": 65536,
        "widths": [i / 64 for i in range(1, 65)],
    },
    "sums": {
        "depth": 256,
        "embed_dim": 600,
        "qkv_dim": 180000,
        "mlp_dim": 60000,
        "widths": [1 / 60, 0.11, 0.23, 0.31, 0.57, 0.71, 1.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("which", HUGE)
def test_a_space_that_is_too_large_is_refused_at_once(make_config, which):
    path = make_config({"model.space": SPACE | HUGE[which], "model.image_size": 32})
    start = time.process_time()
    with bounded(), pytest.raises(UserError, match=r"model\.space|sample\.budget"):
        load(path, stages=("search", "sample"))
    assert time.process_time() - start < 8


def test_a_run_of_very_many_epochs_is_checked_at_once(make_config):
    path = make_config({"retrain.epochs": 10**12, "test.start": 1, "test.end": 10**12, "test.wait": True})
    with bounded():
        load(path)


@pytest.mark.parametrize("value", ['"a\\0b"', "a" * 5000, '"\\ud800"'])
def test_a_path_that_the_system_does_not_take_is_refused(make_config, value):
    with pytest.raises(UserError):
        load(make_config(), [f"search.data.data_dir={value}"], stages=("search",))


def test_ordinary_aliases_are_allowed_and_shared_nowhere():
    text = "search: &base {data: {workers: 2}}\nretrain: {<<: *base, epochs: 3}\ntest: [*base, *base]"
    data = parse_yaml(text, "here")
    assert data["retrain"] == {"data": {"workers": 2}, "epochs": 3}
    assert data["test"] == [data["search"]] * 2


def test_lists_and_mappings_may_lie_inside_each_other_but_not_without_end():
    for depth in (MAX_DEPTH - 1, MAX_DEPTH):
        text = "[" * depth + "1" + "]" * depth
        if depth < MAX_DEPTH:
            assert parse_yaml(text, "here")
        else:
            with pytest.raises(UserError, match=f"more than {MAX_DEPTH}"):
                parse_yaml(text, "here")


def test_all_configurations_of_the_repository_are_far_below_the_bounds():
    for text, count in itertools.product(OWN + RELEASED, (1000,)):
        parse_yaml(text, "here", count)

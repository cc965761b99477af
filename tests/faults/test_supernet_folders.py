"""Supernets from strangers: their descriptions are read or refused, before any memory is taken for their weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz import bounded, changed_data, changed_text, fuzzed, read_or_refused, values, yaml_like
from vitas import Architecture, Block, SearchSpace, SuperNet, load_supernet
from vitas.elastic_space import AnySpace, ElasticSpace
from vitas.errors import UserError
from vitas.supernet_folder import ABOUT, FRONT, Member, write_supernet_folder

SPACES = {
    "searched": SearchSpace((4, 8), 32, 2, (2, 4), 96, 64, (0.5, 1.0)),
    "pretrained": ElasticSpace(Architecture(8, 32, (Block(2, 96, 64),) * 2, family="vit"), (1, 0)),
}


def write(folder: Path, space: AnySpace) -> Path:
    largest = space.decode(space.extreme(np.zeros_like(space.gene_counts), True))
    members = [Member(largest, 50.0, largest.macs(16, 3), largest.parameters(16, 3))]
    names = ["a", "b", "c"]
    write_supernet_folder(folder, SuperNet(space, 3, 16), members, [0.5] * 3, [0.25] * 3, names, 1.0, {"epoch": 2})
    return folder


@pytest.mark.parametrize("kind", SPACES)
def test_any_description_of_a_supernet_is_read_or_refused(tmp_path, kind):
    folder = write(tmp_path / "supernet", SPACES[kind])
    about, front = (folder / ABOUT).read_text(), (folder / FRONT).read_text()
    changed = st.one_of(
        changed_data([json.loads(about)]).map(json.dumps), changed_text([about]), values.map(json.dumps), st.text()
    )

    @fuzzed(0.1)
    @given(st.tuples(changed, st.just(front.encode())) | st.tuples(st.just(about), yaml_like(front)))
    def check(contents):
        (folder / ABOUT).write_bytes(contents[0].encode("utf-8", "surrogatepass"))
        (folder / FRONT).write_bytes(contents[1])
        released = read_or_refused(lambda: load_supernet(folder))
        if released is not None:
            # A front may name members that the space does not have.
            read_or_refused(lambda: released.best(macs=10**12))

    check()


@pytest.mark.parametrize("more", [{"num_classes": 10**6}, {"space": {"embed_dim": 65536}}, {"space": {"depth": 40}}])
def test_a_description_of_more_weights_than_the_file_holds_is_refused(tmp_path, more):
    folder = write(tmp_path / "supernet", SPACES["searched"])
    about = json.loads((folder / ABOUT).read_text())
    about |= more if "space" not in more else {"space": about["space"] | more["space"]}
    (folder / ABOUT).write_text(json.dumps(about))
    with bounded(), pytest.raises(UserError, match=r"describes [\d,]+ weights, more than model\.safetensors holds"):
        load_supernet(folder)

"""Drawings of architectures: to scale, complete, and within their room."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from vitas.architecture import IDENTITY, Architecture, Block
from vitas.catalog import zoo
from vitas.drawing import HIGHEST, columns_of, highest_dim, to_svg, to_text


def shapes(svg: str, kind: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == f"vd-{kind}"]


@pytest.mark.parametrize("name", zoo())
def test_boxes_are_as_high_as_their_dims_to_one_scale(name):
    architecture = zoo()[name]
    columns = [c for c in columns_of(architecture) if c.heads]
    for scale in (None, 0.05):
        svg = to_svg(architecture, scale)
        unit = HIGHEST / highest_dim(architecture) if scale is None else scale
        for kind, dims in (("attention", [c.qkv_dim for c in columns]), ("mlp", [c.mlp_dim for c in columns])):
            heights = [float(box.get("height")) for box in shapes(svg, kind)]
            assert heights == pytest.approx([unit * dim for dim in dims], abs=0.006)
    assert len(columns) == architecture.depth


def test_heads_are_ticks_and_identities_are_gaps():
    block = Block(3, 432, 720)
    svg = to_svg(Architecture(16, 230, (block, IDENTITY, block)))
    assert len(shapes(svg, "tick")) == 2 * (3 - 1)
    first, second = (float(box.get("x")) for box in shapes(svg, "attention"))
    bands = [float(box.get("x")) for box in shapes(svg, "band")]
    assert len(bands) == 3
    assert second - first == pytest.approx(2 * (bands[1] - bands[0]))


def test_ticks_are_left_out_where_they_would_fill_the_box():
    assert not shapes(to_svg(Architecture(16, 64, (Block(16, 48, 720),))), "tick")


def test_everything_lies_within_the_drawing():
    svg = to_svg(zoo()["vitas_b"])
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    for kind in ("band", "attention", "mlp", "patch"):
        for box in shapes(svg, kind):
            x, y, w, h = (float(box.get(key, 0)) for key in ("x", "y", "width", "height"))
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height


def test_a_network_without_blocks_is_drawn():
    nothing = Architecture(16, 64, ())
    assert "<svg" in to_svg(nothing)
    assert to_text(nothing) == "patches of 16, embedding dim 64"


@pytest.mark.parametrize("name", zoo())
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_text_has_every_block_and_fits_the_terminal(name, columns):
    lines = to_text(zoo()[name], columns).splitlines()
    assert len(lines) == 1 + len(columns_of(zoo()[name]))
    assert max(map(len, lines)) <= columns
    for line, column in zip(lines[1:], columns_of(zoo()[name]), strict=True):
        expected = (
            ("identity",) if not column.heads else (f"{column.heads} head", f"{column.qkv_dim} ", f"{column.mlp_dim} ")
        )
        assert all(part in line for part in expected)

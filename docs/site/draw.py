"""Draw the pictures of docs/concepts.md: python docs/site/draw.py [FOLDER]

What they show is computed by the project: spaces, channels, costs and children are the real ones. Each has a light
ground of its own, so that it reads alike on a light and on a dark page.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import numpy as np

from search.operators import BlockCrossover
from vitas import config as configuration
from vitas.architecture import Architecture
from vitas.in_budget import InBudget, move_into_budget
from vitas.sharing import SCHEMES

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "images"
INK, SOFT, LINE, GROUND = "#24292f", "#57606a", "#c9d1d9", "#f7f8fa"
# Told apart by people who see colours differently (Okabe and Ito), and by their lightness.
BLUE, ORANGE, GREEN, NONE = "#0072b2", "#e69f00", "#009e73", "#e3e7ec"


class Picture:
    """An SVG that is drawn from the top left, in pixels."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._size, self._title, self._description = (width, height), title, description
        self._parts = [self._rect(0.5, 0.5, width - 1, height - 1, GROUND, LINE, 10)]

    @staticmethod
    def _rect(x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float) -> str:
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        return f'<rect {size} fill="{fill}" stroke="{stroke}"/>'

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 2
    ) -> None:
        self._parts.append(self._rect(x, y, width, height, fill, stroke, radius))

    def text(self, x: float, y: float, text: str, size: int = 13, colour: str = INK, anchor: str = "start") -> None:
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def path(self, points: str, colour: str = SOFT, arrow: bool = False, dashed: bool = False) -> None:
        end = ' marker-end="url(#arrow)"' if arrow else ""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._parts.append(f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{end}{dash}/>')

    def svg(self) -> str:
        width, height = self._size
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 Z" fill="{SOFT}"/></marker></defs>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" role="img" font-family="Helvetica, Arial, sans-serif">',
                f"<title>{escape(self._title)}</title>",
                f"<desc>{escape(self._description)}</desc>",
                marker,
                *self._parts,
                "</svg>\n",
            ]
        )


def quickstart() -> configuration.RunConfig:
    return configuration.load(REPOSITORY / "configs" / "quickstart.yaml")


def blocks(
    picture: Picture, architecture: Architecture, left: float, top: float, colours: list[str], widest: bool = False
) -> None:
    """The blocks of a network, from the top: a bar for its attention dim, and one for its MLP dim.

    widest: whether those of the supernet lie behind them.
    """
    space = quickstart().space
    attention, mlp = space.qkv_dims[-1] // 3, space.mlp_dims[-1]
    for i in range(space.depth):
        y = top + 24 * i
        if widest:
            picture.box(left, y, attention * 1.5, 18, NONE)
            picture.box(left + 55, y, mlp * 0.7, 18, NONE)
        if i < architecture.depth:
            block = architecture.active_blocks[i]
            picture.box(left, y, block.qkv_dim // 3 * 1.5, 18, colours[i])
            picture.box(left + 55, y, block.mlp_dim * 0.7, 18, colours[i])


def supernet() -> Picture:
    config = quickstart()
    drawn = InBudget(config.macs_model, config.sample.budget, 1.5).draw(np.random.default_rng(6), 1)[0]
    subnet = config.space.decode(drawn).shifted().compact()
    picture = Picture(
        900, 300, "A supernet and a subnet of it",
        f"The widest weights of all {config.space.depth} blocks, and in them those that {subnet} uses.",
    )  # fmt: skip
    picture.text(40, 36, "the supernet: the widest weights of every block", 15)
    picture.text(40, 56, "grey: not used by this subnet", 12, SOFT)
    blocks(picture, subnet, 120, 90, [BLUE] * subnet.depth, widest=True)
    picture.text(120, 80, "attention", 11, SOFT)
    picture.text(175, 80, "MLP", 11, SOFT)
    for i in range(config.space.depth):
        picture.text(108, 104 + 24 * i, f"block {i + 1}", 12, SOFT, "end")
    picture.path("M350 182 H 470", arrow=True)
    picture.text(410, 172, "extract", 13, INK, "middle")
    picture.text(500, 36, "the subnet: a dense network of its own", 15)
    picture.text(500, 56, "the same logits, to rounding", 12, SOFT)
    picture.text(500, 80, "attention", 11, SOFT)
    picture.text(555, 80, "MLP", 11, SOFT)
    blocks(picture, subnet, 500, 90, [BLUE] * subnet.depth)
    facts = [
        f"patch size {subnet.patch_size}",
        f"embedding dim {subnet.embed_dim} of {config.space.embed_dims[-1]}",
        f"{subnet.depth} blocks of {config.space.depth}",
        f"{subnet.macs(28, 10):,} multiply-adds",
        f"{subnet.parameters(28, 10):,} parameters",
    ]
    for i, fact in enumerate(facts):
        picture.text(735, 106 + 22 * i, fact, 12)
    return picture


def sharing() -> Picture:
    picture = Picture(
        900, 270, "The three sharing schemes",
        "Which 5 of 12 channels a width uses in steps 1 to 6: the first; in two passes the first and the last; or, "
        "step by step, 5 from a start that moves on.",
    )  # fmt: skip
    meanings = {
        "ordinal": "the first channels",
        "bilateral": "the first, and in a second pass the last",
        "cyclic": "a start that moves on, step by step",
    }
    for column, (name, meaning) in enumerate(meanings.items()):
        scheme, left = SCHEMES[name], 70 + 280 * column
        picture.text(left, 36, name, 15)
        picture.text(left, 56, meaning, 12, SOFT)
        for step in range(6):
            y = 74 + 30 * step
            if column == 0:
                picture.text(left - 10, y + 14, f"step {step + 1}", 11, SOFT, "end")
            sides = scheme.training_sides(step)
            for number, side in enumerate(sides):
                used = {c for start, stop in scheme.channels(5, 12, side) for c in range(start, stop)}
                height = 18 / len(sides) - (1 if len(sides) > 1 else 0)
                for channel in range(12):
                    colour = (BLUE, ORANGE)[number] if channel in used else NONE
                    picture.box(left + 19 * channel, y + number * 10, 16, height, colour, radius=1)
    return picture


def budget() -> Picture:
    config = quickstart()
    model, wanted, rng = config.macs_model, config.sample.budget, np.random.default_rng(0)
    drawn = {
        "every choice equally likely": config.space.sample_genomes(rng, 20_000),
        "as the supernet is trained: near the budget": InBudget(
            model, wanted.widened(config.search.subnets.widen), config.search.subnets.size_bias
        ).draw(rng, 20_000),
    }
    picture = Picture(
        900, 300, "What a space costs, and a budget in it",
        "Two histograms of the multiply-adds of random networks: of all, few lie in the budget; drawn near it, most.",
    )  # fmt: skip
    edges = np.arange(0, 3.05, 0.05)

    def x(millions: float) -> float:
        return 60 + millions * 265

    low, high = wanted.minimum / 1e6, wanted.maximum / 1e6
    picture.box(x(low), 60, x(high) - x(low), 190, "#d7efe6", GREEN)
    picture.text((x(low) + x(high)) / 2, 52, "the budget", 13, GREEN, "middle")
    for (name, genomes), colour, place in zip(drawn.items(), (ORANGE, BLUE), (0, 1), strict=True):
        costs = model.predict(genomes) / 1e6
        inside = np.mean((costs >= low) & (costs <= high))
        counts, _ = np.histogram(costs, edges)
        points = [f"M{x(0):g} 250"]
        for count, left, right in zip(counts / counts.sum(), edges[:-1], edges[1:], strict=True):
            points.append(f"V{250 - 650 * count:.1f} H{x(right):.1f}" if left >= 0 else "")
        picture.path(" ".join(points) + " V250", colour)
        picture.box(520, 78 + 44 * place, 14, 14, colour)
        picture.text(542, 90 + 44 * place, name, 12)
        picture.text(542, 107 + 44 * place, f"{inside:.0%} of 20,000 lie in the budget", 12, SOFT)
    picture.path("M60 250 H 860")
    for millions in np.arange(0, 3.1, 0.5):
        picture.text(x(millions), 268, f"{millions:.1f}M", 11, SOFT, "middle")
    picture.text(460, 288, "multiply-adds of an image", 12, SOFT, "middle")
    picture.text(60, 32, "the space of configs/quickstart.yaml", 15)
    return picture


def evolution() -> Picture:
    config = quickstart()
    space, model, wanted = config.space, config.macs_model, config.sample.budget
    rng = np.random.default_rng(8)
    first, second = InBudget(model, wanted, 1.5).draw(rng, 2)
    child = BlockCrossover(space)._do(None, np.stack([first, second])[:, None], random_state=rng)[0]
    moved = move_into_budget(child.copy(), model, wanted, rng)[0]
    networks = [space.decode(genome).shifted().compact() for genome in (first, second, child[0], moved)]
    picture = Picture(
        900, 292, "A step of evolution",
        "Two parents; a child that has each block whole from either; the child moved into the budget by the smallest "
        "change; its score with the supernet's weights; and the best, which are the next parents.",
    )  # fmt: skip
    origin = [ORANGE if a == b and a != c else BLUE for a, b, c in _blocks_of(networks)]
    changed = [
        GREEN if i >= networks[2].depth or block != networks[2].active_blocks[i] else origin[i]
        for i, block in enumerate(networks[3].active_blocks)
    ]
    colours = [[BLUE] * 8, [ORANGE] * 8, origin, changed]
    titles = ["a parent", "another parent", "a child: blocks of either", "moved into the budget"]
    lefts = [30, 245, 460, 675]
    for network, title, left, fill in zip(networks, titles, lefts, colours, strict=True):
        picture.text(left, 36, title, 14)
        cost = network.macs(28, 10)
        picture.text(left, 54, f"{cost:,} multiply-adds", 12, SOFT)
        blocks(picture, network, left, 70, fill)
    picture.path("M440 130 H 454", arrow=True)
    picture.path("M655 130 H 669", arrow=True)
    picture.path("M755 205 V 236", arrow=True)
    picture.box(640, 240, 230, 30, "#fff6da", ORANGE, 6)
    picture.text(755, 260, "score it with the supernet's weights", 12, INK, "middle")
    picture.path("M640 255 H 502", arrow=True)
    picture.box(310, 240, 190, 30, "#fff6da", ORANGE, 6)
    picture.text(405, 260, "the best are the next parents", 12, INK, "middle")
    picture.path("M310 255 H 130 V 205", arrow=True)
    return picture


def _blocks_of(networks: list[Architecture]) -> list[tuple[object, object, object]]:
    """For each block of the child: itself, the second parent's of its position, and the first's."""
    first, second, child = (network.active_blocks for network in networks[:3])
    return [
        (block, second[i] if i < len(second) else None, first[i] if i < len(first) else None)
        for i, block in enumerate(child)
    ]


PICTURES = {"supernet": supernet, "sharing": sharing, "budget": budget, "evolution": evolution}


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        (folder / f"{name}.svg").write_text(picture().svg(), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

"""Architectures drawn to scale, as SVG for a page and as text for a terminal.

From left to right, or from top to bottom: the patches, then one column a block. A band as high as the embedding dim
runs through; on it stand a box for attention, as high as the qkv dim and cut into its heads, and one for the MLP, as
high as its hidden dim. An identity is a gap in which only the band is seen. `report_page/page.js` draws the same for a
point that is clicked; a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from vitas.asvit.genotype import STEM_STRIDE, Genotype
from vitas.catalog import AnyArchitecture

# Pixels: of a block's two boxes, between them, between blocks, around the drawing; the highest box where no scale is
# given.
BOX, GAP, SPACE, MARGIN, HIGHEST = 9.0, 1.0, 5.0, 2.0, 88.0
# The side of the square that shows patches, and the least from tick to tick.
PATCH, DENSEST = 20.0, 2.0

# Okabe and Ito's colours, which people with any colour vision tell apart.
STYLE = (
    ".vd-band{fill:#dfe3e8}.vd-attention{fill:#0072b2}.vd-mlp{fill:#e69f00}.vd-tick{stroke:#fff;stroke-width:.6}"
    ".vd-patch{fill:none;stroke:#57606a;stroke-width:.8}"
)


@dataclass(frozen=True)
class Column:
    """A position of an architecture, as it is drawn. band: embedding dim. An identity has no heads."""

    band: int
    heads: int = 0
    qkv_dim: int = 0
    mlp_dim: int = 0


def columns_of(architecture: AnyArchitecture) -> list[Column]:
    """The positions of an architecture: of a genotype, the blocks of all stages."""
    if isinstance(architecture, Genotype):
        stages = zip(
            architecture.stages, architecture.dims, architecture.attention_dims, architecture.stage_heads, strict=True
        )
        return [
            Column(dim, heads, 3 * attention_dim, stage.expansion * dim)
            for stage, dim, attention_dim, heads in stages
            for _ in range(stage.layers)
        ]
    return [Column(architecture.embed_dim, b.heads, b.qkv_dim, b.mlp_dim) for b in architecture.blocks]


def highest_dim(architecture: AnyArchitecture) -> int:
    """The largest dim that is drawn: drawings of one `scale` want the largest of all."""
    columns = columns_of(architecture)
    return max([1, *(max(c.band, c.qkv_dim, c.mlp_dim) for c in columns)], default=1)


def patch_of(architecture: AnyArchitecture) -> int:
    """The side of a patch in pixels; of a genotype, the stride of its stem."""
    return STEM_STRIDE if isinstance(architecture, Genotype) else architecture.patch_size


def to_svg(architecture: AnyArchitecture, scale: float | None = None, style: bool = True) -> str:
    """An architecture as an `<svg>` element.

    scale: pixels of a dim, by default so that the largest box has `HIGHEST`.
    style: with colours of its own; a page that shows many says them once (`STYLE`).
    """
    columns = columns_of(architecture)
    scale = HIGHEST / highest_dim(architecture) if scale is None else scale
    height = max([PATCH, *(scale * max(c.band, c.qkv_dim, c.mlp_dim) for c in columns)])
    middle = MARGIN + height / 2
    shapes: list[str] = []

    def box(name: str, x: float, width: float, tall: float) -> None:
        shapes.append(
            f'<rect class="vd-{name}" x="{_number(x)}" y="{_number(middle - tall / 2)}" width="{_number(width)}" '
            f'height="{_number(tall)}"/>'
        )

    # Patches: a square with as many cells along a side as four images of 16 pixels would show.
    cells = max(1, min(8, math.floor(32 / patch_of(architecture) + 0.5)))
    box("patch", MARGIN, PATCH, PATCH)
    for i in range(1, cells):
        at = PATCH * i / cells
        left, top = MARGIN, middle - PATCH / 2
        shapes.append(
            f'<path class="vd-patch" d="M{_number(left + at)} {_number(top)}v{_number(PATCH)}'
            f'M{_number(left)} {_number(top + at)}h{_number(PATCH)}"/>'
        )
    x = MARGIN + PATCH + SPACE
    width = 2 * BOX + GAP + SPACE
    for column in columns:
        box("band", x - SPACE, width + (SPACE if column is columns[-1] else 0), scale * column.band)
        if column.heads:
            tall = scale * column.qkv_dim
            box("attention", x, BOX, tall)
            # Ticks that lie closer would only make the box pale.
            for i in range(1, column.heads if tall >= DENSEST * column.heads else 0):
                y = middle - tall / 2 + tall * i / column.heads
                shapes.append(f'<path class="vd-tick" d="M{_number(x)} {_number(y)}h{_number(BOX)}"/>')
            box("mlp", x + BOX + GAP, BOX, scale * column.mlp_dim)
        x += width
    whole = f"0 0 {_number(x + MARGIN)} {_number(height + 2 * MARGIN)}"
    wide, high = whole.split()[2:]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="vd" role="img" viewBox="{whole}" width="{wide}" '
        f'height="{high}"><title>{escape(str(architecture))}</title>'
        f"{f'<style>{STYLE}</style>' if style else ''}{''.join(shapes)}</svg>"
    )


def _number(value: float) -> str:
    """At most two decimals, without zeros at the end; rounded as JavaScript's Math.round does."""
    hundredths = math.floor(100 * value + 0.5)
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def to_text(architecture: AnyArchitecture, columns: int = 80) -> str:
    """An architecture as lines for a terminal of so many columns: bars to scale, of attention and MLP of each block."""
    positions = columns_of(architecture)
    most = highest_dim(architecture)
    digits = len(str(most))
    room = max(4, (columns - 2 * digits - 27) // 2)
    kind = "stem of stride" if isinstance(architecture, Genotype) else "patches of"
    dims = architecture.dims if isinstance(architecture, Genotype) else (architecture.embed_dim,)
    lines = [f"{kind} {patch_of(architecture)}, embedding dim {', '.join(map(str, dims))}"]
    for number, c in enumerate(positions, 1):
        if not c.heads:
            lines.append(f"{number:>3}  identity")
            continue
        bars = [_bar(dim, most, room) for dim in (c.qkv_dim, c.mlp_dim)]
        heads = f"{c.heads:>2} head{'s' if c.heads > 1 else ' '}"
        lines.append(
            f"{number:>3}  {heads}  qkv {c.qkv_dim:>{digits}} {bars[0]:<{room}} MLP {c.mlp_dim:>{digits}} {bars[1]}"
        )
    return "\n".join(lines)


def _bar(dim: int, most: int, room: int) -> str:
    """A bar to scale, to an eighth of a column."""
    eighths = max(1, round(8 * room * dim / most))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()

"""Weight sharing: which channels of the supernet's widest weights a width uses. A new scheme is a new entry here.

| scheme | which channels a width c of C uses | passes a step |
|---|---|---|
| ordinal (AutoSlim, AutoFormer) | the first c | 1 |
| bilateral (BCNet) | left: the first c; right: the last c | 2, one loss on the sum of both logits |
| cyclic (ViTAS v2) | c from a start that rotates with the step, wrapping round | 1 |

The supernet asks a scheme, and knows none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

from vitas.errors import UserError

# The way in which a pass cuts the weights: what a scheme has one or several of.
Side: TypeAlias = str | int
# Ranges (start, stop) in the order in which they are used: one, or two where channels wrap round.
Channels: TypeAlias = tuple[tuple[int, int], ...]


class SharingScheme(ABC):
    """Which channels a width uses, and with which sides a subnet is trained and scored."""

    name: str
    # What `SuperNet` takes where nobody says a side, and what a score is taken over.
    scoring_sides: tuple[Side, ...]

    def training_sides(self, step: int) -> tuple[Side, ...]:
        """The passes of a training step; their logits are summed for one loss."""
        return self.scoring_sides

    @abstractmethod
    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        """The channels of `maximum` that a width uses. Raises `UserError` for a side that the scheme does not have."""

    def _refuse(self, side: Side) -> None:
        raise UserError(f"side {side!r}: {self.name} sharing has {' and '.join(map(str, self.scoring_sides))}")


class Ordinal(SharingScheme):
    """AutoSlim's and AutoFormer's: the first channels."""

    name = "ordinal"
    scoring_sides = ("left",)

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if side != "left":
            self._refuse(side)
        return ((0, width),)


class Bilateral(SharingScheme):
    """BCNet's: over all widths, both sides together use every channel equally often."""

    name = "bilateral"
    scoring_sides = ("left", "right")

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if side not in self.scoring_sides:
            self._refuse(side)
        return ((0, width),) if side == "left" else ((maximum - width, maximum),)


class Cyclic(SharingScheme):
    """ViTAS v2's: a side is a step, and each step starts one channel further, so that all are used equally often.

    Where the channels wrap round they are two ranges, which have to be copied
    into one: that costs a copy of those weights, and of their gradients, a pass.
    """

    name = "cyclic"
    # Every start is trained as much as every other one, so one of them gives the score.
    scoring_sides = (0,)

    def training_sides(self, step: int) -> tuple[Side, ...]:
        return (step,)

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if not isinstance(side, int):
            raise UserError(f"side {side!r}: cyclic sharing has one for each step, an integer")
        start = side % maximum
        stop = start + width
        return ((start, stop),) if stop <= maximum else ((start, maximum), (0, stop - maximum))


SCHEMES: dict[str, SharingScheme] = {scheme.name: scheme for scheme in (Bilateral(), Ordinal(), Cyclic())}

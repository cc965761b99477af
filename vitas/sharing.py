"""Weight sharing: which channels of the supernet's widest weights a width uses.

| scheme | which channels a width c of C uses | passes a step |
|---|---|---|
| ordinal (AutoSlim, AutoFormer) | the first c | 1 |
| bilateral (BCNet) | left: the first c; right: the last c | 2, one loss on the sum of both logits |
| cyclic (ViTAS v2) | c from a start that moves with the step, wrapping round | 1 |

To add a scheme, add it to `SCHEMES`; the supernet refers to none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

from vitas.errors import UserError

# Selects the channels of a pass; a scheme has one or several sides.
Side: TypeAlias = str | int
# Ranges (start, stop) in the order of use: one, or two where channels wrap round.
Channels: TypeAlias = tuple[tuple[int, int], ...]


class SharingScheme(ABC):
    """Decides which channels a width uses, and with which sides a subnet is trained and scored."""

    name: str
    # The sides of a score; the first is the one that `SuperNet` takes by default.
    scoring_sides: tuple[Side, ...]
    # Whether whole heads stay whole, where widths are multiples of a head's dims.
    keeps_heads = True

    def training_sides(self, step: int) -> tuple[Side, ...]:
        """The sides of a training step, one pass each; their logits are summed for one loss."""
        return self.scoring_sides

    @abstractmethod
    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        """The channels, out of `maximum`, that a width uses. Raises `UserError` for a side of another scheme."""

    def _refuse(self, side: Side) -> None:
        raise UserError(f"side {side!r}: {self.name} sharing has {' and '.join(map(str, self.scoring_sides))}")


class Ordinal(SharingScheme):
    """The first channels (AutoSlim, AutoFormer)."""

    name = "ordinal"
    scoring_sides = ("left",)

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if side != "left":
            self._refuse(side)
        return ((0, width),)


class Bilateral(SharingScheme):
    """The first and the last channels (BCNet): over all widths, each channel is used equally often."""

    name = "bilateral"
    scoring_sides = ("left", "right")

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if side not in self.scoring_sides:
            self._refuse(side)
        return ((0, width),) if side == "left" else ((maximum - width, maximum),)


class Cyclic(SharingScheme):
    """ViTAS v2: the side is the step, and each step starts one channel further, so all are used equally often.

    The heads of a block divide the channels in the order in which they are
    used, so they move along with the start.

    Channels that wrap round are two ranges, which must be copied into one
    tensor: a copy of those weights, and of their gradients, in each pass.
    """

    name = "cyclic"
    keeps_heads = False
    # All starts are trained equally often, so one of them is enough for a score.
    scoring_sides = (0,)

    def training_sides(self, step: int) -> tuple[Side, ...]:
        return (step,)

    def channels(self, width: int, maximum: int, side: Side) -> Channels:
        if not isinstance(side, int):
            raise UserError(f"side {side!r}: cyclic sharing takes the step, an integer")
        start = side % maximum
        stop = start + width
        return ((start, stop),) if stop <= maximum else ((start, maximum), (0, stop - maximum))


SCHEMES: dict[str, SharingScheme] = {scheme.name: scheme for scheme in (Bilateral(), Ordinal(), Cyclic())}

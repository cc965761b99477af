"""The section `retrain`: the training of one architecture."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from vitas.config.training import Training
from vitas.config_section import (
    Fraction,
    Positive,
    Section,
)
from vitas.data.folders import EvaluationData


class TokenPhase(Section):
    """A phase of training on coarser tokens (As-ViT's progressive tokenisation).

    until: its end, as a fraction of the epochs; it begins where the phase before it ends.
    reduce: the factor by which tokens along a side of the image are fewer.
    """

    until: Annotated[float, Field(gt=0, lt=1)]
    reduce: Annotated[int, Field(ge=2)]


class Retrain(Training):
    """The training of one architecture, from scratch or from existing weights.

    architecture: `best`, a name in architectures.yaml, a name in the zoo, a
        canonical text, {net_id: "..."} in model.space, or an architecture's
        YAML form. null is the one stored in `from_checkpoint`, or else `best`.
    drop_path_rate: stochastic depth at the last position.
    from_supernet: start from the supernet's weights.
    from_checkpoint: start from the weights of a file (fine-tuning); class count
        and image size may differ from those it was trained with.
    tokens: phases of coarser tokens at the beginning; after them, tokens are full.
    val: images that the network is measured on while it trains; null is none. The best network is kept.
    val_epochs: epochs between two measurements; the last epoch has one too.
    patience: end the training after so many epochs without a better top-1 on them; null never does.
    compile: let torch compile the network.
    """

    architecture: str | dict[str, Any] | None = None
    drop_path_rate: Fraction = 0.1
    from_supernet: bool = False
    from_checkpoint: str | None = None
    tokens: list[TokenPhase] = []
    val: EvaluationData | None = None
    val_epochs: Positive = 1
    patience: Positive | None = None
    compile: bool = False

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        tied = super().tied_to_epochs(steps, per_epoch)
        return tied or ("its phases of coarser tokens are shares of all epochs" if steps and self.tokens else None)

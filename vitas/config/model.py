"""The section `model`: images, classes, and the search space or the network that it is taken from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from vitas.architecture import MAX_DIM
from vitas.config_section import (
    AboveZero,
    Positive,
    Section,
    fields_of,
)
from vitas.elastic_space import SCORES, Shares
from vitas.errors import UserError
from vitas.sharing import SCHEMES
from vitas.space import SearchSpace

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    SharingName: TypeAlias = str
    ScoreName: TypeAlias = str
else:
    SharingName = Literal[tuple(SCHEMES)]
    ScoreName = Literal[tuple(SCORES)]


def _kind_of_space(section: object) -> str:
    if isinstance(section, Mapping):
        # `depth` is a number of the one and a list of the other.
        own = set(fields_of(SearchSpace)) - set(fields_of(Shares))
        return SearchSpace.tag if own & section.keys() else Shares.tag
    return Shares.tag if isinstance(section, Shares) else SearchSpace.tag


# The section `model.space`: of networks from scratch, or beside `model.from_pretrained`.
AnySpaceSection = Annotated[
    Annotated[SearchSpace, Tag(SearchSpace.tag)] | Annotated[Shares, Tag(Shares.tag)], Discriminator(_kind_of_space)
]


class Importance(Section):
    """By what the channels, heads, MLP units and blocks of a pretrained network are ordered (see `vitas.importance`).

    score: the rule. images: train images that it looks at, without augmentation.
    """

    score: ScoreName = "taylor"
    images: Positive = 512


class Model(Section):
    """What all stages share: images, classes and the search space.

    image_size: side of the images, in pixels. mean, std: their normalisation, by default ImageNet's.
    space: needed by `search` and `sample`, and by a `retrain.architecture` that is a net_id.
    from_pretrained: a network that the supernet starts from, a model of timm or a file: `space` then says shares of it.
    importance: how that network is ordered.
    sharing, qkv_mode: see `vitas.SuperNet`.
    """

    image_size: Annotated[int, Field(ge=1, le=MAX_DIM)] = 224
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    mean: Channels = [0.485, 0.456, 0.406]
    std: Annotated[list[AboveZero], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    space: AnySpaceSection | None = None
    from_pretrained: str | None = None
    importance: Importance = Importance()
    sharing: SharingName = "ordinal"
    qkv_mode: Literal[0, 1, 2] = 2

    @property
    def dims(self) -> SearchSpace:
        """`space` of networks from scratch. Raises `UserError` where it is missing, or says shares."""
        if self.space is None:
            raise UserError("model.space: is missing; it says what may be searched")
        if isinstance(self.space, Shares):
            raise UserError(
                "model.from_pretrained: is missing; model.space says shares of a pretrained network, and not of which"
            )
        return self.space

    @property
    def shares(self) -> Shares:
        """`space` of a pretrained network. Raises `UserError` where it says dims."""
        if isinstance(self.space, SearchSpace):
            raise UserError(
                "model.space: found dims; beside model.from_pretrained it says shares of that network "
                "(embed, heads, mlp, depth, keep)"
            )
        return self.space or Shares()

"""Budgets, and the costs of populations of architectures.

A `CostModel` gives the costs of many genomes at once: `MacsModel` counts MACs
exactly, `SpeedModel` predicts images per second from a few measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, ConfigDict, WithJsonSchema

from vitas.bounds import Maximum, Minimum, number_of, share_of
from vitas.config_section import DATACLASS_SECTION, MOST, Positive
from vitas.costs import Array, attention_macs_per_dim, count_macs, mlp_macs_per_dim
from vitas.elastic_space import AnySpace
from vitas.errors import UserError

IMAGES_PER_SECOND = "images_per_second"
# One cost, or those of several architectures [population].
Cost = TypeVar("Cost", float, Array)
# YAML reads a bare `true` as a boolean.
Convention = Annotated[
    Literal["released", "true", "images_per_second"],
    BeforeValidator(lambda value: "true" if value is True else value),
    WithJsonSchema({"enum": ["released", "true", "images_per_second", True]}),
]


@dataclass(frozen=True)
class Budget:
    """The range that an architecture's cost must be in, both ends included: `sample.budget` of the YAML.

    minimum, maximum: MACs per image, or images per second measured on the run's device. MACs may be given as a share
        of those of the widest network of the space, as a text such as 60%: `of` makes numbers of them, and until then
        nothing can be compared with the budget.
    convention: how MACs are counted (see `vitas.costs.count_macs`), or images_per_second.
    batch_size: with which images per second are measured.

    Raises `UserError`, beginning with the field, for an empty range.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DATACLASS_SECTION

    minimum: Minimum
    maximum: Maximum
    convention: Convention = "released"
    batch_size: Positive = 256

    def __post_init__(self) -> None:
        low, high = share_of(self.minimum), share_of(self.maximum)
        for name, share in (("minimum", low), ("maximum", high)):
            if share is not None and self.is_speed:
                raise UserError(
                    f"{name}: found {getattr(self, name)!r}; images per second are given as a number, because the "
                    "widest network is not the fastest"
                )
        if high == 0:
            raise UserError(f"maximum: found {self.maximum!r}; it must be above 0%")
        # A number and a share can be compared once the space is known.
        if (low is None) == (high is None) and self._order(self.minimum) > self._order(self.maximum):
            raise UserError(f"minimum: found {self.minimum}; it must be at most the maximum, {self.maximum}")

    @staticmethod
    def _order(bound: int | str) -> float:
        share = share_of(bound)
        return float(bound) if share is None else share

    @property
    def is_speed(self) -> bool:
        return self.convention == IMAGES_PER_SECOND

    @property
    def is_relative(self) -> bool:
        """Whether an end is a share of the widest network, so that the budget means nothing without a space."""
        return isinstance(self.minimum, str) or isinstance(self.maximum, str)

    def of(self, widest: int) -> Budget:
        """The budget in numbers, where the widest network of the space has so many MACs in its convention.

        Raises `UserError`, beginning with the field, for a range that is then empty.
        """
        low, high = (end if (share := share_of(end)) is None else int(share * widest) for end in self._ends)
        return replace(self, minimum=low, maximum=high)

    @property
    def _ends(self) -> tuple[int | str, int | str]:
        return self.minimum, self.maximum

    @property
    def low(self) -> int:
        """`minimum` as a number."""
        return number_of(self.minimum)

    @property
    def high(self) -> int:
        """`maximum` as a number."""
        return number_of(self.maximum)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def widened(self, share: float) -> Budget:
        """The budget with both ends moved outwards by a share of themselves."""
        return replace(self, minimum=int(self.low * (1 - share)), maximum=int(self.high * (1 + share)))

    def distance(self, cost: Cost) -> Cost:
        """How far costs (a number or an array) are outside the budget; 0 is inside. The only test of 'inside'."""
        outside: Cost = np.maximum(np.maximum(self.low - cost, cost - self.high), 0)
        return outside

    def __contains__(self, cost: float) -> bool:
        return bool(self.distance(cost) == 0)

    def nearest(self, costs: Array) -> float:
        """The cost nearest to the budget among costs [population]."""
        return float(costs[np.argmin(self.distance(costs))])

    def __str__(self) -> str:
        if self.is_relative:
            ends = (f"{end:,}" if isinstance(end, int) else end for end in self._ends)
            return f"{' to '.join(ends)} of the widest network's MACs ({self.convention} convention)"
        if self.is_speed:
            return f"{self.minimum:,} to {self.maximum:,} images/s"
        return f"{self.minimum:,} to {self.maximum:,} MACs ({self.convention} convention)"


class CostModel:
    """The costs of genomes of one space, as arrays.

    less_is_dearer: True where a smaller number is a higher cost, as for images per second.
        The mean is then the harmonic one: the speed at which the networks run one after another.
    """

    space: AnySpace
    less_is_dearer = False

    def predict(self, genomes: Array) -> Array:
        """The costs [population] of genomes [population, genes], in the unit of a `Budget`."""
        raise NotImplementedError

    def additive(self, genomes: Array) -> Array:
        """The costs [population] in the unit in which the blocks of a network add up: MACs, or seconds an image."""
        costs = self.predict(genomes)
        return 1 / costs if self.less_is_dearer else costs

    def additive_range(self, budget: Budget) -> tuple[float, float]:
        """The least and the largest cost inside a budget, in the unit of `additive`."""
        if self.less_is_dearer:
            return 1 / budget.high, 1 / budget.low if budget.low else np.inf
        return budget.low, budget.high

    def reach(self) -> tuple[float, float]:
        """The least and the largest cost that architectures of the space have, as `predict` counts it."""
        of_each_patch = np.zeros((len(self.space.patch_sizes), self.space.gene_counts.size), dtype=np.int64)
        of_each_patch[:, 0] = np.arange(len(of_each_patch))
        ends = [self.space.extreme(genome, widest) for genome in of_each_patch for widest in (False, True)]
        costs = self.predict(np.array(ends))
        return costs.min(), costs.max()

    def mean(self, genomes: Array) -> float:
        """The mean cost of genomes [population, genes]."""
        mean = float(self.additive(genomes).mean())
        return 1 / mean if self.less_is_dearer else mean


@dataclass(frozen=True)
class MacsModel(CostModel):
    """Counts the MACs of genomes of one space at one image size and class count.

    Raises `UserError` where the largest network has more than arrays of integers hold.
    """

    space: AnySpace
    image_size: int
    num_classes: int
    convention: str = "released"

    def __post_init__(self) -> None:
        space, depth = self.space, self.space.depths[-1]
        attention, mlp = (sum(dims[-1] for dims in part) for part in space.dims_of_blocks(depth))
        sizes = space.embed_dims[-1], attention, mlp, self.image_size, self.num_classes, self.convention
        largest = max(count_macs(patch_size, *sizes, space.prefix_tokens) for patch_size in space.patch_sizes)
        if largest > MOST:
            raise UserError(f"the largest network of the space has {largest:,} MACs; it may have {MOST:,}")

    def predict(self, genomes: Array) -> Array:
        """MACs [population] of genomes [population, genes], as int64."""
        columns = self.space.columns(genomes)
        dims = self.space.dims(columns)
        return count_macs(
            np.array(self.space.patch_sizes)[columns.patch],
            np.array(self.space.embed_dims)[columns.embed],
            dims.attention.sum(axis=1),
            dims.mlp.sum(axis=1),
            self.image_size,
            self.num_classes,
            self.convention,
            self.space.prefix_tokens,
        )

    def nearest(self, budget: Budget) -> int:
        """The MACs nearest to the budget that any architecture of the space has.

        Exact, without enumerating the space: for one patch size, embedding dim
        and depth the cost is linear in the sums of attention and MLP dims, and
        there are few different sums. Raises `UserError` where there are not.
        """
        space = self.space
        if len(space.patch_sizes) * len(space.embed_dims) * len(space.depths) > _MAX_CELLS:
            raise UserError(
                f"the space has {len(space.patch_sizes)} patch sizes x {len(space.embed_dims)} embedding dims x "
                f"{len(space.depths)} depths to look through; it may have {_MAX_CELLS:,}"
            )
        attention_sums, mlp_sums = _sums_by_depth(space)
        best, distance = 0, np.inf
        for patch_size in space.patch_sizes:
            tokens = (self.image_size // patch_size) ** 2 + space.prefix_tokens * (self.convention == "true")
            for embed_dim in space.embed_dims:
                sizes = patch_size, embed_dim, 0, 0, self.image_size, self.num_classes, self.convention
                fixed = count_macs(*sizes, space.prefix_tokens)
                for depth in space.depths:
                    attention = fixed + attention_macs_per_dim(embed_dim, tokens) * attention_sums[depth]
                    mlp = mlp_macs_per_dim(embed_dim, tokens) * mlp_sums[depth]
                    # For each attention sum, the first total at or above the minimum, and the one below it.
                    at = np.searchsorted(mlp, budget.low - attention)
                    for index in (at - 1, at):
                        total = int(budget.nearest(attention + mlp[np.clip(index, 0, len(mlp) - 1)]))
                        if budget.distance(total) < distance:
                            best, distance = total, budget.distance(total)
                    if distance == 0:
                        return best
        return best

    def resolve(self, budget: Budget) -> Budget:
        """A budget of MACs in numbers: its shares are of the widest network of the space. Raises as `Budget.of`."""
        return budget.of(int(self.reach()[1])) if budget.is_relative else budget

    def require(self, budget: Budget) -> None:
        """Raise `UserError` if no architecture of the space meets the budget."""
        nearest = self.nearest(budget)
        if nearest not in budget:
            low, high = self.reach()
            raise UserError(
                f"no architecture of the space has {budget}; the nearest has {nearest:,}, "
                f"and they reach from {low:,} to {high:,}"
            )


# What `MacsModel.nearest` looks through in seconds: (patch size, embedding dim, depth), and sums of dims of blocks.
_MAX_CELLS = 50_000
_MAX_SUMS = 2**22


def _sums_by_depth(space: AnySpace) -> tuple[dict[int, Array], dict[int, Array]]:
    """For each depth, the ascending sums that the attention dims of its blocks can have, and those of the MLP dims."""

    held = 0

    @cache
    def sums(dims: tuple[tuple[int, ...], ...]) -> Array:
        if not dims:
            return np.zeros(1, dtype=np.int64)
        if space.shared_blocks:
            return np.array(dims[0], dtype=np.int64) * len(dims)
        nonlocal held
        before, last = sums(dims[:-1]), np.array(dims[-1], dtype=np.int64)
        if max(held, before.size * last.size) > _MAX_SUMS:
            raise UserError(
                f"the widths of the space add up to more than {_MAX_SUMS:,} different sums over {len(dims)} blocks, "
                "too many to look through; take fewer widths, or multiples of one number"
            )
        # Quicker than np.unique, which sorts.
        is_sum = np.zeros(before[-1] + last[-1] + 1, dtype=bool)
        is_sum[before[:, None] + last] = True
        found = np.flatnonzero(is_sum)
        held += found.size
        return found

    by_depth = {depth: space.dims_of_blocks(depth) for depth in space.depths}
    attention, mlp = ({depth: sums(tuple(dims[i])) for depth, dims in by_depth.items()} for i in range(2))
    return attention, mlp


@dataclass(frozen=True)
class SpeedModel(CostModel):
    """Predicts images per second on one device from a few measurements there.

    The seconds per image are a weighted sum of features of the network: MACs
    of each kind, numbers that norms, softmax and GELU touch, and calls. The
    prediction only guides proposals; what counts against a budget is measured.

    prices: seconds per unit of each feature, none negative.
    """

    space: AnySpace
    image_size: int
    prices: tuple[float, ...]
    less_is_dearer = True

    @classmethod
    def fit(cls, space: AnySpace, image_size: int, genomes: Array, images_per_second: Sequence[float]) -> SpeedModel:
        """The model with the least squared relative error over measured genomes [population, genes]."""
        # Imported here: it takes half a second, and few runs need it.
        from scipy.optimize import nnls

        features = _speed_features(space, image_size, genomes)
        scale = features.max(axis=0)
        relative = features / np.where(scale > 0, scale, 1) * np.asarray(images_per_second)[:, None]
        prices, _ = nnls(relative, np.ones(len(relative)))
        return cls(space, image_size, tuple(float(p) for p in prices / np.where(scale > 0, scale, 1)))

    def predict(self, genomes: Array) -> Array:
        """Predicted images per second [population] of genomes [population, genes]."""
        seconds: Array = _speed_features(self.space, self.image_size, genomes) @ np.array(self.prices)
        return 1 / seconds


def _speed_features(space: AnySpace, image_size: int, genomes: Array) -> Array:
    """Features [population, 9] that the time of an image's forward pass depends on."""
    columns = space.columns(genomes)
    patch = np.array(space.patch_sizes)[columns.patch].astype(float)
    embed = np.array(space.embed_dims)[columns.embed].astype(float)
    dims = space.dims(columns)
    attention, mlp, heads = (part.sum(axis=1) for part in (dims.attention, dims.mlp, dims.heads))
    depth = columns.active.sum(axis=1)
    patches = (image_size // patch) ** 2
    tokens = patches + space.prefix_tokens
    # Of the last block only keys, values and queries are computed for all tokens, where the class token alone is read.
    # Which block that is, sums do not say: it is taken for an average one.
    whole = 1 - 1 / np.maximum(depth, 1) if space.classifier == "token" else np.ones_like(patch)
    return np.stack(
        [
            np.ones_like(patch),
            3 * patch**2 * embed * patches,
            depth,
            depth * tokens * embed,
            (3 + whole) * embed * tokens * attention,
            2 * tokens**2 * attention * whole,
            tokens**2 * heads * whole,
            2 * embed * tokens * mlp * whole,
            tokens * mlp * whole,
        ],
        axis=1,
    )


def identity_probability(model: CostModel, budget: Budget, seed: int = 0, samples: int = 4096) -> float | None:
    """The identity probability at which the mean cost of random subnets is the middle of the budget.

    ViTAS trains its supernet at this probability, so that training covers the
    subnets that the search will score. None if the space has no identities; 0
    if even subnets of full depth are cheaper than the middle.
    """
    if not model.space.identity:
        return None

    def too_expensive(probability: float) -> bool:
        # With the same draws at every probability the mean is monotonic in it, so bisection works.
        mean = model.mean(model.space.sample_genomes(np.random.default_rng(seed), samples, probability))
        return mean < budget.middle if model.less_is_dearer else mean > budget.middle

    low, high = 0.0, 1.0
    if not too_expensive(low):
        return low
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if too_expensive(middle) else (low, middle)
    return (low + high) / 2

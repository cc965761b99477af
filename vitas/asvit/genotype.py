"""`Genotype`, As-ViT's description of a staged transformer, and `GenotypeSpace`, the topologies to search.

A genotype is written as in As-ViT's released files (Chen et al., ICLR 2022,
arXiv 2202.11921): kernel, split, expansion and layers of four stages, then the
heads of the last stage and the hidden dim of the first,

    8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180

A topology, `8,2,3|4,1,2|4,1,4|4,1,6|32`, is a genotype without layers and hidden
dim; it stands for one layer per stage and a hidden dim of 32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vitas.architecture import MAX_BLOCKS, MAX_TEXT, check_token_reduction, coarser_side
from vitas.costs import Array
from vitas.errors import UserError, require_integer, require_text

STAGES = 4
STEM_STRIDE = 4
STAGE_STRIDE = 2
MAX_DIM = 1024
# Above every number of a genotype that was ever built; see `vitas.architecture.MAX_DIM`.
MAX_NUMBER = 2**16
TOPOLOGY_HIDDEN_DIM = 32
TEXT_FORM = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"
TOPOLOGY_FORM = "8,2,3|4,1,2|4,1,4|4,1,6|32"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of equal blocks at one resolution.

    kernel: side of the patches that the projection into the stage reads, in
        pixels for the first stage and in tokens for the others.
    split: attention windows along each side of the stage's tokens.
    expansion: MLP dim over the stage's dim.
    layers: blocks.
    """

    kernel: int
    split: int
    expansion: int
    layers: int = 1


@dataclass(frozen=True, slots=True)
class Genotype:
    """A staged transformer, complete except for image size and class count.

    stages: four; stage i, from 0, has `min(1024, hidden_dim * 2**i)` dims,
        image_size / 4 / 2**i tokens along a side and heads / 2**(3 - i) heads.
    heads: of the last stage, a multiple of 8.
    hidden_dim: dims of the first stage.

    Raises `UserError`, naming the stage, if it cannot be built.
    """

    stages: tuple[Stage, ...]
    heads: int
    hidden_dim: int = TOPOLOGY_HIDDEN_DIM

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) != STAGES:
            raise UserError(f"a genotype has {STAGES} stages; found {len(self.stages)}")
        for number, stage in enumerate(self.stages, 1):
            # A kernel is padded by its excess over the stride, so it must be at least the stride.
            least = {"kernel": STEM_STRIDE if number == 1 else STAGE_STRIDE}
            for name in _STAGE_NUMBERS:
                if getattr(stage, name) < least.get(name, 1):
                    raise UserError(
                        f"genotype: {name} of stage {number} is {getattr(stage, name)}; "
                        f"it must be at least {least.get(name, 1)}"
                    )
                if getattr(stage, name) > MAX_NUMBER:
                    raise UserError(
                        f"genotype: {name} of stage {number} is {getattr(stage, name)}; "
                        f"it must be at most {MAX_NUMBER:,}"
                    )
        for name, value, most in (
            ("heads", self.heads, MAX_NUMBER),
            ("hidden dim", self.hidden_dim, MAX_NUMBER),
            ("layers of all stages", self.depth, MAX_BLOCKS),
        ):
            if value > most:
                raise UserError(f"genotype: {name} are {value}; they must be at most {most:,}")
        halvings = 2 ** (STAGES - 1)
        if self.heads < 1 or self.heads % halvings:
            raise UserError(
                f"genotype: heads are {self.heads}; they halve from the last stage to the first, "
                f"so they must be a multiple of {halvings}"
            )
        for number, (dim, heads) in enumerate(zip(self.dims, self.stage_heads, strict=True), 1):
            if heads > dim:
                raise UserError(f"genotype: stage {number} has {heads} heads, more than its {dim} dims")

    @property
    def dims(self) -> tuple[int, ...]:
        """Dims of each stage's tokens."""
        return tuple(min(MAX_DIM, self.hidden_dim * 2**i) for i in range(STAGES))

    @property
    def stage_heads(self) -> tuple[int, ...]:
        """Heads of each stage's attention."""
        return tuple(self.heads // 2 ** (STAGES - 1 - i) for i in range(STAGES))

    @property
    def attention_dims(self) -> tuple[int, ...]:
        """Dims of q (as of k and v) in each stage: the largest multiple of its heads up to its dims."""
        return tuple(dim // heads * heads for dim, heads in zip(self.dims, self.stage_heads, strict=True))

    @property
    def depth(self) -> int:
        """The number of blocks in all stages."""
        return sum(stage.layers for stage in self.stages)

    def resolutions(self, image_size: int, reduce: int = 1) -> tuple[int, ...]:
        """Tokens along a side, in each stage.

        reduce: how many times larger the stem's stride and dilation are. Half
            of an odd number of tokens is then rounded up.

        Raises `UserError` as `check_image_size` and `check_token_reduction` do.
        """
        self.check_token_reduction(image_size, reduce)
        found = [coarser_side(image_size // STEM_STRIDE, reduce)]
        for _ in range(STAGES - 1):
            found.append(coarser_side(found[-1], STAGE_STRIDE))
        return tuple(found)

    def splits(self, image_size: int, reduce: int = 1) -> tuple[int, ...]:
        """Attention windows along a side, in each stage; arguments and errors as in `resolutions`.

        This is the stage's own split if it divides the tokens, so that a window
        covers the same part of the image; otherwise the next smaller one that does.
        """
        return tuple(
            max(split for split in range(1, stage.split + 1) if resolution % split == 0)
            for stage, resolution in zip(self.stages, self.resolutions(image_size, reduce), strict=True)
        )

    def tokens_per_side(self, image_size: int, reduce: int = 1) -> int:
        """Tokens along a side of the first stage. Raises as `resolutions` does."""
        return self.resolutions(image_size, reduce)[0]

    def check_token_reduction(self, image_size: int, reduce: int) -> None:
        """Raise `UserError` unless images of this size have enough tokens for the reduction, an integer."""
        self.check_image_size(image_size)
        check_token_reduction(image_size // STEM_STRIDE, reduce)

    def check_image_size(self, image_size: int) -> None:
        """Raise `UserError` unless every stage halves the tokens evenly and the windows tile them."""
        _check_image_size(image_size, _image_step(stage.split for stage in self.stages), f"genotype {self}")

    def macs(self, image_size: int = 224, num_classes: int = 1000, convention: str = "true", *, reduce: int = 1) -> int:
        """MACs per image: of the projections, attention's two products, the MLPs and the head.

        `true` is the only convention: `released` is the count of ViTAS's
        budgets. As for an `Architecture`, norms, GELU and softmax are not
        counted.

        reduce: token reduction (see `resolutions`).

        Raises `UserError` for another convention, and as `resolutions` does.
        """
        if convention != "true":
            raise UserError(
                f"convention: found {convention!r}; it must be true for a genotype (released is the one of ViTAS)"
            )
        stages = sum(macs for macs, _ in self.stage_costs(image_size, reduce))
        return stages + self.dims[-1] ** 2 + self.dims[-1] * num_classes

    def parameters(self, image_size: int = 224, num_classes: int = 1000) -> int:
        """Parameters of the network, at any image size: there is no position embedding."""
        dim = self.dims[-1]
        stages = sum(self._stage_parameters(i) for i in range(STAGES))
        return stages + 2 * dim + dim * (dim + 1) + (dim + 1) * num_classes

    def costs(self, image_size: int = 224, num_classes: int = 1000) -> dict[str, int | None]:
        """`macs`, `macs_released` (None: that convention is ViTAS's) and `parameters`, as plain data."""
        return {
            "macs": self.macs(image_size, num_classes),
            "macs_released": None,
            "parameters": self.parameters(image_size, num_classes),
        }

    def stage_costs(self, image_size: int = 224, reduce: int = 1) -> list[tuple[int, int]]:
        """MACs and parameters of each stage, with the projection into it. Raises as `resolutions` does."""
        found = []
        sides = zip(self.resolutions(image_size, reduce), self.splits(image_size, reduce), strict=True)
        for i, (stage, (resolution, split)) in enumerate(zip(self.stages, sides, strict=True)):
            dim, attention_dim = self.dims[i], self.attention_dims[i]
            window_tokens = (resolution // split) ** 2
            projections = 4 * dim * attention_dim
            products = 2 * attention_dim * window_tokens
            block = projections + products + 2 * stage.expansion * dim**2
            macs = resolution**2 * (self._patch_values(i) * dim + stage.layers * block)
            found.append((macs, self._stage_parameters(i)))
        return found

    def _stage_parameters(self, i: int) -> int:
        stage, dim, attention_dim = self.stages[i], self.dims[i], self.attention_dims[i]
        # The stem has a bias, and a norm over its output. A reduction has no bias, and a norm over its input.
        projection = self._patch_values(i) * dim + (3 * dim if i == 0 else 2 * self._patch_values(i))
        attention = 3 * attention_dim * (dim + 1) + dim * (attention_dim + 1)
        mlp = 2 * stage.expansion * dim**2 + stage.expansion * dim + dim
        return projection + stage.layers * (attention + mlp + 4 * dim)

    def _patch_values(self, i: int) -> int:
        """The number of values that one token of a stage is projected from."""
        return self.stages[i].kernel ** 2 * (3 if i == 0 else self.dims[i - 1])

    @property
    def topology(self) -> str:
        """The text of the topology: kernels, splits, expansions and heads, without layers and hidden dim."""
        return "|".join([*(f"{s.kernel},{s.split},{s.expansion}" for s in self.stages), str(self.heads)])

    def __str__(self) -> str:
        """The canonical text, always with layers and hidden dim."""
        stages = (f"{s.kernel},{s.split},{s.expansion},{s.layers}" for s in self.stages)
        return "|".join([*stages, f"{self.heads},{self.hidden_dim}"])

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """The genotype of a text in the full or the topology form. Raises `UserError`, naming the wrong number."""
        if len(require_text(text, "genotype")) > MAX_TEXT:
            raise UserError(f"genotype {text!r} has {len(text):,} characters; it may have {MAX_TEXT:,}")
        parts = text.strip().split("|")
        if len(parts) != STAGES + 1:
            raise UserError(
                f"genotype {text!r}: found {len(parts)} parts; it must have {STAGES + 1}, "
                f"four stages and then the heads, like {TEXT_FORM} or {TOPOLOGY_FORM}"
            )
        last = _numbers(text, parts[-1], "the last part", ("heads", "hidden dim"), 1)
        stages = tuple(_numbers(text, part, f"stage {i}", _STAGE_NUMBERS, 3) for i, part in enumerate(parts[:-1], 1))
        lengths = {len(stage) for stage in stages}
        if lengths != {len(last) + 2}:
            raise UserError(
                f"genotype {text!r}: it must have the layers of every stage and the hidden dim, or none of these, "
                f"like {TEXT_FORM} or {TOPOLOGY_FORM}"
            )
        try:
            return cls(tuple(Stage(*stage) for stage in stages), *last)
        except UserError as error:
            raise UserError(f"{text}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The YAML form: plain numbers and lists."""
        return {
            "stages": [{name: getattr(stage, name) for name in _STAGE_NUMBERS} for stage in self.stages],
            "heads": self.heads,
            "hidden_dim": self.hidden_dim,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Genotype:
        """The genotype of a YAML form; `layers` and `hidden_dim` may be left out, as in a topology."""
        _check_keys(data, "genotype", required={"stages", "heads"}, optional={"hidden_dim"})
        if not isinstance(data["stages"], list):
            raise UserError(f"genotype.stages is {data['stages']!r}; it must be a list of {STAGES} stages")
        stages = []
        for i, entry in enumerate(data["stages"]):
            place = f"genotype.stages[{i}]"
            if not isinstance(entry, Mapping):
                raise UserError(f"{place} is {entry!r}; it must hold {', '.join(_STAGE_NUMBERS)}")
            _check_keys(entry, place, required=set(_STAGE_NUMBERS) - {"layers"}, optional={"layers"})
            stages.append(Stage(**{name: require_integer(value, f"{place}.{name}") for name, value in entry.items()}))
        numbers = {
            name: require_integer(data[name], f"genotype.{name}") for name in ("heads", "hidden_dim") if name in data
        }
        return cls(tuple(stages), **numbers)


_STAGE_NUMBERS = tuple(field.name for field in fields(Stage))


@dataclass(frozen=True)
class GenotypeSpace:
    """The topologies of As-ViT's search: all combinations of independent choices.

    kernels, splits, expansions: allowed values, a tuple per stage.
    heads: allowed heads of the last stage.

    The defaults are the published space. A genome is a row of indices, one for
    each of `choices`. Raises `UserError`, beginning with the field, if any
    topology of the space cannot be built.
    """

    kernels: tuple[tuple[int, ...], ...] = ((4, 5, 6, 7, 8), (2, 3, 4), (2, 3, 4), (2, 3, 4))
    splits: tuple[tuple[int, ...], ...] = ((2, 4, 8), (1, 2, 4), (1, 2), (1,))
    expansions: tuple[tuple[int, ...], ...] = ((2, 3, 4, 5, 6),) * STAGES
    heads: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        for name in ("kernels", "splits", "expansions"):
            values = tuple(_distinct(name, stage) for stage in getattr(self, name))
            if len(values) != STAGES:
                raise UserError(f"{name}: found {len(values)} lists; there are {STAGES} stages")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "heads", _distinct("heads", self.heads))
        # Each value can be checked alone, so it is enough that every one of them is in a decoded topology.
        for column in range(max(len(values) for values in self.choices.values())):
            self.decode([min(column, len(values) - 1) for values in self.choices.values()])

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """The names of the genes, in order, and the allowed values of each."""
        named = {}
        for i in range(STAGES):
            named[f"kernel {i + 1}"] = self.kernels[i]
            named[f"split {i + 1}"] = self.splits[i]
            named[f"expansion {i + 1}"] = self.expansions[i]
        return named | {"heads": self.heads}

    @property
    def gene_counts(self) -> Array:
        """The number of values of each gene, an integer array [genes]."""
        return np.array([len(values) for values in self.choices.values()])

    @property
    def size(self) -> int:
        """The number of topologies."""
        return math.prod(len(values) for values in self.choices.values())

    def decode(self, genome: Sequence[int] | Array) -> Genotype:
        """The topology of a genome [genes]. Raises `UserError` for a wrong length or a gene out of range."""
        choices = self.choices
        if len(genome) != len(choices):
            raise UserError(f"genome has {len(genome)} genes; this space's genomes have {len(choices)}")
        values = []
        for gene, (name, allowed) in zip(genome, choices.items(), strict=True):
            if not 0 <= gene < len(allowed):
                raise UserError(f"the gene {name} of the genome is {gene}; it must be from 0 to {len(allowed) - 1}")
            values.append(allowed[gene])
        stages = tuple(Stage(*values[3 * i : 3 * i + 3]) for i in range(STAGES))
        return Genotype(stages, values[-1])

    def encode(self, genotype: Genotype) -> Array:
        """The genome of a genotype's topology, an integer array [genes]; layers and hidden dim are ignored.

        Raises `UserError`, naming what is outside the space.
        """
        values = [value for s in genotype.stages for value in (s.kernel, s.split, s.expansion)] + [genotype.heads]
        genome = []
        for value, (name, allowed) in zip(values, self.choices.items(), strict=True):
            if value not in allowed:
                choices = ", ".join(map(str, allowed))
                raise UserError(f"{genotype}: {name} is {value}; in this space it is one of {choices}")
            genome.append(allowed.index(value))
        return np.array(genome)

    def sample_genomes(self, rng: np.random.Generator, count: int) -> Array:
        """`count` random genomes [count, genes]; every value of a gene is equally likely."""
        return rng.integers(0, self.gene_counts, size=(count, self.gene_counts.size))

    def sample(self, rng: np.random.Generator) -> Genotype:
        """A random topology."""
        return self.decode(self.sample_genomes(rng, 1)[0])

    def check_image_size(self, image_size: int) -> None:
        """Raise `UserError` unless every topology fits images of this size."""
        _check_image_size(image_size, _image_step(math.lcm(*splits) for splits in self.splits), "this space")


def _image_step(splits: Iterable[int]) -> int:
    """The smallest image size that fits; all that fit are its multiples."""
    return math.lcm(*(STEM_STRIDE * STAGE_STRIDE**i * split for i, split in enumerate(splits)))


def _check_image_size(image_size: int, step: int, who: str) -> None:
    if image_size > 0 and image_size % step == 0:
        return
    below = image_size // step * step
    nearest = [str(size) for size in (below, below + step) if size > 0]
    raise UserError(
        f"image size {image_size} does not fit {who}: its stages and windows divide multiples of {step}; "
        f"the nearest {'is' if len(nearest) == 1 else 'are'} {' and '.join(nearest)}"
    )


def _numbers(text: str, part: str, place: str, names: tuple[str, ...], least: int) -> tuple[int, ...]:
    words = part.split(",")
    if not least <= len(words) <= len(names):
        raise UserError(
            f"genotype {text!r}: {place} is {part!r}; it must hold {', '.join(names[:least])}"
            f" and, but for a topology, {names[-1]}"
        )
    for word, name in zip(words, names, strict=False):
        # int() takes the digits of all scripts, and any number of them; nine are above every limit.
        if not re.fullmatch(r" *[0-9]{1,9} *", word):
            raise UserError(
                f"genotype {text!r}: {name} in {place} is {word!r}; it must be a whole number of at most 9 digits"
            )
    return tuple(int(word) for word in words)


def _check_keys(data: Mapping[str, Any], place: str, required: set[str], optional: set[str]) -> None:
    unknown = sorted(set(data) - required - optional, key=str)
    missing = sorted(required - set(data))
    if unknown or missing:
        fault = f"unknown key {unknown[0]!r}" if unknown else f"no key {missing[0]!r}"
        raise UserError(f"{place}: {fault}; its keys are {', '.join(sorted(required | optional))}")


def _distinct(name: str, values: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values)
    if not values or len(set(values)) < len(values):
        raise UserError(f"{name}: found {list(values)}; it must be a list of different numbers")
    return values

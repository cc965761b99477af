"""`SearchSpace`: the architectures that may be searched, and the conversion between genomes and architectures.

A genome is a row of small integers. In per-block spaces its layout is that of
the released `net_id`, without the two constant entries for norm and classifier:

    patch index, one choice per position, embedding width, (qkv, MLP) width per position

A choice is an index into `heads`; the index after the last one is the identity,
where the space has identities. In the block-level ("cell") space, where all
blocks are equal, it is

    patch index, heads index, embedding width, qkv width, MLP width[, identities]

`vitas.elastic_space` has the space of a pretrained network, with the same methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from operator import index
from typing import Annotated, ClassVar, Literal, SupportsIndex, TypeAlias, TypeVar

import numpy as np
from pydantic import ConfigDict

from vitas.architecture import CLASSIFIERS, IDENTITY, MAX_BLOCKS, MAX_DIM, MAX_TEXT, Architecture, Block
from vitas.config_section import DATACLASS_SECTION, Flag, Number, Positive, as_tuple
from vitas.costs import Array
from vitas.errors import UserError

# Values of a choice: more than a search tells apart, and checks grow with their products.
MAX_CHOICES = 64

Value = TypeVar("Value", int, float)
# What the values of a gene stand for.
Dims: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """The maximal dims of the architectures, and the ratios that their widths take: `model.space` of the YAML.

    patch_sizes: allowed patch sizes, in pixels.
    embed_dim, qkv_dim, mlp_dim: the largest embedding dim, dims of q, k and v
        together (1440 is an attention dim of 480) and MLP dim.
    depth: positions for blocks.
    heads: allowed head counts of a block.
    widths: ratios in (0, 1], ascending; a width is `round(maximum * ratio)`.
    identity: a position may hold the identity, so depth is searched too.
    shared_blocks: all blocks are equal (ViTAS's block-level space; ViTAS-C).
    classifier: `token` or `mean`, the same for all architectures.

    Raises `UserError`, beginning with the field, if any architecture of the
    space cannot be built.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DATACLASS_SECTION
    # Tells it from the shares of a pretrained network, which may stand in the same place of the YAML.
    tag: ClassVar[str] = "searched"
    family: ClassVar[str] = "vitas"
    prefix_tokens: ClassVar[int] = 1
    # A block may stand at any position, so blocks can be doubled and left out.
    blocks_move: ClassVar[bool] = True

    patch_sizes: Annotated[tuple[Positive, ...], as_tuple]
    embed_dim: Positive
    depth: Positive
    heads: Annotated[tuple[Positive, ...], as_tuple]
    qkv_dim: Positive
    mlp_dim: Positive
    widths: Annotated[tuple[Number, ...], as_tuple]
    identity: Flag = True
    shared_blocks: Flag = False
    classifier: Literal["token", "mean"] = "token"

    def __post_init__(self) -> None:
        for name in ("patch_sizes", "heads", "widths"):
            object.__setattr__(self, name, ascending(name, getattr(self, name)))
        limits = {"embed_dim": MAX_DIM, "depth": MAX_BLOCKS, "qkv_dim": 3 * MAX_DIM, "mlp_dim": MAX_DIM}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}: found {getattr(self, name)}; it must be from 1 to {most:,}")
        for name in ("patch_sizes", "heads"):
            if getattr(self, name)[-1] > MAX_DIM:
                raise UserError(f"{name}: found {getattr(self, name)[-1]}; it must be at most {MAX_DIM:,}")
        if self.widths[-1] > 1:
            raise UserError(f"widths: found {self.widths[-1]}; ratios must be above 0 and at most 1")
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"classifier: found {self.classifier!r}; it must be {' or '.join(CLASSIFIERS)}")
        for name in ("embed_dim", "qkv_dim", "mlp_dim"):
            dims = self._dims(getattr(self, name))
            if dims[0] < 1 or len(set(dims)) < len(dims):
                raise UserError(
                    f"widths: found {list(self.widths)}, which give {name} the widths {list(dims)}; "
                    "each ratio must give a width of its own, at least 1"
                )
        if self.heads[-1] > self.embed_dims[0]:
            raise UserError(
                f"heads: found {self.heads[-1]}, more than the smallest embedding dim {self.embed_dims[0]} "
                f"(embed_dim {self.embed_dim} at width {self.widths[0]})"
            )
        for ratio, qkv_dim in zip(self.widths, self.qkv_dims, strict=True):
            for heads in self.heads:
                if qkv_dim % (3 * heads):
                    raise UserError(
                        f"heads: found {heads}, which does not divide the attention dim {qkv_dim / 3:g} "
                        f"(qkv_dim {self.qkv_dim} at width {ratio}, a third of {qkv_dim}); "
                        "every head count must divide the attention dim of every width"
                    )

    def _dims(self, maximum: int) -> tuple[int, ...]:
        return _scaled(maximum, self.widths)

    @property
    def embed_dims(self) -> tuple[int, ...]:
        return self._dims(self.embed_dim)

    @property
    def qkv_dims(self) -> tuple[int, ...]:
        return self._dims(self.qkv_dim)

    @property
    def attention_dim(self) -> int:
        """The largest attention dim."""
        return self.qkv_dim // 3

    @property
    def attention_dims(self) -> tuple[int, ...]:
        return tuple(dim // 3 for dim in self.qkv_dims)

    @property
    def mlp_dims(self) -> tuple[int, ...]:
        return self._dims(self.mlp_dim)

    @property
    def depths(self) -> range:
        """How many blocks a member may have, ascending."""
        return range(1 if self.identity else self.depth, self.depth + 1)

    @property
    def has_net_ids(self) -> bool:
        """Whether its architectures have a `net_id` in released files."""
        return not self.shared_blocks

    @property
    def block_kinds(self) -> Array:
        """Which kinds of block there are [rows, kinds], true or false. One row speaks for all positions.

        A kind is (heads, qkv width, MLP width) as one number.
        """
        return np.ones((1, len(self.heads) * len(self.widths) ** 2), dtype=bool)

    def block_positions(self, depth: int) -> tuple[int, ...]:
        """The positions of the supernet's blocks that the blocks of a member of this depth use."""
        return tuple(range(depth))

    def dims_of_blocks(self, depth: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The attention dims and the MLP dims that each block of a member of this depth may have."""
        return [self.attention_dims] * depth, [self.mlp_dims] * depth

    @property
    def size(self) -> int:
        """The number of different networks; genomes that differ only in the places of identities count once."""
        block_kinds = len(self.heads) * len(self.widths) ** 2
        depths = self.depths
        bodies = len(depths) * block_kinds if self.shared_blocks else sum(block_kinds**depth for depth in depths)
        return len(self.patch_sizes) * len(self.widths) * bodies

    @property
    def gene_counts(self) -> Array:
        """The number of values of each gene, an integer array [genes]."""
        patches, heads, widths = len(self.patch_sizes), len(self.heads), len(self.widths)
        if self.shared_blocks:
            return np.array([patches, heads, widths, widths, widths] + [self.depth] * self.identity)
        choices = heads + self.identity
        return np.array([patches] + [choices] * self.depth + [widths] * (1 + 2 * self.depth))

    @property
    def gene_limits(self) -> GenomeColumns:
        """The number of values of each gene, by name; of a choice, without the identity."""
        of_blocks = (np.full((1, self.depth), len(values)) for values in (self.heads, self.widths, self.widths))
        choice, qkv, mlp = of_blocks
        patch, embed = (np.array([len(values)]) for values in (self.patch_sizes, self.widths))
        return GenomeColumns(patch, embed, choice, qkv, mlp, np.ones((1, self.depth), dtype=bool))

    def columns(self, genomes: Array) -> GenomeColumns:
        """Named views of genomes [population, genes]."""
        genomes = np.atleast_2d(genomes)
        if self.shared_blocks:
            identities = genomes[:, 5:6] if self.identity else np.zeros_like(genomes[:, :1])
            active = np.arange(self.depth) < self.depth - identities
            per_block = [np.broadcast_to(genomes[:, i : i + 1], active.shape) for i in (1, 3, 4)]
            return GenomeColumns(genomes[:, 0], genomes[:, 2], per_block[0], per_block[1], per_block[2], active)
        choice = genomes[:, 1 : 1 + self.depth]
        widths = genomes[:, 2 + self.depth :]
        return GenomeColumns(
            genomes[:, 0],
            genomes[:, 1 + self.depth],
            choice,
            widths[:, 0::2],
            widths[:, 1::2],
            choice < len(self.heads),
        )

    def dims(self, columns: GenomeColumns) -> BlockDims:
        """Heads, attention dims and MLP dims of genomes' blocks [population, depth]; 0 where there is none."""

        def chosen(values: Sequence[int], choices: Array) -> Array:
            return np.where(columns.active, np.array([*values, 0])[choices], 0)

        return BlockDims(
            chosen(self.heads, columns.choice),
            chosen(self.attention_dims, columns.qkv),
            chosen(self.mlp_dims, columns.mlp),
        )

    def width_genes(self, columns: GenomeColumns) -> dict[str, tuple[Array, Array, tuple[Dims, ...]]]:
        """For each kind of width: its genes, where they are used, and the dims that they stand for, by position."""
        return {
            "embed": (columns.embed[:, None], np.ones((len(columns.embed), 1), dtype=bool), (self.embed_dims,)),
            "attention": (columns.qkv, columns.active, (self.attention_dims,) * self.depth),
            "mlp": (columns.mlp, columns.active, (self.mlp_dims,) * self.depth),
        }

    def decode(self, genome: Sequence[int] | Array) -> Architecture:
        """The architecture of a genome. Raises `UserError` for a wrong length or a gene out of range."""
        genes = np.asarray(genome)
        limits = self.gene_counts
        if genes.shape != limits.shape:
            raise UserError(f"genome has {genes.size} genes; this space's genomes have {limits.size}")
        for i, (gene, limit) in enumerate(zip(genes, limits, strict=True)):
            if not 0 <= gene < limit:
                raise UserError(f"gene {i} of the genome is {gene}; it must be from 0 to {limit - 1}")
        one = self.columns(genes)
        blocks = tuple(
            Block.of(self.heads[choice], self.qkv_dims[qkv], self.mlp_dims[mlp]) if active else IDENTITY
            for choice, qkv, mlp, active in zip(one.choice[0], one.qkv[0], one.mlp[0], one.active[0], strict=True)
        )
        return Architecture(self.patch_sizes[one.patch[0]], self.embed_dims[one.embed[0]], blocks, self.classifier)

    def encode(self, architecture: Architecture) -> Array:
        """The genome of an architecture, an integer array [genes]; width genes of identities are 0.

        An architecture with fewer positions than the space is filled up with
        identities. Raises `UserError`, naming what is outside the space.
        """
        missing = self.depth - len(architecture.blocks)
        if self.identity and missing > 0:
            architecture = replace(architecture, blocks=architecture.blocks + (IDENTITY,) * missing)
        patch = self._index("patch size", self.patch_sizes, architecture.patch_size)
        embed = self._index("embedding dim", self.embed_dims, architecture.embed_dim)
        if architecture.family != self.family:
            raise UserError(f"{architecture}: a space of the family {self.family} has none of {architecture.family}")
        if architecture.classifier != self.classifier:
            raise UserError(f"{architecture}: this space's classifier is {self.classifier}")
        if len(architecture.blocks) != self.depth:
            raise UserError(f"{architecture} has {len(architecture.blocks)} positions; this space has {self.depth}")
        if not self.identity and architecture.depth < self.depth:
            raise UserError(f"{architecture} holds an identity; this space has none")
        rows = [self._block_genes(block) for block in architecture.blocks]
        if self.shared_blocks:
            kinds = set(architecture.active_blocks)
            if len(kinds) != 1 or architecture != architecture.shifted():
                raise UserError(f"{architecture}: this space repeats one block, identities last")
            choice, qkv, mlp = rows[0]
            identities = [self.depth - architecture.depth] if self.identity else []
            return np.array([patch, choice, embed, qkv, mlp, *identities])
        choices = [row[0] for row in rows]
        widths = [gene for row in rows for gene in row[1:]]
        return np.array([patch, *choices, embed, *widths])

    def _block_genes(self, block: Block) -> tuple[int, int, int]:
        if block.is_identity:
            return len(self.heads), 0, 0
        return (
            self._index("head count", self.heads, block.heads),
            self._index("qkv dim", self.qkv_dims, block.qkv_dim),
            self._index("MLP dim", self.mlp_dims, block.mlp_dim),
        )

    @staticmethod
    def _index(what: str, allowed: tuple[int, ...], value: int) -> int:
        if value not in allowed:
            raise UserError(f"{what} {value} is not in this space: {', '.join(map(str, allowed))}")
        return allowed.index(value)

    def canonical(self, genomes: Array) -> Array:
        """Genomes [population, genes] with identities last and 0 in unused genes.

        Two genomes give the same network if and only if their canonical rows are equal.
        """
        genomes = np.array(np.atleast_2d(genomes))
        if self.shared_blocks:
            return genomes
        columns = self.columns(genomes)
        # A stable sort on "is an identity" keeps the order of the blocks.
        order = np.argsort(~columns.active, axis=1, kind="stable")
        active = np.take_along_axis(columns.active, order, axis=1)
        shifted = [np.take_along_axis(part, order, axis=1) for part in (columns.choice, columns.qkv, columns.mlp)]
        columns.choice[:] = np.where(active, shifted[0], len(self.heads))
        columns.qkv[:] = np.where(active, shifted[1], 0)
        columns.mlp[:] = np.where(active, shifted[2], 0)
        return genomes

    def rearranged(self, genome: Array, blocks: Sequence[int] | Array) -> Array:
        """The canonical genome [genes] whose blocks are these positions of a genome; a position may come repeatedly.

        For per-block spaces, and at most `depth` blocks.
        """
        return self._rearrangements(genome, np.array(blocks, dtype=np.int64)[None]).reshape(genome.shape)

    def _rearrangements(self, genome: Array, blocks: Array) -> Array:
        """As `rearranged`, for several lists of positions [count, blocks]: genomes [count, genes]."""
        result = np.repeat(genome[None], len(blocks), axis=0)
        old, new = self.columns(genome), self.columns(result)
        for name, unused in (("choice", len(self.heads)), ("qkv", 0), ("mlp", 0)):
            part = getattr(new, name)
            part[:, : blocks.shape[1]] = getattr(old, name)[0, blocks]
            part[:, blocks.shape[1] :] = unused
        return result

    def with_blocks(self, patch: int | Array, embed: int | Array, depth: int | Array, kinds: Array) -> Array:
        """Canonical genomes [count, genes] from gene values or arrays [count], and kinds of block [count, depth].

        Where all blocks are equal, the kind of the first is that of all.
        """
        count, widths = len(kinds), len(self.widths)
        heads, qkv, mlp = kinds // widths**2, kinds // widths % widths, kinds % widths
        genomes = np.empty((count, self.gene_counts.size), dtype=np.int64)
        genomes[:, 0] = patch
        depth = np.broadcast_to(depth, count)
        if self.shared_blocks:
            genomes[:, 1], genomes[:, 2], genomes[:, 3], genomes[:, 4] = heads[:, 0], embed, qkv[:, 0], mlp[:, 0]
            if self.identity:
                genomes[:, 5] = self.depth - depth
            return genomes
        genomes[:, 1 + self.depth] = embed
        columns = self.columns(genomes)
        active = np.arange(self.depth) < depth[:, None]
        columns.choice[:] = np.where(active, heads, len(self.heads))
        columns.qkv[:] = np.where(active, qkv, 0)
        columns.mlp[:] = np.where(active, mlp, 0)
        return genomes

    def complementary(self, genome: Array) -> Array:
        """The canonical genome with the complementary widths: the last ratio where it had the first, and so on."""
        result = genome.copy()
        last = len(self.widths) - 1
        if self.shared_blocks:
            result[2:5] = last - result[2:5]
            return result
        columns = self.columns(result)
        columns.embed[:] = last - columns.embed
        columns.qkv[:] = np.where(columns.active, last - columns.qkv, 0)
        columns.mlp[:] = np.where(columns.active, last - columns.mlp, 0)
        return result

    def single_changes(self, genome: Array) -> Array:
        """All canonical genomes [changes, genes] that are one change away from a canonical genome, with its patch size.

        A change is another value of a gene, a block that is left out, or a block
        that is doubled: the copy stands next to it.
        """
        counts = self.gene_counts
        changed = [np.empty((0, counts.size), dtype=np.int64)]
        if self.shared_blocks:
            genes = [*range(1, counts.size)]
        else:
            depth = int(self.columns(genome).active.sum())
            # The genes of blocks that are there, and the embedding dim.
            widths = range(2 + self.depth, 2 + self.depth + 2 * depth)
            genes = [*range(1, 1 + depth), 1 + self.depth, *widths]
            place, turn = np.arange(depth), np.arange(depth)[:, None]
            if self.identity and depth > 1:
                changed.append(self._rearrangements(genome, place[:-1] + (place[:-1] >= turn)))
            if depth < self.depth:
                longer = np.arange(depth + 1)
                changed.append(self._rearrangements(genome, longer - (longer > turn)))
        # Leaving a block out is above.
        values = [len(self.heads) if 1 <= g <= self.depth and not self.shared_blocks else counts[g] for g in genes]
        gene = np.repeat(genes, values)
        # Of each gene 0, 1, 2, ...
        value = np.arange(len(gene)) - np.repeat(np.cumsum(values) - values, values)
        gene, value = gene[value != genome[gene]], value[value != genome[gene]]
        replaced = np.repeat(genome[None], len(gene), axis=0)
        replaced[np.arange(len(gene)), gene] = value
        return np.concatenate([*changed, replaced])

    def extreme(self, genome: Array, widest: bool) -> Array:
        """The canonical genome [genes] of the largest network, or the smallest, with a genome's patch size.

        Head counts are those of the genome, repeated where it has no block.
        """
        gene = len(self.widths) - 1 if widest else 0
        depth = self.depth if widest or not self.identity else 1
        if self.shared_blocks:
            result = genome.copy()
            result[2:5] = gene
            if self.identity:
                result[5] = self.depth - depth
            return result
        active = int(self.columns(genome).active.sum())
        result = self.rearranged(genome, np.arange(depth) % active)
        columns = self.columns(result)
        columns.embed[:] = gene
        columns.qkv[:] = np.where(columns.active, gene, 0)
        columns.mlp[:] = np.where(columns.active, gene, 0)
        return result

    def sample_genomes(self, rng: np.random.Generator, count: int, identity_probability: float | None = None) -> Array:
        """`count` random canonical genomes [count, genes], each with at least one block.

        `identity_probability` applies to each position; by default an identity
        is as likely as any head count (in the block-level space: every depth
        is equally likely).
        """
        genomes = rng.integers(0, self.gene_counts, size=(count, self.gene_counts.size))
        if not self.identity:
            return genomes
        if self.shared_blocks:
            if identity_probability is not None:
                draws = rng.random((count, self.depth)) < identity_probability
                genomes[:, 5] = np.minimum(draws.sum(axis=1), self.depth - 1)
            return genomes
        heads = len(self.heads)
        probability = 1 / (heads + 1) if identity_probability is None else identity_probability
        choice = rng.integers(0, heads, size=(count, self.depth))
        identity = rng.random((count, self.depth)) < probability
        identity[identity.all(axis=1), 0] = False
        genomes[:, 1 : 1 + self.depth] = np.where(identity, heads, choice)
        return self.canonical(genomes)

    def sample(self, rng: np.random.Generator, identity_probability: float | None = None) -> Architecture:
        """A random architecture with at least one block, identities last (see `sample_genomes`)."""
        return self.decode(self.sample_genomes(rng, 1, identity_probability)[0])

    def to_net_id(self, architecture: Architecture) -> str:
        """The `net_id` of an architecture in released ViTAS files; per-block spaces only."""
        self._check_net_id_space()
        genome = self.encode(architecture)
        model_len = 1 + self.depth
        return " ".join(map(str, [*genome[:model_len], 0, 0, *genome[model_len:]]))

    def from_net_id(self, net_id: str | Sequence[int]) -> Architecture:
        """The architecture of a released `net_id`; identities keep their positions."""
        self._check_net_id_space()
        if isinstance(net_id, str) and len(net_id) > MAX_TEXT:
            raise UserError(f"net_id: found {len(net_id):,} characters; it may have {MAX_TEXT:,}")
        try:
            entries = [_gene(entry) for entry in (net_id.split() if isinstance(net_id, str) else net_id)]
        except (TypeError, ValueError):
            raise UserError(f"net_id: found {net_id!r}; it must be integers separated by spaces") from None
        model_len = 1 + self.depth
        expected = self.gene_counts.size + 2
        if len(entries) != expected:
            raise UserError(
                f"net_id has {len(entries)} integers; this space of {self.depth} positions needs {expected}"
            )
        if entries[model_len : model_len + 2] != [0, 0]:
            raise UserError(
                f"net_id entries {model_len + 1} and {model_len + 2} (norm, classifier) are "
                f"{entries[model_len : model_len + 2]}; they must be 0"
            )
        return self.decode(entries[:model_len] + entries[model_len + 2 :])

    def _check_net_id_space(self) -> None:
        if self.shared_blocks:
            raise UserError("net_id names architectures of per-block spaces; this space shares its blocks")


def _gene(entry: SupportsIndex | str) -> int:
    """The integer of an entry of a net_id, where it is a text of nine characters at most, or an integer."""
    if not isinstance(entry, str):
        return index(entry)
    if len(entry) > 9:
        raise ValueError
    return int(entry)


@dataclass(frozen=True)
class BlockDims:
    """Of the blocks of genomes: arrays [population, depth]; 0 where there is no block."""

    heads: Array
    attention: Array
    mlp: Array


@dataclass(frozen=True)
class GenomeColumns:
    """Parts of genomes: patch and embed [population]; choice, qkv, mlp, active [population, depth]."""

    patch: Array
    embed: Array
    choice: Array
    qkv: Array
    mlp: Array
    active: Array


def ascending(name: str, values: Sequence[Value]) -> tuple[Value, ...]:
    """The values as a tuple. Raises `UserError`, beginning with the name, unless they are ascending and above 0."""
    found = tuple(values)
    if len(found) > MAX_CHOICES:
        raise UserError(f"{name}: found {len(found):,} values; it may hold {MAX_CHOICES}")
    rising = all(a < b for a, b in pairwise(found))
    if not found or not rising or not all(math.isfinite(v) for v in found) or found[0] <= 0:
        raise UserError(f"{name}: found {list(found)}; it must be a list of ascending numbers above 0")
    return found


@cache
def _scaled(maximum: int, widths: tuple[float, ...]) -> tuple[int, ...]:
    """The dims of all width ratios; asked for with every genome that is looked at."""
    return tuple(round(maximum * ratio) for ratio in widths)

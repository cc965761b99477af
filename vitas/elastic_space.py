"""The space of a pretrained network: what may be taken from it, as shares of its dims.

The network is the widest member. A member keeps some of its channels, of each
block some whole heads and some units of the MLP, and some of its blocks. Which
blocks a member of a depth has is decided once, by their importance: the depth
says it. So an `Architecture` still says all that a member is.

A genome is a row of small integers:

    patch index (0), depth, embedding width, heads of each block, MLP width of each block

with 0 in the genes of blocks that are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
from pydantic import ConfigDict

from vitas.architecture import Architecture, Block
from vitas.config_section import DATACLASS_SECTION, Share, as_tuple
from vitas.costs import Array
from vitas.errors import UserError, is_integer
from vitas.plain_data import read_yaml
from vitas.space import BlockDims, Dims, GenomeColumns, SearchSpace, ascending

ShareList = Annotated[tuple[Share, ...], as_tuple]
# The rules by which a network is ordered, and what each looks at (`vitas.importance`).
SCORES = {
    "taylor": "how much the loss would change without it, to first order",
    "activation": "how large its activations are",
    "magnitude": "how large its weights are",
}
# What `keep` may hold, beside single blocks.
PARTS = ("embed", "heads", "mlp", "depth")
_BLOCK = re.compile(r"blocks\.([0-9]{1,9})")


@dataclass(frozen=True)
class Shares:
    """Which shares of a pretrained network's dims its members may have: `model.space` beside `model.from_pretrained`.

    embed, heads, mlp: of the embedding dim, of each block's heads (whole heads), of each block's MLP dim.
    depth: of the number of blocks. 1 is always among them.
    keep: what stays as it is: `embed`, `heads`, `mlp`, `depth`, or `blocks.N`, which then is neither narrowed nor
        left out.

    Raises `UserError`, beginning with the field.
    """

    __pydantic_config__: ClassVar[ConfigDict] = DATACLASS_SECTION
    # Tells it from `SearchSpace`, which may stand in the same place.
    tag: ClassVar[str] = "shares"

    embed: ShareList = (0.5, 0.625, 0.75, 0.875, 1.0)
    heads: ShareList = (0.5, 0.75, 1.0)
    mlp: ShareList = (0.25, 0.5, 0.75, 1.0)
    depth: ShareList = (0.5, 0.75, 1.0)
    keep: Annotated[tuple[str, ...], as_tuple] = ()

    def __post_init__(self) -> None:
        for name in PARTS:
            shares = ascending(name, getattr(self, name))
            if shares[-1] > 1:
                raise UserError(f"{name}: found {shares[-1]}; shares must be above 0 and at most 1")
            # The network itself is a member.
            object.__setattr__(self, name, shares if shares[-1] == 1 else (*shares, 1.0))
        for name in self.keep:
            if name not in PARTS and not _BLOCK.fullmatch(name):
                raise UserError(f"keep: found {name!r}; it must be {', '.join(PARTS)} or blocks.N (from 0)")

    @property
    def kept_blocks(self) -> frozenset[int]:
        """The positions of the blocks that stay as they are."""
        return frozenset(int(match[1]) for name in self.keep if (match := _BLOCK.fullmatch(name)))

    def of(self, part: str) -> tuple[float, ...]:
        """The shares of a part; 1 alone where it is kept."""
        return (1.0,) if part in self.keep else getattr(self, part)


@dataclass(frozen=True)
class ElasticSpace:
    """The members of a pretrained network. It has the methods of `SearchSpace`.

    network: the architecture of the network, of the family `vit`, without identities.
    block_order: its blocks' positions, the most important first.
    shares: what members may have.

    Raises `UserError`, beginning with the field of `shares`, where they do not fit the network.
    """

    network: Architecture
    block_order: tuple[int, ...]
    shares: Shares = Shares()

    # As of `SearchSpace`: depth is searched where members of several depths exist.
    shared_blocks: ClassVar[bool] = False
    blocks_move: ClassVar[bool] = False
    has_net_ids: ClassVar[bool] = False
    family: ClassVar[str] = "vit"

    def __post_init__(self) -> None:
        count = len(self.network.blocks)
        if self.network.family != "vit" or self.network.depth != count:
            raise UserError(f"{self.network} is not of the family vit, or holds identities")
        if not count:
            raise UserError(f"{self.network} has no blocks, so nothing can be taken from it")
        if not all(map(is_integer, self.block_order)) or sorted(self.block_order) != list(range(count)):
            raise UserError(f"block_order: found {list(self.block_order)}; it must order the blocks 0 to {count - 1}")
        beyond = [block for block in self.shares.kept_blocks if block >= count]
        if beyond:
            raise UserError(f"keep: found blocks.{beyond[0]}; the network's blocks are 0 to {count - 1}")
        if self.embed_dims[0] < 1:
            raise UserError(f"embed: found {self.shares.embed[0]} of {self.network.embed_dim} channels, which is none")

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        return (self.network.patch_size,)

    @property
    def classifier(self) -> str:
        return self.network.classifier

    @property
    def prefix_tokens(self) -> int:
        return self.network.prefix_tokens

    @property
    def depth(self) -> int:
        """The blocks of the network; a member may have fewer."""
        return len(self.network.blocks)

    @cached_property
    def embed_dims(self) -> tuple[int, ...]:
        return _widths(self.network.embed_dim, self.shares.of("embed"))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many blocks a member may have, ascending."""
        least = max(1, len(self.shares.kept_blocks))
        wanted = {max(least, depth) for depth in _widths(self.depth, self.shares.of("depth"))}
        return tuple(sorted(wanted))

    @property
    def identity(self) -> bool:
        return len(self.depths) > 1

    @cached_property
    def head_counts(self) -> tuple[tuple[int, ...], ...]:
        """The head counts that each block may have, ascending."""
        return self._of_blocks("heads", [block.heads for block in self.network.blocks])

    @cached_property
    def mlp_counts(self) -> tuple[tuple[int, ...], ...]:
        """The MLP dims that each block may have, ascending."""
        return self._of_blocks("mlp", [block.mlp_dim for block in self.network.blocks])

    def _of_blocks(self, part: str, maxima: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        shares, kept = self.shares.of(part), self.shares.kept_blocks
        return tuple(_widths(value, (1.0,) if i in kept else shares) for i, value in enumerate(maxima))

    @cached_property
    def head_dims(self) -> tuple[int, ...]:
        """The dims of a head of each block."""
        return tuple(block.attention_dim // block.heads for block in self.network.blocks)

    @cached_property
    def _positions(self) -> dict[int, tuple[int, ...]]:
        kept = self.shares.kept_blocks
        order = [*sorted(kept), *(block for block in self.block_order if block not in kept)]
        return {depth: tuple(sorted(order[:depth])) for depth in self.depths}

    def block_positions(self, depth: int) -> tuple[int, ...]:
        """Which blocks of the network a member of this depth has, in their order."""
        if depth not in self._positions:
            raise UserError(f"depth {depth} is not in this space: {', '.join(map(str, self.depths))}")
        return self._positions[depth]

    def dims_of_blocks(self, depth: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The attention dims and the MLP dims that each block of a member of this depth may have."""
        used = self.block_positions(depth)
        attention = [tuple(self.head_dims[i] * heads for heads in self.head_counts[i]) for i in used]
        return attention, [self.mlp_counts[i] for i in used]

    @cached_property
    def block_kinds(self) -> Array:
        """Which kinds of block there are at each position [depth, kinds]; a kind is (heads, MLP width) as a number."""
        heads, mlps = (max(map(len, counts)) for counts in (self.head_counts, self.mlp_counts))
        exists = np.zeros((self.depth, heads, mlps), dtype=bool)
        for i, (h, m) in enumerate(zip(self.head_counts, self.mlp_counts, strict=True)):
            exists[i, : len(h), : len(m)] = True
        return exists.reshape(self.depth, -1)

    @property
    def size(self) -> int:
        """The number of different networks."""
        kinds = [len(h) * len(m) for h, m in zip(self.head_counts, self.mlp_counts, strict=True)]
        bodies = sum(math.prod(kinds[i] for i in self.block_positions(depth)) for depth in self.depths)
        return len(self.embed_dims) * bodies

    @cached_property
    def gene_counts(self) -> Array:
        """The number of values of each gene, an integer array [genes]."""
        of_blocks = [len(counts) for part in (self.head_counts, self.mlp_counts) for counts in part]
        return np.array([1, len(self.depths), len(self.embed_dims), *of_blocks])

    @property
    def gene_limits(self) -> GenomeColumns:
        """The number of values of each gene, by name."""
        heads, mlps = ([len(counts) for counts in part] for part in (self.head_counts, self.mlp_counts))
        ones = np.ones((1, self.depth), dtype=int)
        firsts = np.array([1]), np.array([len(self.embed_dims)])
        return GenomeColumns(*firsts, ones, np.array([heads]), np.array([mlps]), ones.astype(bool))

    @cached_property
    def _active(self) -> Array:
        """Which blocks members of each depth have [depths, depth]."""
        return np.array([np.isin(np.arange(self.depth), self.block_positions(depth)) for depth in self.depths])

    def columns(self, genomes: Array) -> GenomeColumns:
        """Named views of genomes [population, genes]; `qkv` is the heads gene. Columns of blocks are positions."""
        genomes = np.atleast_2d(genomes)
        active = self._active[genomes[:, 1]]
        qkv, mlp = genomes[:, 3 : 3 + self.depth], genomes[:, 3 + self.depth :]
        # There is no choice of heads apart from their number.
        return GenomeColumns(genomes[:, 0], genomes[:, 2], np.zeros_like(qkv), qkv, mlp, active)

    @cached_property
    def _tables(self) -> BlockDims:
        """Heads, attention dims and MLP dims by position and gene [depth, values]."""

        def table(rows: Sequence[Sequence[int]]) -> Array:
            return np.array([[*row, *[0] * (max(map(len, rows)) - len(row))] for row in rows])

        heads = table(self.head_counts)
        return BlockDims(heads, heads * np.array(self.head_dims)[:, None], table(self.mlp_counts))

    def dims(self, columns: GenomeColumns) -> BlockDims:
        """Heads, attention dims and MLP dims of genomes' blocks [population, depth]; 0 where there is none."""
        tables, places = self._tables, np.arange(self.depth)
        picked = (tables.heads[places, columns.qkv], tables.attention[places, columns.qkv])
        return BlockDims(*(np.where(columns.active, part, 0) for part in (*picked, tables.mlp[places, columns.mlp])))

    def width_genes(self, columns: GenomeColumns) -> dict[str, tuple[Array, Array, tuple[Dims, ...]]]:
        """As `SearchSpace.width_genes`."""
        attention = tuple(
            tuple(heads * dim for heads in counts) for counts, dim in zip(self.head_counts, self.head_dims, strict=True)
        )
        return {
            "embed": (columns.embed[:, None], np.ones((len(columns.embed), 1), dtype=bool), (self.embed_dims,)),
            "attention": (columns.qkv, columns.active, attention),
            "mlp": (columns.mlp, columns.active, self.mlp_counts),
        }

    def decode(self, genome: Sequence[int] | Array) -> Architecture:
        """The architecture of a genome. Raises `UserError` for a wrong length or a gene out of range."""
        genes = np.asarray(genome)
        limits = self.gene_counts
        if genes.shape != limits.shape:
            raise UserError(f"genome has {genes.size} genes; this space's genomes have {limits.size}")
        if (genes < 0).any() or (genes >= limits).any():
            wrong = int(np.flatnonzero((genes < 0) | (genes >= limits))[0])
            raise UserError(f"gene {wrong} of the genome is {genes[wrong]}; it must be from 0 to {limits[wrong] - 1}")
        one = self.columns(genes)
        dims = self.dims(one)
        blocks = tuple(
            Block.of(int(dims.heads[0, i]), 3 * int(dims.attention[0, i]), int(dims.mlp[0, i]))
            for i in np.flatnonzero(one.active[0])
        )
        return Architecture(self.patch_sizes[0], self.embed_dims[one.embed[0]], blocks, self.classifier, "vit")

    def encode(self, architecture: Architecture) -> Array:
        """The canonical genome of an architecture [genes]. Raises `UserError`, naming what is outside the space."""
        network = self.network
        for what, found, ours in (
            ("family", architecture.family, network.family),
            ("patch size", architecture.patch_size, network.patch_size),
            ("classifier", architecture.classifier, network.classifier),
        ):
            if found != ours:
                raise UserError(f"{what} {found} is not in this space, which is of {network}")
        genome = np.zeros_like(self.gene_counts)
        blocks = architecture.active_blocks
        used = self.block_positions(len(blocks))
        genome[1] = self.depths.index(len(blocks))
        genome[2] = _index("embedding dim", self.embed_dims, architecture.embed_dim)
        for i, block in zip(used, blocks, strict=True):
            if block.attention_dim != block.heads * self.head_dims[i]:
                raise UserError(
                    f"qkv dim {block.qkv_dim} of {block.heads} heads is not in this space: "
                    f"a head of block {i} has {self.head_dims[i]} dims"
                )
            genome[3 + i] = _index("head count", self.head_counts[i], block.heads)
            genome[3 + self.depth + i] = _index("MLP dim", self.mlp_counts[i], block.mlp_dim)
        return genome

    def canonical(self, genomes: Array) -> Array:
        """Genomes [population, genes] with 0 in the genes of blocks that are left out: one row for each network."""
        genomes = np.array(np.atleast_2d(genomes))
        active = self._active[genomes[:, 1]]
        genomes[:, 3:] *= np.concatenate([active, active], axis=1)
        return genomes

    def filled(self, genomes: Array, values: Array) -> Array:
        """Genomes [population, genes] with those of `values` for blocks that are left out, should they come back."""
        active = self._active[genomes[:, 1]]
        return np.concatenate(
            [genomes[:, :3], np.where(np.concatenate([active, active], axis=1), genomes[:, 3:], values[:, 3:])], axis=1
        )

    def with_blocks(self, patch: int | Array, embed: int | Array, depth: int | Array, kinds: Array) -> Array:
        """Canonical genomes [count, genes] from gene values or arrays [count], and kinds of block.

        kinds: [count, depth]; its first columns are those of a member's blocks, in their order.
        """
        count, mlps = len(kinds), max(map(len, self.mlp_counts))
        depth = np.broadcast_to(depth, count)
        genomes = np.zeros((count, self.gene_counts.size), dtype=np.int64)
        genomes[:, 0], genomes[:, 2] = patch, embed
        for gene, each in enumerate(self.depths):
            rows = np.flatnonzero(depth == each)
            places = np.array(self.block_positions(each))
            genomes[rows, 1] = gene
            genomes[rows[:, None], 3 + places] = kinds[rows, :each] // mlps
            genomes[rows[:, None], 3 + self.depth + places] = kinds[rows, :each] % mlps
        return genomes

    def complementary(self, genome: Array) -> Array:
        """The canonical genome with the complementary widths: the last value where it had the first, and so on."""
        result = self.gene_counts - 1 - genome
        result[:2] = genome[:2]
        canonical: Array = self.canonical(result)[0]
        return canonical

    def single_changes(self, genome: Array) -> Array:
        """All canonical genomes [changes, genes] with another value of one gene that is in use.

        A block that comes back has the genes of the block before it that is there, or of the first one.
        """
        counts, changed = self.gene_counts, []
        active = self._active[genome[1]]
        before = np.maximum.accumulate(np.where(active, np.arange(self.depth), 0))
        before = np.where(active[before], before, int(np.argmax(active)))
        values = genome.copy()
        for start in (3, 3 + self.depth):
            limits = counts[start : start + self.depth] - 1
            values[start : start + self.depth] = np.minimum(genome[start + before], limits)
        whole = self.filled(genome[None], values[None])[0]
        in_use = np.concatenate([[True] * 3, active, active])
        for gene in np.flatnonzero(in_use):
            for value in range(counts[gene]):
                if value != genome[gene]:
                    changed.append(whole.copy())
                    changed[-1][gene] = value
        return self.canonical(np.array(changed, dtype=np.int64).reshape(-1, counts.size))

    def extreme(self, genome: Array, widest: bool) -> Array:
        """The canonical genome [genes] of the network itself, or of its smallest member."""
        result = self.gene_counts - 1 if widest else np.zeros_like(self.gene_counts)
        canonical: Array = self.canonical(result)[0]
        return canonical

    def sample_genomes(self, rng: np.random.Generator, count: int, identity_probability: float | None = None) -> Array:
        """`count` random canonical genomes [count, genes]: every gene's values are equally likely.

        identity_probability: with it, the depth nearest to so many blocks left out, each by itself.
        """
        genomes = rng.integers(0, self.gene_counts, size=(count, self.gene_counts.size))
        if identity_probability is not None:
            left = self.depth - (rng.random((count, self.depth)) < identity_probability).sum(axis=1)
            genomes[:, 1] = np.abs(left[:, None] - np.array(self.depths)).argmin(axis=1)
        return self.canonical(genomes)

    def sample(self, rng: np.random.Generator, identity_probability: float | None = None) -> Architecture:
        """A random architecture (see `sample_genomes`)."""
        return self.decode(self.sample_genomes(rng, 1, identity_probability)[0])

    def to_net_id(self, architecture: Architecture) -> str:
        raise UserError("net_id names architectures of ViTAS's spaces; this is the space of a pretrained network")

    def from_net_id(self, net_id: str | Sequence[int]) -> Architecture:
        raise UserError("net_id names architectures of ViTAS's spaces; this is the space of a pretrained network")

    def to_dict(self) -> dict[str, Any]:
        """Its YAML form, as plain data."""
        shares = {name: list(getattr(self.shares, name)) for name in (*PARTS, "keep")}
        return {"network": str(self.network), "block_order": list(self.block_order), "shares": shares}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ElasticSpace:
        """The space of a YAML form. Raises `UserError` for another."""
        try:
            shares = Shares(**{name: tuple(values) for name, values in data["shares"].items()})
            return cls(Architecture.parse(data["network"]), tuple(data["block_order"]), shares)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the space of a pretrained network: {error!r}") from None


AnySpace: TypeAlias = SearchSpace | ElasticSpace


def _widths(maximum: int, shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(maximum * share)) for share in shares}))


def _index(what: str, allowed: tuple[int, ...], value: int) -> int:
    if value not in allowed:
        raise UserError(f"{what} {value} is not in this space: {', '.join(map(str, allowed))}")
    return allowed.index(value)


def read_elastic_space(path: Path, shares: Shares) -> ElasticSpace:
    """The space of the network that a run's `pretrained.yaml` describes. Raises `UserError` where it is not there."""
    if not path.exists():
        raise UserError(f"{path} is not there: `search` writes it when it reads model.from_pretrained; run it first")
    return _read(path, path.stat().st_mtime_ns, shares)


@lru_cache(maxsize=8)
def _read(path: Path, modified: int, shares: Shares) -> ElasticSpace:
    data = read_yaml(path)
    if not isinstance(data, dict) or "architecture" not in data or not isinstance(data.get("block_order"), list):
        raise UserError(f"{path}: must hold the architecture and the block_order that `search` writes")
    try:
        network = Architecture.parse(data["architecture"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        return ElasticSpace(network, tuple(data["block_order"]), shares)
    except UserError as error:
        raise UserError(f"model.space.{error}") from None

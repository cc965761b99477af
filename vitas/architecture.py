"""`Architecture`: the description of a network that the stages pass on.

It says what a network is, not how it was found. It can be an object, a
canonical text or a YAML mapping; the last two parse back to an equal object.
Genomes and `net_id` need a space, see `vitas.space`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

from vitas.costs import count_macs, count_parameters
from vitas.errors import UserError, require_integer, require_text

CLASSIFIERS = ("token", "mean")
# ViTAS's networks, and the plain ones that timm calls ViT and DeiT. What differs is in `Architecture.family`.
FAMILIES = ("vitas", "vit")

# Above those of any network that was ever trained. Descriptions come from anyone's files, and a few characters of one
# may ask for more than a machine has.
MAX_BLOCKS = 256
MAX_DIM = 2**16
# Characters of a canonical text: as many different blocks have fewer.
MAX_TEXT = 2**14


@dataclass(frozen=True, slots=True)
class Block:
    """One position of an architecture: a transformer block, or the identity.

    heads: attention heads.
    qkv_dim: dims of q, k and v together; the attention dim is a third of it.
    mlp_dim: hidden dim of the MLP.
    """

    heads: int
    qkv_dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        if (self.heads, self.qkv_dim, self.mlp_dim) == (0, 0, 0):
            return
        if min(self.heads, self.qkv_dim, self.mlp_dim) < 1:
            raise UserError(f"{self!r}: heads, qkv_dim and mlp_dim must be positive (all zero is the identity)")
        if max(self.heads, self.qkv_dim // 3, self.mlp_dim) > MAX_DIM:
            raise UserError(f"{self!r}: heads, a third of qkv_dim, and mlp_dim must be at most {MAX_DIM:,}")
        if self.qkv_dim % (3 * self.heads):
            raise UserError(
                f"qkv_dim {self.qkv_dim} does not split into q, k and v for {self.heads} heads: "
                f"it must be a multiple of {3 * self.heads}"
            )

    @classmethod
    @lru_cache(maxsize=2**16)
    def of(cls, heads: int, qkv_dim: int, mlp_dim: int) -> Block:
        """One object for all equal blocks: a search holds 100,000 architectures, of few kinds of block."""
        return cls(heads, qkv_dim, mlp_dim)

    @property
    def is_identity(self) -> bool:
        return self.heads == 0

    @property
    def attention_dim(self) -> int:
        return self.qkv_dim // 3


IDENTITY = Block(0, 0, 0)

# int() takes the digits of all scripts, and any number of them; nine are above every limit.
_TEXT_HEAD = re.compile(r"(p|vit)([0-9]{1,9})-e([0-9]{1,9})-(token|mean)")
_PREFIXES = {"p": "vitas", "vit": "vit"}
_TEXT_BLOCK = re.compile(r"(?:h([0-9]{1,9})q([0-9]{1,9})m([0-9]{1,9})|(id))(?:x([0-9]{1,9}))?")
TEXT_FORM = "p16-e230-token-h3q432m720x12-idx4"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A vision transformer, complete except for image size and class count.

    patch_size: side of the square patches, in pixels.
    embed_dim: width of the residual stream.
    blocks: one entry per position, identities included: stochastic depth and
        the key names of released files count positions.
    classifier: what the classifier reads, `token` (the class token) or `mean`
        (the mean of the patch tokens). In a `vitas` network the class token
        takes part in attention either way, as in the released ones; a `vit`
        network with `mean` has none.
    family: `vitas`, whose attention has the scale of embedding dim / heads and
        whose last norm an eps of 1e-5, or `vit`, with the scale of a head's dim
        and 1e-6, as timm's ViT and DeiT.
    """

    patch_size: int
    embed_dim: int
    blocks: tuple[Block, ...]
    classifier: str = "token"
    family: str = "vitas"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        check_block_count(len(self.blocks))
        if self.family not in FAMILIES:
            raise UserError(f"family is {self.family!r}; it must be {' or '.join(FAMILIES)}")
        if self.patch_size < 1 or self.embed_dim < 1:
            raise UserError(f"patch size {self.patch_size} and embedding dim {self.embed_dim} must be positive")
        if max(self.patch_size, self.embed_dim) > MAX_DIM:
            raise UserError(
                f"patch size {self.patch_size} and embedding dim {self.embed_dim} must be at most {MAX_DIM:,}"
            )
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"classifier is {self.classifier!r}; it must be {' or '.join(CLASSIFIERS)}")
        for block in self.active_blocks:
            if self.family == "vitas" and block.heads > self.embed_dim:
                # The attention scale is (embed_dim // heads) ** -0.5.
                raise UserError(f"{block.heads} heads are more than the embedding dim {self.embed_dim}")

    @property
    def prefix_tokens(self) -> int:
        """1 with a class token in the sequence, 0 without."""
        return 0 if self.family == "vit" and self.classifier == "mean" else 1

    def attention_scale(self, block: Block) -> float:
        """What attention logits of a block are multiplied by."""
        dim = block.attention_dim if self.family == "vit" else self.embed_dim
        return float((dim // block.heads) ** -0.5)

    def check_image_size(self, image_size: int) -> None:
        """Raise `UserError` unless the patches tile the image."""
        check_patch_size(self.patch_size, image_size)

    def tokens_per_side(self, image_size: int, reduce: int = 1) -> int:
        """Patch tokens along a side of the image, with the patches' stride and dilation `reduce` times larger."""
        return coarser_side(image_size // self.patch_size, reduce)

    def check_token_reduction(self, image_size: int, reduce: int) -> None:
        """Raise `UserError` unless images of this size have enough tokens for the reduction, an integer."""
        check_token_reduction(self.tokens_per_side(image_size), reduce)

    @property
    def active_blocks(self) -> tuple[Block, ...]:
        """The blocks that compute something, in order."""
        return tuple(block for block in self.blocks if not block.is_identity)

    @property
    def depth(self) -> int:
        """The number of blocks, identities excluded."""
        return len(self.active_blocks)

    def shifted(self) -> Architecture:
        """The same network with its identities last, so that all genomes of one network give equal objects."""
        active = self.active_blocks
        return replace(self, blocks=active + (IDENTITY,) * (len(self.blocks) - len(active)))

    def compact(self) -> Architecture:
        """The same network without identities: stochastic depth reaches its full rate at the last block."""
        return replace(self, blocks=self.active_blocks)

    def macs(self, image_size: int = 224, num_classes: int = 1000, convention: str = "true", *, reduce: int = 1) -> int:
        """MACs per image; `convention` is `true` or `released` (see `vitas.costs.count_macs`).

        reduce: token reduction (see `tokens_per_side`); raises `UserError` as
            `check_token_reduction` does.
        """
        self.check_token_reduction(image_size, reduce)
        # The size of an image with as many patches.
        size = self.patch_size * self.tokens_per_side(image_size, reduce)
        sizes = self.patch_size, self.embed_dim, *self._totals(), size, num_classes
        return count_macs(*sizes, convention, self.prefix_tokens)

    def parameters(self, image_size: int = 224, num_classes: int = 1000) -> int:
        """Parameters of the dense network, class token and position embedding included."""
        sizes = self.patch_size, self.embed_dim, *self._totals(), self.depth, image_size, num_classes
        return count_parameters(*sizes, self.prefix_tokens)

    def costs(self, image_size: int = 224, num_classes: int = 1000) -> dict[str, int | None]:
        """`macs`, `macs_released` and `parameters`, as plain data."""
        return {
            "macs": self.macs(image_size, num_classes),
            "macs_released": self.macs(image_size, num_classes, "released"),
            "parameters": self.parameters(image_size, num_classes),
        }

    def _totals(self) -> tuple[int, int]:
        return sum(b.attention_dim for b in self.blocks), sum(b.mlp_dim for b in self.blocks)

    def __str__(self) -> str:
        """The canonical text: one word, usable in file names, keys and command lines."""
        prefix = next(prefix for prefix, family in _PREFIXES.items() if family == self.family)
        return "-".join([f"{prefix}{self.patch_size}", f"e{self.embed_dim}", self.classifier, *_runs(self.blocks)])

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """The architecture of a canonical text. Raises `UserError`, naming the part that does not parse."""
        if len(require_text(text, "architecture")) > MAX_TEXT:
            raise UserError(f"architecture {text!r} has {len(text):,} characters; it may have {MAX_TEXT:,}")
        parts = text.strip().split("-")
        head = _TEXT_HEAD.fullmatch("-".join(parts[:3]))
        if head is None:
            raise UserError(f"architecture {text!r} must begin like {TEXT_FORM!r}: patch, embedding dim, classifier")
        blocks: list[Block] = []
        for part in parts[3:]:
            match = _TEXT_BLOCK.fullmatch(part)
            if match is None:
                raise UserError(
                    f"architecture {text!r}: found {part!r}; a block must read h3q432m720 or id, and x12 repeats it"
                )
            heads, qkv_dim, mlp_dim, identity, repeat = match.groups()
            if repeat is not None and int(repeat) < 1:
                raise UserError(
                    f"architecture {text!r}: {part!r} repeats its block {repeat} times; it must be at least 1"
                )
            block = IDENTITY if identity else Block.of(int(heads), int(qkv_dim), int(mlp_dim))
            check_block_count(len(blocks) + int(repeat or 1))
            blocks += [block] * int(repeat or 1)
        return cls(int(head[2]), int(head[3]), tuple(blocks), head[4], _PREFIXES[head[1]])

    def to_dict(self) -> dict[str, Any]:
        """The YAML form: plain numbers, strings and lists."""
        return {
            **({} if self.family == FAMILIES[0] else {"family": self.family}),
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "classifier": self.classifier,
            "blocks": [
                "identity" if b.is_identity else {"heads": b.heads, "qkv_dim": b.qkv_dim, "mlp_dim": b.mlp_dim}
                for b in self.blocks
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """The architecture of a YAML form. A block may carry `repeat: n`."""
        unknown = sorted(set(data) - {"patch_size", "embed_dim", "classifier", "blocks", "family"}, key=str)
        missing = [key for key in ("patch_size", "embed_dim", "blocks") if key not in data]
        if unknown or missing:
            fault = f"unknown key {unknown[0]!r}" if unknown else f"no key {missing[0]!r}"
            raise UserError(f"architecture: {fault}; its keys are patch_size, embed_dim, blocks, classifier and family")
        if not isinstance(data["blocks"], list):
            raise UserError(f"architecture.blocks is {data['blocks']!r}; it must be a list of blocks")
        blocks: list[Block] = []
        for i, entry in enumerate(data["blocks"]):
            if entry == "identity":
                blocks.append(IDENTITY)
                continue
            keys = {"heads", "qkv_dim", "mlp_dim"}
            if not isinstance(entry, Mapping) or set(entry) - {"repeat"} != keys:
                raise UserError(
                    f"architecture.blocks[{i}] is {entry!r}; it must be 'identity' or hold heads, qkv_dim, mlp_dim "
                    "(and optionally repeat)"
                )
            numbers = {key: require_integer(value, f"architecture.blocks[{i}].{key}") for key, value in entry.items()}
            repeat = numbers.pop("repeat", 1)
            if repeat < 1:
                raise UserError(f"architecture.blocks[{i}].repeat is {repeat}; it must be at least 1")
            check_block_count(len(blocks) + repeat)
            blocks += [Block(**numbers)] * repeat
        return cls(
            require_integer(data["patch_size"], "architecture.patch_size"),
            require_integer(data["embed_dim"], "architecture.embed_dim"),
            tuple(blocks),
            data.get("classifier", "token"),
            data.get("family", FAMILIES[0]),
        )


def check_block_count(count: int) -> None:
    """Raise `UserError` for more blocks, identities included, than an architecture may have."""
    if count > MAX_BLOCKS:
        raise UserError(f"found {count:,} blocks; an architecture may have {MAX_BLOCKS}")


def check_patch_size(patch_size: int, image_size: int) -> None:
    """Raise `UserError` unless the patches tile the image."""
    if image_size % patch_size:
        raise UserError(f"patch size {patch_size} does not divide the image size {image_size}")


def _runs(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block, run in groupby(blocks):
        name = "id" if block.is_identity else f"h{block.heads}q{block.qkv_dim}m{block.mlp_dim}"
        length = len(list(run))
        yield name if length == 1 else f"{name}x{length}"


def coarser_side(tokens: int, reduce: int) -> int:
    """Tokens along a side after reducing `tokens` by `reduce`, rounded up.

    A reduction r multiplies the stride and the dilation of a network's first
    projection by r (As-ViT's progressive tokenisation; Chen et al., ICLR 2022).
    """
    return -(-tokens // reduce)


def check_token_reduction(tokens: int, reduce: int) -> None:
    """Raise `UserError` unless `reduce` is an integer from 1 (no reduction) to `tokens`, the tokens along a side."""
    if type(reduce) is int and (reduce == 1 or 1 <= reduce <= tokens):
        return
    allowed = f"it must be an integer from 2 to {tokens}" if tokens > 1 else "so there is nothing to reduce"
    raise UserError(f"found {reduce!r}; an image gives {tokens} x {tokens} tokens, {allowed}")

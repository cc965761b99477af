"""`Architecture`: the one currency between the stages.

It says what a network is, never how it was found. Its forms (the object, the
canonical text, the YAML mapping) parse back to equal objects; genomes and
`net_id` need a space and live in `vitas.space.search_space`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from vitas.errors import UserError
from vitas.space import counts
from vitas.space.tokens import check_token_reduction, coarser

CLASSIFIERS = ("token", "mean")


@dataclass(frozen=True, slots=True)
class Block:
    """One position of a network: a transformer block, or the identity.

    heads: attention heads.
    qkv_dim: rows of q, k and v together; a third of it is the attention dim.
    mlp_dim: hidden dim of the MLP.
    """

    heads: int
    qkv_dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        if (self.heads, self.qkv_dim, self.mlp_dim) == (0, 0, 0):
            return
        if min(self.heads, self.qkv_dim, self.mlp_dim) < 1:
            raise UserError(f"{self}: heads, qkv_dim and mlp_dim must be positive (all zero is the identity)")
        if self.qkv_dim % (3 * self.heads):
            raise UserError(
                f"qkv_dim {self.qkv_dim} does not split into q, k and v for {self.heads} heads: "
                f"it must be a multiple of {3 * self.heads}"
            )

    @property
    def is_identity(self) -> bool:
        return self.heads == 0

    @property
    def attention_dim(self) -> int:
        return self.qkv_dim // 3


IDENTITY = Block(0, 0, 0)

_TEXT_HEAD = re.compile(r"p(\d+)-e(\d+)-(token|mean)$")
_TEXT_BLOCK = re.compile(r"(?:h(\d+)q(\d+)m(\d+)|(id))(?:x(\d+))?$")
TEXT_FORM = "p16-e230-token-h3q432m720x12-idx4"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A vision transformer, fully described but for image size and class count.

    patch_size: side of the square patches, in pixels.
    embed_dim: width of the residual stream.
    blocks: one entry a position, identities included: stochastic depth counts
        positions, and so do the key names of released files.
    classifier: what the classifier reads, `token` (the class token) or `mean`
        (the mean of the patch tokens). The class token takes part in attention
        either way, as in the released networks.
    """

    patch_size: int
    embed_dim: int
    blocks: tuple[Block, ...]
    classifier: str = "token"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.patch_size < 1 or self.embed_dim < 1:
            raise UserError(f"patch size {self.patch_size} and embedding dim {self.embed_dim} must be positive")
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"classifier is {self.classifier!r}; it must be {' or '.join(CLASSIFIERS)}")
        for block in self.active_blocks:
            if block.heads > self.embed_dim:
                # The attention scale is (embed_dim // heads) ** -0.5.
                raise UserError(f"{block.heads} heads are more than the embedding dim {self.embed_dim}")

    def check_image_size(self, image_size: int) -> None:
        """Raise `UserError` unless patches tile the image."""
        check_patch_size(self.patch_size, image_size)

    def tokens_per_side(self, image_size: int, reduce: int = 1) -> int:
        """Patch tokens along a side of the image, where the patches' stride and dilation are `reduce` times larger."""
        return coarser(image_size // self.patch_size, reduce)

    def check_token_reduction(self, image_size: int, reduce: int) -> None:
        """Raise `UserError` for a reduction that images of this size have too few tokens for, or that is no integer."""
        check_token_reduction(self.tokens_per_side(image_size), reduce)

    @property
    def active_blocks(self) -> tuple[Block, ...]:
        """The blocks that compute something, in order."""
        return tuple(block for block in self.blocks if not block.is_identity)

    @property
    def depth(self) -> int:
        """How many blocks compute something."""
        return len(self.active_blocks)

    def shifted(self) -> Architecture:
        """The same network with its identities at the end: one object for all genomes that mean it."""
        active = self.active_blocks
        return replace(self, blocks=active + (IDENTITY,) * (len(self.blocks) - len(active)))

    def macs(self, image_size: int = 224, num_classes: int = 1000, convention: str = "true", *, reduce: int = 1) -> int:
        """Multiply-adds of one image; `convention` is `true` or `released` (see `vitas.space.counts.macs`).

        reduce: of the tokens along a side (see `tokens_per_side`). Raises
            `UserError` as `check_token_reduction` does.
        """
        self.check_token_reduction(image_size, reduce)
        # As many patches as a smaller image has.
        size = self.patch_size * self.tokens_per_side(image_size, reduce)
        return counts.as_int(
            counts.macs(self.patch_size, self.embed_dim, *self._totals(), size, num_classes, convention)
        )

    def parameters(self, image_size: int = 224, num_classes: int = 1000) -> int:
        """Parameters of the dense network, class token and position embedding included."""
        return counts.as_int(
            counts.parameters(self.patch_size, self.embed_dim, *self._totals(), self.depth, image_size, num_classes)
        )

    def _totals(self) -> tuple[int, int]:
        return sum(b.attention_dim for b in self.blocks), sum(b.mlp_dim for b in self.blocks)

    def __str__(self) -> str:
        """The canonical text: one word, fit for file names, keys and command lines."""
        return "-".join([f"p{self.patch_size}", f"e{self.embed_dim}", self.classifier, *_runs(self.blocks)])

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """The architecture of a canonical text; `UserError` names the part that does not parse."""
        parts = text.strip().split("-")
        head = _TEXT_HEAD.match("-".join(parts[:3]))
        if head is None:
            raise UserError(f"architecture {text!r} must begin like {TEXT_FORM!r}: patch, embedding dim, classifier")
        blocks: list[Block] = []
        for part in parts[3:]:
            match = _TEXT_BLOCK.match(part)
            if match is None:
                raise UserError(
                    f"architecture {text!r}: {part!r} is no block; one reads h3q432m720 or id, and x12 repeats it"
                )
            heads, qkv_dim, mlp_dim, identity, repeat = match.groups()
            if repeat is not None and int(repeat) < 1:
                raise UserError(
                    f"architecture {text!r}: {part!r} repeats its block {repeat} times; it must be at least 1"
                )
            block = IDENTITY if identity else Block(int(heads), int(qkv_dim), int(mlp_dim))
            blocks += [block] * int(repeat or 1)
        return cls(int(head[1]), int(head[2]), tuple(blocks), head[3])

    def to_dict(self) -> dict:
        """The YAML form: plain numbers, strings and lists."""
        return {
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "classifier": self.classifier,
            "blocks": [
                "identity" if b.is_identity else {"heads": b.heads, "qkv_dim": b.qkv_dim, "mlp_dim": b.mlp_dim}
                for b in self.blocks
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping) -> Architecture:
        """The architecture of a YAML form. A block may carry `repeat: n`."""
        unknown = sorted(set(data) - {"patch_size", "embed_dim", "classifier", "blocks"}, key=str)
        missing = [key for key in ("patch_size", "embed_dim", "blocks") if key not in data]
        if unknown or missing:
            fault = f"unknown key {unknown[0]!r}" if unknown else f"no key {missing[0]!r}"
            raise UserError(f"architecture: {fault}; its keys are patch_size, embed_dim, blocks and classifier")
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
                    "(and repeat, if it is to be repeated)"
                )
            numbers = {key: _integer(value, f"architecture.blocks[{i}].{key}") for key, value in entry.items()}
            repeat = numbers.pop("repeat", 1)
            if repeat < 1:
                raise UserError(f"architecture.blocks[{i}].repeat is {repeat}; it must be at least 1")
            blocks += [Block(**numbers)] * repeat
        return cls(
            _integer(data["patch_size"], "architecture.patch_size"),
            _integer(data["embed_dim"], "architecture.embed_dim"),
            tuple(blocks),
            data.get("classifier", "token"),
        )


def check_patch_size(patch_size: int, image_size: int) -> None:
    """Raise `UserError` unless patches tile the image."""
    if image_size % patch_size:
        raise UserError(f"patch size {patch_size} does not divide the image size {image_size}")


def _runs(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block, run in groupby(blocks):
        name = "id" if block.is_identity else f"h{block.heads}q{block.qkv_dim}m{block.mlp_dim}"
        length = len(list(run))
        yield name if length == 1 else f"{name}x{length}"


def _integer(value, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key} is {value!r}; it must be an integer")
    return value

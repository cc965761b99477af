"""Latency from a table: how long each kind of layer takes on this device, and what a network of them takes.

A block is two halves, attention and MLP, whose times hardly depend on each
other. A space has few kinds of halves, so measuring them all takes minutes,
and after that the latency of any architecture is a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from search.measured_speed import measuring_ranks, where_measured
from search.measurements import MeasurementJournal
from vitas.architecture import Architecture, Block
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.errors import UserError, is_integer, require_number
from vitas.evaluate import images_per_second, seconds_per_pass
from vitas.models import VisionTransformer
from vitas.models.vision_transformer import TransformerBlock
from vitas.report import Report
from vitas.seeds import stream_seed

# Seconds of measuring one kind, after half as many of warm-up.
SECONDS = 0.1
# As many whole networks are measured to check the table.
CHECKED = 8

# What a network is made of: ("ends", patch size, embedding dim); on so many tokens ("attention", tokens, embedding dim,
# heads, attention dim) and ("mlp", tokens, embedding dim, MLP dim). "class attention" is that of the class token alone,
# to all tokens: the last block's, where the classifier reads nothing else.
Part = tuple[str | int, ...]


def parts_of(architecture: Architecture, image_size: int) -> list[Part]:
    """The parts of an architecture; their times add up to its own."""
    tokens, dim = (image_size // architecture.patch_size) ** 2 + architecture.prefix_tokens, architecture.embed_dim
    parts: list[Part] = [("ends", architecture.patch_size, dim)]
    for i, block in enumerate(architecture.active_blocks, start=1):
        alone = architecture.classifier == "token" and i == architecture.depth
        kind, queries = ("class attention", 1) if alone else ("attention", tokens)
        parts += [(kind, tokens, dim, block.heads, block.attention_dim), ("mlp", queries, dim, block.mlp_dim)]
    return parts


# The kinds of parts, and how many numbers each has.
_NUMBERS = {"ends": 2, "attention": 4, "class attention": 4, "mlp": 3}


def read_record(line: Mapping) -> tuple[Part, float]:
    """The part and its milliseconds of a journal's line. Raises `UserError` for any other."""
    found = line.get("part")
    kind, *numbers = found if isinstance(found, list) and found else [None]
    if not isinstance(kind, str) or len(numbers) != _NUMBERS.get(kind) or not all(map(is_integer, numbers)):
        raise UserError(f"part is {found!r}; it must be {' or '.join(_NUMBERS)} with its numbers")
    return (kind, *numbers), require_number(line.get("milliseconds"), "milliseconds", 0)


class LatencyTable:
    """Milliseconds of a forward pass of one image, in batches of `sample.budget.batch_size`, on this run's device.

    Every kind of part is measured when it is first met, and journalled in
    `latency.jsonl`. The first time, the sums are compared with whole networks,
    and the log says how far off they are.
    """

    def __init__(self, config: RunConfig, report: Report, world: World) -> None:
        self._config, self._world, self._report = config, world, report
        self._ranks = measuring_ranks(world)
        self._journal: MeasurementJournal[Part, float] = MeasurementJournal(
            config.folder.latency,
            where_measured(config, world) | {"classifier": config.space.classifier},
            read_record,
            lambda part, milliseconds: {"part": list(part), "milliseconds": milliseconds},
            "measured latencies",
            report,
            world,
        )
        self._is_checked = bool(self._journal.known)

    def predict(self, architectures: list[Architecture]) -> np.ndarray:
        """Milliseconds an image [architectures], in order."""
        of_each = [parts_of(architecture, self._config.model.image_size) for architecture in architectures]
        self._measure(part for parts in of_each for part in parts)
        predicted = np.array([sum(self._journal.known[part] for part in parts) for parts in of_each])
        if not self._is_checked:
            self._is_checked = True
            self._check(architectures)
        return predicted

    def _check(self, architectures: list[Architecture]) -> None:
        rng = np.random.default_rng(stream_seed(self._config.seed, "latency check"))
        chosen = rng.permutation(len(architectures))[:CHECKED]
        if self._world.is_main:
            picked = [architectures[i].shifted() for i in chosen]
            true = np.array([self._whole_network(architecture) for architecture in picked])
            sums = self.predict(picked)
            self._report.line(
                f"latency from a table of {len(self._journal.known)} kinds of layers; of {len(picked)} whole networks "
                f"({true.min():.3f} to {true.max():.3f} ms an image) it is off by {np.median(sums / true - 1):+.0%}, "
                f"and by {np.median(np.abs(sums / true / np.median(sums / true) - 1)):.0%} relative to each other"
            )

    def _measure(self, parts: Iterable[Part]) -> None:
        self._journal.measure(sorted(set(parts), key=str), self._milliseconds, self._ranks)

    def _whole_network(self, architecture: Architecture) -> float:
        model, batch_size = self._config.model, self._config.sample.budget.batch_size
        with self._world.device:
            network = VisionTransformer(architecture, model.num_classes, model.image_size)
        return 1e3 / images_per_second(network, model.image_size, batch_size, 4 * SECONDS)

    def _milliseconds(self, part: Part) -> float:
        model, batch_size = self._config.model, self._config.sample.budget.batch_size
        kind, first, dim, *dims = part
        with self._world.device:
            if kind == "ends":
                space = self._config.space
                architecture = Architecture(first, dim, (), space.classifier, space.family)
                module: nn.Module = VisionTransformer(architecture, model.num_classes, model.image_size)
                inputs = torch.randn(batch_size, 3, model.image_size, model.image_size)
            else:
                module, inputs = _half(kind, dim, *dims), torch.randn(batch_size, first, dim)
        return 1e3 * seconds_per_pass(module, inputs, SECONDS) / batch_size


class _Half(nn.Module):
    """One half of a block, with its norm and its residual connection."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.layer(self.norm(x_BND))


class _HalfOfClassToken(_Half):
    """The attention of a last block of which the class token alone is read."""

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND[:, :1] + self.layer(self.norm(x_BND), queries=1)


def _half(kind: str, dim: int, *dims: int) -> nn.Module:
    heads, attention_dim, mlp_dim = (1, 1, *dims) if kind == "mlp" else (*dims, 1)
    # The scale of attention takes no time.
    block = TransformerBlock(dim, Block(heads, 3 * attention_dim, mlp_dim), 1.0, 0.0)
    if kind == "mlp":
        return _Half(block.norm2, block.mlp)
    return (_HalfOfClassToken if kind == "class attention" else _Half)(block.norm1, block.attn)

"""The `search` stage, by `search.method`."""

from __future__ import annotations

from importlib import import_module

from vitas.config import RunConfig
from vitas.distributed import World

_MODULES = {"supernet": "search.supernet_training", "asvit": "search.asvit.stage"}


def search(config: RunConfig, world: World) -> None:
    """Train the supernet, or search and grow as As-ViT does."""
    import_module(_MODULES[config.search.method]).search(config, world)

"""ViTAS: find vision transformers under a compute budget, and train them.

The names below are loaded when they are first asked for: importing torch and
timm takes seconds, which a command that needs neither should not wait for.
For the same reason timm learns of our networks when it is loaded, be that
before this package or after it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vitas.importing import after_import

if TYPE_CHECKING:
    from vitas.checkpoint import load_weights
    from vitas.models import StagedTransformer, SuperNet, VisionTransformer, create_model
    from vitas.registry import register
    from vitas.space import Architecture, Block, Genotype, GenotypeSpace, SearchSpace
    from vitas.space.published import zoo

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Block",
    "Genotype",
    "GenotypeSpace",
    "SearchSpace",
    "StagedTransformer",
    "SuperNet",
    "VisionTransformer",
    "create_model",
    "load_weights",
    "register",
    "zoo",
]

_HOMES = {
    "vitas.space": ("Architecture", "Block", "Genotype", "GenotypeSpace", "SearchSpace"),
    "vitas.space.published": ("zoo",),
    "vitas.checkpoint": ("load_weights",),
    "vitas.registry": ("register",),
}
_HOME_OF = dict.fromkeys(__all__, "vitas.models") | {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vitas' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


after_import("timm", lambda: import_module("vitas.registry").register_published())

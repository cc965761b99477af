"""ViTAS: find vision transformers under a compute budget, and train them.

The names in `__all__` are imported on first use: torch and timm take seconds to
import, and many commands need neither. `import vitas.timm` registers the
networks in timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitas.architecture import Architecture, Block
    from vitas.asvit.genotype import Genotype, GenotypeSpace
    from vitas.catalog import zoo
    from vitas.loading import load_weights
    from vitas.models import StagedTransformer, SuperNet, VisionTransformer, create_model
    from vitas.space import SearchSpace
    from vitas.supernet_folder import load_supernet
    from vitas.timm import register

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
    "load_supernet",
    "load_weights",
    "register",
    "zoo",
]

_HOMES = {
    "vitas.architecture": ("Architecture", "Block"),
    "vitas.asvit.genotype": ("Genotype", "GenotypeSpace"),
    "vitas.catalog": ("zoo",),
    "vitas.loading": ("load_weights",),
    "vitas.models": ("StagedTransformer", "SuperNet", "VisionTransformer", "create_model"),
    "vitas.space": ("SearchSpace",),
    "vitas.supernet_folder": ("load_supernet",),
    "vitas.timm": ("register",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vitas' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The published architectures, and from a name or a text to an architecture."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from vitas.errors import UserError
from vitas.space.architecture import Architecture, Block
from vitas.space.genotype import Genotype
from vitas.space.network import Network, is_genotype, parse_network
from vitas.space.search_space import SearchSpace

_RATIOS = tuple(i / 10 for i in range(1, 11))
# The spaces in which the published networks were found (arXiv 2106.13700).
SPACE_ABE = SearchSpace((14, 16, 32), 384, 16, (3, 6, 12, 16), 1440, 1440, _RATIOS)
SPACE_F = SearchSpace((14, 16, 32), 768, 13, (3, 6, 12, 16), 2880, 2880, _RATIOS, identity=False)

_NET_IDS = {
    "vitas_a": (
        SPACE_ABE,
        "1 2 4 3 4 4 1 3 4 3 4 4 4 4 3 3 4 0 0 3 1 6 7 9 4 3 6 8 4 9 1 8 6 4 9 2 7 6 8 9 3 0 3 8 7 0 5 7 9 8 4 4",
    ),
    "vitas_b": (
        SPACE_ABE,
        "1 3 4 4 3 4 3 4 4 2 2 4 2 3 4 4 1 0 0 4 1 5 1 6 2 2 2 3 2 9 2 6 3 9 5 7 7 5 6 4 8 1 5 3 2 8 5 9 2 4 5 5",
    ),
    "vitas_e": (
        SPACE_ABE,
        "1 3 4 3 4 3 1 4 0 4 2 1 2 4 2 1 2 0 0 8 4 4 1 7 6 5 3 8 5 6 5 6 3 6 3 4 4 4 8 8 8 7 4 0 4 5 9 5 3 6 7 8",
    ),
    "vitas_f": (
        SPACE_F,
        "1 3 3 3 3 3 3 3 3 3 3 3 3 3 0 0 3 2 5 0 7 5 2 3 6 6 2 4 4 8 7 4 6 7 2 6 1 6 6 4 7 5 7",
    ),
}


# As-ViT's, grown from one topology (arXiv 2202.11921).
_GENOTYPES = {
    "asvit_small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "asvit_base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "asvit_large": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
}

# Top-1 and top-5 on ImageNet-1k in percent, as published (arXiv 2106.13700 and 2202.11921; DeiT: arXiv 2012.12877).
PUBLISHED_ACCURACY: dict[str, tuple[float, float | None]] = {
    "vitas_a": (71.1, 89.8),
    "vitas_b": (72.4, 90.6),
    "vitas_c": (74.7, 92.0),
    "vitas_e": (77.4, 93.8),
    "vitas_f": (80.6, 95.1),
    "asvit_small": (81.2, None),
    "asvit_base": (82.5, None),
    "asvit_large": (83.5, None),
    "deit_tiny": (72.2, None),
    "deit_small": (79.8, None),
}


def _uniform(embed_dim: int, heads: int, qkv_dim: int, mlp_dim: int) -> Architecture:
    return Architecture(16, embed_dim, (Block(heads, qkv_dim, mlp_dim),) * 12)


@cache
def _zoo() -> dict[str, Network]:
    found: dict[str, Network] = {name: space.from_net_id(net_id) for name, (space, net_id) in _NET_IDS.items()}
    found["vitas_c"] = _uniform(230, 3, 432, 720)
    found = dict(sorted(found.items()))
    found |= {name: Genotype.parse(text) for name, text in _GENOTYPES.items()}
    return found | {
        "deit_tiny": _uniform(192, 3, 576, 768),
        "deit_small": _uniform(384, 6, 1152, 1536),
    }


def zoo() -> dict[str, Network]:
    """The published networks by name: ViTAS's A, B, C, E, F, As-ViT's Small, Base, Large (genotypes), DeiT's Ti, S."""
    return dict(_zoo())


def resolve_architecture(name_or_architecture: str | Network, also: Iterable[str] = ()) -> Network:
    """An architecture or a genotype from itself, its canonical text or its name in the zoo.

    Raises `UserError` where it is neither, with the near names; `also` are
    names that the caller knows besides.
    """
    if not isinstance(name_or_architecture, str):
        return name_or_architecture
    name = name_or_architecture.strip()
    if name in _zoo():
        return _zoo()[name]
    if name.count("-") >= 3 or is_genotype(name):
        return parse_network(name)
    names = [*also, *_zoo()]
    near = get_close_matches(name, names)
    hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(names)}"
    raise UserError(f"no architecture is named {name!r}; {hint}")

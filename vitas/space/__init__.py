"""What may be searched: `Architecture` and `SearchSpace`, `Genotype` and `GenotypeSpace`, and their genomes."""

from vitas.space.architecture import IDENTITY, Architecture, Block, check_patch_size
from vitas.space.genotype import Genotype, GenotypeSpace, Stage
from vitas.space.network import Network, costs, is_genotype, network_from_dict, parse_network
from vitas.space.search_space import SearchSpace

__all__ = [
    "IDENTITY",
    "Architecture",
    "Block",
    "Genotype",
    "GenotypeSpace",
    "Network",
    "SearchSpace",
    "Stage",
    "check_patch_size",
    "costs",
    "is_genotype",
    "network_from_dict",
    "parse_network",
]

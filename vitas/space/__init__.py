"""What may be searched: `Architecture`, `SearchSpace` and the genome codec."""

from vitas.space.architecture import IDENTITY, Architecture, Block, check_patch_size
from vitas.space.search_space import SearchSpace

__all__ = ["IDENTITY", "Architecture", "Block", "SearchSpace", "check_patch_size"]

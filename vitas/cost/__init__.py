"""What architectures cost: multiply-adds of whole populations, measured speed, and budgets of either."""

from vitas.cost.budget import IMAGES_PER_SECOND, Budget, PopulationCosts
from vitas.cost.macs import SpaceCosts
from vitas.cost.speed import SpeedModel, images_per_second

__all__ = ["IMAGES_PER_SECOND", "Budget", "PopulationCosts", "SpaceCosts", "SpeedModel", "images_per_second"]

"""One training loop and one evaluation loop, used by every stage."""

from vitas.engine.evaluation import Score, evaluate
from vitas.engine.training import Task, train

__all__ = ["Score", "Task", "evaluate", "train"]

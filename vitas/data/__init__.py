"""Images: folders, augmentation, the training loader and the in-memory evaluation set."""

from vitas.data.evaluation import EvaluationData, EvaluationSet
from vitas.data.folders import check_image_folder, class_names
from vitas.data.training import Augmentation, TrainingData, TrainingLoader, WeakAugmentation

__all__ = [
    "Augmentation",
    "EvaluationData",
    "EvaluationSet",
    "TrainingData",
    "TrainingLoader",
    "WeakAugmentation",
    "check_image_folder",
    "class_names",
]

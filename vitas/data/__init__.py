"""Images: folders, augmentation, the training loader and the in-memory evaluation set."""

from vitas.data.evaluation import INTERPOLATION, EvaluationData, EvaluationSet, channels, normalize
from vitas.data.folders import check_image_folder, class_names, open_image_folder
from vitas.data.pictures import Decoded, decode, find_pictures, spread_images
from vitas.data.training import Augmentation, TrainingData, TrainingLoader, WeakAugmentation

__all__ = [
    "INTERPOLATION",
    "Augmentation",
    "Decoded",
    "EvaluationData",
    "EvaluationSet",
    "TrainingData",
    "TrainingLoader",
    "WeakAugmentation",
    "channels",
    "check_image_folder",
    "class_names",
    "decode",
    "find_pictures",
    "normalize",
    "open_image_folder",
    "spread_images",
]

"""The trained network that the `test` section chooses: which checkpoint, and of which architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import vitas
from inference.card import trained_of
from inference.supernet import inherited_network, supernet_checkpoint
from vitas import checkpoint, loading
from vitas.catalog import AnyArchitecture, parse_architecture
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.folders import check_image_folder, class_names
from vitas.data.images import INTERPOLATION
from vitas.errors import UserError
from vitas.model_card import Trained
from vitas.models import create_model


def checkpoints_to_test(config: RunConfig) -> list[Path]:
    """The files that `load_name`, or `start`, `end` and `strip`, or nothing, choose.

    With `test.wait`, those of a range may not be written yet. Raises
    `UserError` for what is not there, and will not be.
    """
    settings = config.test
    if settings.from_supernet:
        return [supernet_checkpoint(config)]
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    if settings.start is None:
        return [folder.resolve(settings.load_name)]
    epochs = range(settings.start, settings.end + 1, settings.strip)
    held = folder.epochs()
    missing = [epoch for epoch in epochs if epoch not in held]
    if settings.wait:
        # A downloaded file alone: nothing is being trained here that could be waited for.
        if folder.newest() is None and folder.candidates():
            return [folder.resolve()]
        missing = [epoch for epoch in missing if held and epoch < held[-1]]
    if missing:
        raise UserError(
            f"test.start, test.end: no checkpoint of epoch {missing[0]} in {folder.folder}; "
            f"it holds epochs {', '.join(map(str, held)) or 'none'} (retrain.keep says how many stay)"
        )
    return [folder.epoch_path(epoch) for epoch in epochs]


def load_network(path: Path, config: RunConfig) -> nn.Module:
    """The network of a checkpoint, with the weights that `test.weights` chooses, in eval mode on the CPU.

    The file is read once. Raises `UserError` if it is broken, or does not fit its architecture.
    """
    if config.test.from_supernet:
        return inherited_network(config)[0]
    return _network_of(checkpoint.read(path), path, config)


def _network_of(state: Mapping, path: Path, config: RunConfig) -> nn.Module:
    network = create_model(_architecture(state, path, config), config.model.num_classes, config.model.image_size)
    loading.load_state(network, state, path, config.test.weights)
    return network.eval()


def _architecture(state: Mapping, path: Path, config: RunConfig) -> AnyArchitecture:
    """What `test.architecture` says, else what the checkpoint says, else what `retrain.architecture` says."""
    if config.test.architecture is not None:
        return config.architecture(config.test.architecture)
    text = state.get("architecture")
    if isinstance(text, str):
        try:
            return parse_architecture(text)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if config.retrain is None:
        raise UserError(f"{path} does not say its architecture; set test.architecture")
    return config.architecture(config.retrain.architecture)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, and what its pictures and outputs are.

    path: its checkpoint. epoch: after which that was written; 0 if it does not say so.
    network: in eval mode, on the CPU.
    class_names: one for each output; numbers where they are not `named`.
    trained: how its weights came about, where the checkpoint says it.
    """

    config: RunConfig
    path: Path
    epoch: int
    network: nn.Module
    class_names: list[str]
    named: bool
    trained: Trained | None = None

    @property
    def facts(self) -> dict[str, object]:
        """What goes along with an exported network, as plain data."""
        model, architecture = self.config.model, self.network.architecture
        return {
            "architecture": str(architecture),
            **architecture.costs(model.image_size, model.num_classes),
            "image_size": model.image_size,
            "num_classes": model.num_classes,
            "class_names": self.class_names,
            "mean": model.mean,
            "std": model.std,
            "interpolation": INTERPOLATION.value,
            "crop_fraction": self.config.test.data.crop_fraction,
            "checkpoint": self.path.name,
            "weights": self.config.test.weights,
            **({"from_supernet": True} if self.config.test.from_supernet else {}),
            "vitas_version": vitas.__version__,
        }

    @property
    def texts(self) -> dict[str, str]:
        """The facts as strings: JSON, for those that are no strings."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.facts.items()}


def trained_network(config: RunConfig) -> TrainedNetwork:
    """The network that the `test` section chooses, of a range the last; `test.flag` does not matter.

    Raises `UserError` if it chooses none, for a checkpoint that is broken or of
    another architecture, and for test images of other classes.
    """
    test = config.test
    if test is None:
        raise UserError("test: is missing; it says which checkpoint is meant, and how pictures are read")
    path = checkpoints_to_test(config)[-1]
    if not path.exists():
        raise UserError(f"test.end: {path} is not written yet")
    if test.from_supernet:
        network, state = inherited_network(config)
    else:
        state = checkpoint.read(path)
        network = _network_of(state, path, config)
    named = Path(test.data.data_dir).is_dir()
    if named:
        try:
            check_image_folder(test.data.data_dir, config.model.num_classes)
        except UserError as error:
            raise UserError(f"test.data.data_dir: {error}") from None
        names = class_names(test.data.data_dir)
    else:
        names = [str(label) for label in range(config.model.num_classes)]
    return TrainedNetwork(config, path, state.get("epoch", 0), network, names, named, trained_of(state, config))

"""The one network that export and predict are about, chosen as `test` chooses it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import vitas
from inference.testing import architecture_of, checkpoints_to_test, load_network
from vitas.config import RunConfig
from vitas.data import INTERPOLATION, check_image_folder, class_names
from vitas.errors import UserError
from vitas.space import costs


@dataclass(frozen=True)
class Chosen:
    """A trained network, and what its pictures and outputs are.

    path: its checkpoint. network: in eval mode, on the CPU.
    class_names: one for each output; numbers where they are not `named`.
    """

    config: RunConfig
    path: Path
    network: nn.Module
    class_names: list[str]
    named: bool

    @property
    def facts(self) -> dict[str, object]:
        """What goes along with an exported network, as plain data."""
        model, architecture = self.config.model, self.network.architecture
        return {
            "architecture": str(architecture),
            **costs(architecture, model.image_size, model.num_classes),
            "image_size": model.image_size,
            "num_classes": model.num_classes,
            "class_names": self.class_names,
            "mean": model.mean,
            "std": model.std,
            "interpolation": INTERPOLATION.value,
            "crop_fraction": self.config.test.data.crop_fraction,
            "checkpoint": self.path.name,
            "weights": self.config.test.weights,
            "vitas_version": vitas.__version__,
        }

    @property
    def texts(self) -> dict[str, str]:
        """The facts as strings, of which those that are no string are JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.facts.items()}


def choose(config: RunConfig) -> Chosen:
    """The network that the `test` section chooses, of a range the last; `test.flag` does not matter.

    Raises `UserError` where it chooses none, for a checkpoint that
    is broken or of another architecture, and for test images of other classes.
    """
    test = config.test
    if test is None:
        raise UserError("test: is missing; it says which checkpoint is meant, and how pictures are read")
    path = checkpoints_to_test(config)[-1]
    if not path.exists():
        raise UserError(f"test.end: {path} is not written yet")
    network = load_network(path, architecture_of(path, config), config)
    named = Path(test.data.data_dir).is_dir()
    if not named:
        return Chosen(config, path, network, [str(label) for label in range(config.model.num_classes)], named)
    try:
        check_image_folder(test.data.data_dir, config.model.num_classes)
    except UserError as error:
        raise UserError(f"test.data.data_dir: {error}") from None
    return Chosen(config, path, network, class_names(test.data.data_dir), named)

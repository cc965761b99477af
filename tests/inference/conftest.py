"""A network that has learnt something, for tests of what becomes of it afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from retrain.retrain import retrain
from tests.conftest import small_run
from vitas import config as configuration
from vitas.distributed import World

# The identity in the middle moves the positions that released files count.
TEXT = "p8-e32-token-h2q96m64-id-h4q96m64"


@pytest.fixture(scope="session")
def learnt(tmp_path_factory, digits) -> Path:
    """The YAML of a run whose `retrain` has trained TEXT for some seconds, with averaged weights; read it only."""
    folder = tmp_path_factory.mktemp("learnt")
    data = small_run(folder / "run", digits)
    data["retrain"] |= {"architecture": TEXT, "epochs": 6, "lr": 4e-3, "ema_decay": 0.9}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    retrain(configuration.load(path), World())
    return path

"""What the tests of `search` and `sample` share: one trained supernet, and what evolution found with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from search.sample import sample
from search.search import search
from tests.conftest import small_run
from tests.retrain.conftest import write_few_digits
from vitas import config as configuration
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.plain_data import apply_override


@pytest.fixture(scope="session")
def few_digits(digits, tmp_path_factory) -> dict[str, object]:
    """Overrides of a small run, for what is true of any images."""
    folder = tmp_path_factory.mktemp("few")
    return {
        "search.batch_size": 20,
        "search.data.data_dir": str(write_few_digits(digits, folder / "train")),
        "sample.data.data_dir": str(write_few_digits(digits, folder / "val", "val")),
    }


@pytest.fixture
def path(make_config, few_digits) -> Path:
    """A configuration whose stages take them."""
    return make_config(few_digits)


@pytest.fixture(scope="session")
def evolved_run(tmp_path_factory, digits, few_digits) -> Path:
    """The folder of a run after `search` and `sample`; to be copied, not written to."""
    folder = tmp_path_factory.mktemp("evolved")
    run = small_run(folder / "run", digits)
    for key, value in few_digits.items():
        apply_override(run, f"{key}={value}")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(run))
    config = configuration.load(path)
    search(config, World())
    sample(config, World())
    return folder / "run"


@pytest.fixture
def evolved(path, evolved_run, tmp_path) -> RunConfig:
    """A configuration, after `search` and `sample`; its folder is this test's own."""
    shutil.copytree(evolved_run, tmp_path / "run")
    return configuration.load(path)


@pytest.fixture
def trained(path, evolved_run, tmp_path) -> Callable[..., RunConfig]:
    """(overrides) -> a configuration whose supernet is trained, and with which nothing was sampled yet."""
    shutil.copytree(evolved_run / "search" / "checkpoint", tmp_path / "run" / "search" / "checkpoint")
    return lambda *overrides: configuration.load(path, overrides)

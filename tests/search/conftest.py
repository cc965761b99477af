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
from vitas import config as configuration
from vitas.config import RunConfig
from vitas.distributed import World


@pytest.fixture(scope="session")
def evolved_run(tmp_path_factory, digits) -> Path:
    """The folder of a run after `search` and `sample`; to be copied, not written to."""
    folder = tmp_path_factory.mktemp("evolved")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_run(folder / "run", digits)))
    config = configuration.load(path)
    search(config, World())
    sample(config, World())
    return folder / "run"


@pytest.fixture
def evolved(make_config, evolved_run, tmp_path) -> RunConfig:
    """A configuration, after `search` and `sample`; its folder is this test's own."""
    shutil.copytree(evolved_run, tmp_path / "run")
    return configuration.load(make_config())


@pytest.fixture
def trained(make_config, evolved_run, tmp_path) -> Callable[..., RunConfig]:
    """(overrides) -> a configuration whose supernet is trained, and with which nothing was sampled yet."""
    shutil.copytree(evolved_run / "search" / "checkpoint", tmp_path / "run" / "search" / "checkpoint")
    return lambda *overrides: configuration.load(make_config(), overrides)

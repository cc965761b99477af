"""The cluster that the tests here share, and their configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cluster.slurm import Slurm, missing_programs
from tests.conftest import small_run
from vitas.plain_data import apply_override


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running cluster. Without Slurm's programs its tests are skipped, unless VITAS_REQUIRE_SLURM is set."""
    missing = missing_programs()
    reason = f"no Slurm here: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm munge)"
    if missing and os.environ.get("VITAS_REQUIRE_SLURM"):
        pytest.fail(reason)
    if missing:
        pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, digits) -> Callable[..., Path]:
    """(name, overrides) -> a YAML whose stages take long enough to be disturbed; its run is in `run` beside it."""

    def make(name: str = "config", *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = small_run(folder / "run", digits)
        for stage in ("search", "retrain"):
            config[stage] |= {"epochs": 6, "batch_size": 32, "lr": 4e-3, "log_steps": 4, "keep": 0}
        config["search"]["epochs"] = 4
        # Networks of few tokens, which learn within seconds.
        config["model"]["space"]["patch_sizes"] = [8]
        config["sample"] |= {"generations": 8, "budget": {"minimum": 100_000, "maximum": 1_200_000}}
        # All of its epochs, so that there is a middle to be disturbed in.
        config["test"] |= {"start": 1, "end": 6}
        for override in overrides:
            apply_override(config, override)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return make

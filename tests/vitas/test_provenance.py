"""What is recorded of a start: all that may have influenced it, and no secret."""

from __future__ import annotations

import json
import stat

import pytest
import yaml

from tests.conftest import small_run
from tests.processes import run_here
from vitas import config as configuration
from vitas import provenance
from vitas.distributed import World

SECRETS = {
    name: f"secret of {name}"
    for name in (
        "SLURM_JWT", "CUDA_CRED", "MASTER_AUTH", "NCCL_PASSWD", "slurm_token", "Torch_Key", "VITAS_TOKEN",
        "PYTORCH_HUB", "OMP_LOGIN", "MKL_LICENCE", "SLURM_SPANK_X", "TORCHELASTIC_RUN_ID", "cuda_visible_devices",
        "AWS_SECRET_ACCESS_KEY", "GLOO_PSK", "LD_LIBRARY_PATH_SIGNED",
    )
}  # fmt: skip


@pytest.fixture
def config(tmp_path, digits) -> configuration.RunConfig:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run(tmp_path / "run", digits)))
    return configuration.load(path)


def test_variables_that_influence_a_run_are_recorded_and_no_other(config, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    told = {"SLURM_JOB_PARTITION": "gpu", "CUDA_VISIBLE_DEVICES": "0,1", "NCCL_IB_HCA": "mlx5", "OMP_NUM_THREADS": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    provenance.write_start(tmp_path, "search", ["config.yaml"], config, World())
    path = tmp_path / "environment.json"
    text = path.read_text()
    assert "secret of" not in text
    assert told.items() <= json.loads(text)["variables"].items()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_name_that_is_recorded_is_of_a_secret():
    words = ("TOKEN", "SECRET", "PASS", "KEY", "CRED", "AUTH", "JWT", "LOGIN", "COOKIE")
    assert not [name for name in provenance.RECORDED_VARIABLES if any(word in name.upper() for word in words)]


def test_the_command_is_recorded_without_values_of_keys_that_no_configuration_has(config, tmp_path):
    arguments = ["config.yaml", "search.epochs=3", "retrain.architecture={net_id: 1}", "wandb.api_key=secret of mine",
                 "wandb=secret of mine"]  # fmt: skip
    provenance.write_start(tmp_path, "search", arguments, config, World())
    text = (tmp_path / "environment.json").read_text()
    assert "secret of" not in text
    assert json.loads(text)["command"] == [
        "python", "-m", "search", "config.yaml", "search.epochs=3", "retrain.architecture={net_id: 1}",
        "wandb.api_key=...", "wandb=...",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_program_records_its_own_command(make_config, tmp_path):
    config = make_config({"retrain.architecture": "p8-e32-token-h2q96m64", "retrain.warmup_epochs": 0})
    run_here("retrain", config, "retrain.epochs=1")
    environment = json.loads((tmp_path / "run" / "retrain" / "log" / "retrain" / "environment.json").read_text())
    assert environment["command"] == ["python", "-m", "retrain", str(config), "retrain.epochs=1"]

"""Records where a result came from: code, packages, machine, job and configuration, at every start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml

from vitas.config_section import Section
from vitas.distributed import World
from vitas.files import write_text
from vitas.slurm import queries

_PACKAGES = (
    "vitas", "torch", "torchvision", "timm", "pymoo", "numpy", "pillow", "pyyaml", "pydantic", "tensorboard",
    "submitit", "rich",
)  # fmt: skip
# Environment variables that can influence a run. Others may hold secrets and are not recorded.
_PREFIXES = (
    "SLURM_", "CUDA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH", "PYTORCH_", "VITAS_", "MASTER_", "PYTHONPATH",
    "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX",
)  # fmt: skip
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY")


def write_start(folder: Path, config: Section, world: World) -> None:
    """Write `config.yaml`, with all defaults filled in, and `environment.json` to the folder of a start."""
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_text(folder / "environment.json", json.dumps(environment(world), indent=2) + "\n")


def environment(world: World) -> dict:
    """Code, packages, machine and job of this process, as plain data."""
    on_gpu = world.device.type == "cuda"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": sys.orig_argv,
        "working_directory": os.getcwd(),
        "git": git_state(Path(__file__).parent),
        "python": sys.version,
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "host": platform.node(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(world.device) if on_gpu else "cpu",
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "slurm_job": queries.job_id(),
        "slurm_restarts": queries.restarts(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PREFIXES) and not any(word in name for word in _SECRETS)
        },
    }


def git_state(folder: Path) -> dict | None:
    """The commit of a folder's code, and whether tracked files differ from it; None without git or a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

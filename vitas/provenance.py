"""Records where a result came from: code, packages, machine, job and configuration, at every start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from vitas.config_section import Section
from vitas.distributed import World
from vitas.files import write_text
from vitas.slurm import queries

_PACKAGES = (
    "vitas", "torch", "torchvision", "timm", "pymoo", "numpy", "pillow", "simplejpeg", "pyyaml", "pydantic",
    "tensorboard", "submitit", "rich",
)  # fmt: skip
# The environment variables that are recorded, those that can influence a run: where the job runs, how ranks find each
# other, GPUs, messages between them, processors and torch, and which code runs. Any other may hold a secret, whatever
# its name; so a new one is added here by hand.
_RECORDED = """
    SLURM_CLUSTER_NAME SLURM_JOB_ID SLURM_JOB_NAME SLURM_JOB_PARTITION SLURM_JOB_QOS SLURM_JOB_ACCOUNT
    SLURM_JOB_RESERVATION SLURM_JOB_CONSTRAINTS SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_JOB_CPUS_PER_NODE
    SLURM_JOB_GPUS SLURM_JOB_START_TIME SLURM_JOB_END_TIME SLURM_RESTART_COUNT SLURM_SUBMIT_DIR SLURMD_NODENAME
    SLURM_STEP_ID SLURM_STEP_NODELIST SLURM_STEP_NUM_NODES SLURM_STEP_NUM_TASKS SLURM_STEP_TASKS_PER_NODE
    SLURM_STEP_GPUS SLURM_NODEID SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NTASKS_PER_NODE SLURM_TASKS_PER_NODE
    SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_CPUS_ON_NODE SLURM_CPU_BIND SLURM_MEM_BIND SLURM_GPU_BIND
    SLURM_DISTRIBUTION SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_GPUS_ON_NODE SLURM_GTIDS
    SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_HINT SLURM_TOPOLOGY_ADDR

    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT
    TORCHELASTIC_MAX_RESTARTS GLOO_SOCKET_IFNAME TP_SOCKET_IFNAME

    CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_DEVICE_MAX_CONNECTIONS CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING
    CUDA_HOME CUDA_PATH CUDA_CACHE_DISABLE CUDA_CACHE_PATH CUDA_FORCE_PTX_JIT CUDA_MPS_ACTIVE_THREAD_PERCENTAGE
    CUDA_MPS_PIPE_DIRECTORY NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES NVIDIA_TF32_OVERRIDE
    CUBLAS_WORKSPACE_CONFIG CUBLASLT_WORKSPACE_SIZE CUDNN_LOGLEVEL_DBG

    NCCL_ALGO NCCL_PROTO NCCL_NET NCCL_NET_PLUGIN NCCL_NET_GDR_LEVEL NCCL_NET_GDR_READ NCCL_SOCKET_IFNAME
    NCCL_SOCKET_FAMILY NCCL_SOCKET_NTHREADS NCCL_NSOCKS_PERTHREAD NCCL_IB_DISABLE NCCL_IB_HCA NCCL_IB_TIMEOUT
    NCCL_IB_RETRY_CNT NCCL_IB_GID_INDEX NCCL_IB_SL NCCL_IB_TC NCCL_IB_QPS_PER_CONNECTION
    NCCL_IB_PCI_RELAXED_ORDERING NCCL_IB_ADAPTIVE_ROUTING NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_SHM_DISABLE
    NCCL_NVLS_ENABLE NCCL_CUMEM_ENABLE NCCL_MNNVL_ENABLE NCCL_CROSS_NIC NCCL_BUFFSIZE NCCL_NTHREADS
    NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS NCCL_MIN_CTAS NCCL_MAX_CTAS NCCL_LAUNCH_MODE NCCL_GRAPH_MIXING_SUPPORT
    NCCL_TOPO_FILE NCCL_COLLNET_ENABLE NCCL_CHECKS_DISABLE NCCL_DEBUG NCCL_DEBUG_SUBSYS NCCL_DEBUG_FILE
    NCCL_BLOCKING_WAIT NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_BLOCKING_WAIT TORCH_NCCL_ASYNC_ERROR_HANDLING
    TORCH_NCCL_AVOID_RECORD_STREAMS TORCH_NCCL_ENABLE_MONITORING TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC
    TORCH_NCCL_HIGH_PRIORITY TORCH_NCCL_TRACE_BUFFER_SIZE TORCH_DISTRIBUTED_DEBUG

    OMP_NUM_THREADS OMP_DYNAMIC OMP_PLACES OMP_PROC_BIND OMP_SCHEDULE OMP_WAIT_POLICY OMP_THREAD_LIMIT OMP_STACKSIZE
    GOMP_CPU_AFFINITY GOMP_SPINCOUNT KMP_AFFINITY KMP_BLOCKTIME KMP_SETTINGS MKL_NUM_THREADS MKL_DYNAMIC MKL_CBWR
    MKL_THREADING_LAYER MKL_INTERFACE_LAYER MKL_ENABLE_INSTRUCTIONS MKL_DEBUG_CPU_TYPE MKL_SERVICE_FORCE_INTEL
    OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA ATEN_CPU_CAPABILITY MALLOC_CONF
    MALLOC_ARENA_MAX TORCH_HOME TORCH_SHOW_CPP_STACKTRACES TORCH_CPP_LOG_LEVEL TORCH_LOGS
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_CUDNN_V8_API_DISABLED TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD TORCH_FORCE_WEIGHTS_ONLY_LOAD TORCH_COMPILE_DISABLE TORCHDYNAMO_DISABLE
    TORCHINDUCTOR_CACHE_DIR TORCHINDUCTOR_MAX_AUTOTUNE PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_JIT
    PYTORCH_NVFUSER_DISABLE PYTORCH_NO_CUDA_MEMORY_CACHING

    PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONOPTIMIZE PYTHONNOUSERSITE LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV
    CONDA_PREFIX LANG LC_ALL TZ VITAS_PROCESSES VITAS_RENDEZVOUS_SECONDS VITAS_STOP_MARGIN
"""
RECORDED_VARIABLES = frozenset(_RECORDED.split())


def write_start(folder: Path, program: str, arguments: Sequence[str], config: Section, world: World) -> None:
    """Write `config.yaml`, with all defaults filled in, and `environment.json` to the folder of a start.

    arguments: the program's, a YAML's path and overrides.
    """
    data = config.model_dump(mode="json")
    write_text(folder / "config.yaml", yaml.safe_dump(data, sort_keys=False))
    command = ["python", "-m", program, *_without_foreign_values(arguments, data)]
    # For its owner alone: it says much of a machine, and a user may have put a secret where none belongs.
    write_text(folder / "environment.json", json.dumps(environment(command, world), indent=2) + "\n", mode=0o600)


_MISSING = object()


def _without_foreign_values(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """A YAML's path and overrides; of a key that the configuration does not have, without the value.

    A released file has keys of its own, some without effect, which may hold anything.
    """
    path, *overrides = arguments
    kept = [str(path)]
    for override in overrides:
        key = override.partition("=")[0]
        found: object = config
        for part in key.split("."):
            found = found.get(part, _MISSING) if isinstance(found, Mapping) else _MISSING
        kept.append(f"{key}=..." if found is _MISSING else override)
    return kept


def environment(command: Sequence[str], world: World) -> dict[str, Any]:
    """Code, packages, machine and job of this process, as plain data. command: what to record as its command."""
    on_gpu = world.device.type == "cuda"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": list(command),
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
        "variables": {name: value for name, value in sorted(os.environ.items()) if name in RECORDED_VARIABLES},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
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

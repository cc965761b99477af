"""A real Slurm on this machine: one controller and four nodes with four pretend GPUs each, in partitions of two nodes.

It runs as the user who starts it, from a folder of its own, with a munge of its
own; nothing of the machine's configuration is touched. By hand, to try things:

    python -m tests.cluster.slurm FOLDER      # prints what to export; Ctrl-C ends it
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n1", "n2", "n3", "n4")
# A GPU needs a character device; any will do for one that is only counted.
GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its old credential has expired: two minutes, unless that is made short.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Nodes of one machine may claim more processors than it has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=5
# A node whose daemon is silent for this long is down, and its jobs are requeued.
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
{nodes}
PartitionName=VA Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1,n2 MaxTime=30 State=UP
# For what takes a node down.
PartitionName=frail Nodes=n3,n4 MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm and munge that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]


class Slurm:
    """A cluster in a folder. environment: what its users' commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PATH": SEARCH_PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start every daemon and wait until all nodes are idle. Raises `RuntimeError` where they do not come up."""
        folder = self.folder
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True, mode=0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        controller_port, *ports = _free_ports(1 + len(NODES))
        nodes = (
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs=16 RealMemory=8000 Gres=gpu:{len(GPUS)} State=UNKNOWN"
            for node, port in zip(NODES, ports, strict=True)
        )
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                host=host,
                user=getpass.getuser(),
                controller_port=controller_port,
                nodes="\n".join(nodes),
            )
        )
        (folder / "gres.conf").write_text(
            "".join(f"NodeName=n[1-{len(NODES)}] Name=gpu File={device}\n" for device in GPUS)
        )
        munge = folder / "munge"
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for((munge / "socket").exists, 10, "munged opens no socket")
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_for(self._idle, 60, "the nodes do not become idle")

    def start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """kill -9 for the daemon of a node, as if the node had lost its power; its processes live on."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def stop(self) -> None:
        """End all jobs and daemons; no process stays behind."""
        self.run("scancel", f"--user={getpass.getuser()}", ok=False)
        with suppress(RuntimeError):
            wait_for(lambda: self.run("squeue", "-h", ok=False).stdout == "", 20, "jobs do not end")
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: object, ok: bool = True, variables: dict[str, str] | None = None, **options: object):
        """Run a command as a user of the cluster; where it must be `ok`, a failure shows what it printed."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment | (variables or {}),
            capture_output=True,
            text=True,
            timeout=120,
            **options,
        )
        assert not ok or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        fields = self.run("scontrol", "show", "job", job).stdout.split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait until a job has ended, requeues and all; its fields then."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_for(lambda: self.job(job)["JobState"] in ended, seconds, f"job {job} does not end", every=0.5)
        return self.job(job)

    def _idle(self) -> bool:
        lines = self.run("sinfo", "-h", "-N", "-p", "VA,frail", "-o", "%N %T").stdout.splitlines()
        return sorted(lines) == [f"{node} idle" for node in NODES]

    def _spawn(self, program: str, *arguments: str, name: str | None = None) -> None:
        name = name or program
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                [shutil.which(program, path=SEARCH_PATH), *arguments],
                env=self.environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str, every: float = 0.1) -> None:
    """Wait until a condition holds, looking `every` so many seconds. Raises `RuntimeError` with `otherwise`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(otherwise)
        time.sleep(every)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    cluster = Slurm(Path(sys.argv[1]).resolve())
    try:
        cluster.start()
        print(f"export PATH={SEARCH_PATH} SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()

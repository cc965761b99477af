"""The four stages as targets: small, each run in a process of its own that is forked and not started, for speed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from tests.conftest import small_run
from tests.retrain.conftest import write_few_digits
from vitas.data.example_images import write_digits
from vitas.run import STAGES

SECONDS = 120
# A stage that is no faster for a second network would only cost time.
ORDER = ("search", "sample", "retrain", "test")


@dataclass(frozen=True)
class End:
    """How a process ended. code: its exit code, or minus the signal; None if it was still running after `SECONDS`."""

    code: int | None
    output: str
    seconds: float

    @property
    def is_hung(self) -> bool:
        return self.code is None

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output


class Target:
    """The stages of a small run under `folder`: undisturbed results, and the state before each stage.

    Everything happens under the same `save_path`, one process at a time.
    """

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.run = folder, folder / "run"
        self._before = folder / "before"
        folder.mkdir(parents=True, exist_ok=True)
        images = folder / "images"
        if not images.exists():
            write_digits(folder / "all")
            for part in ("train", "val", "test"):
                write_few_digits(folder / "all", images / part, part)
        config = small_run(self.run, images)
        for name in ("search", "retrain"):
            config[name] |= {"batch_size": 40, "keep": 2, "checkpoint_steps": 3, "epochs": 3, "log_steps": 2}
        config["sample"] |= {"generations": 1}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self._overrides = overrides
        # Once, here: what every process below needs.
        for stage in STAGES.values():
            for place in stage.functions.values():
                importlib.import_module(place.partition(":")[0])
        importlib.import_module("vitas.provenance")
        self.undisturbed: dict[str, dict] = {}
        shutil.rmtree(self.run, ignore_errors=True)
        for stage in ORDER:
            if self.run.exists():
                shutil.copytree(self.run, self._before / stage, dirs_exist_ok=True)
            end = self.start(stage)
            assert end.code == 0, end.output
            self.undisturbed[stage] = self.results(stage)

    def reset(self, stage: str) -> None:
        """Make the run what it is when a stage starts for the first time."""
        shutil.rmtree(self.run, ignore_errors=True)
        if (self._before / stage).exists():
            shutil.copytree(self._before / stage, self.run)

    def start(
        self, stage: str, prepare: Callable[[], None] = lambda: None, kill_after: float | None = None, *overrides: str
    ) -> End:
        """Run a stage in a process. prepare: called in it first. kill_after: seconds until it is killed."""
        pid = self.fork(stage, prepare, *overrides)
        began = time.monotonic()
        code = self.wait(pid, kill_after)
        return End(code, self.output(pid), time.monotonic() - began)

    def fork(self, stage: str, prepare: Callable[[], None] = lambda: None, *overrides: str) -> int:
        """Start a stage and return its process's id."""
        flags = [f"{name}.flag={str(name == stage).lower()}" for name in ORDER]
        arguments = [str(self.config), *flags, *self._overrides, *overrides]
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            output = os.open(self.folder / f"output-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            from vitas.program import run_stages

            prepare()
            run_stages(STAGES[stage].program, "", arguments=arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, pid: int, kill_after: float | None = None) -> int | None:
        """The exit code of a process, or minus the signal that ended it; None if it had to be ended after `SECONDS`."""
        end = time.monotonic() + SECONDS
        kill = time.monotonic() + kill_after if kill_after is not None else end
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if now > kill and kill < end:
                os.kill(pid, signal.SIGKILL)
                kill = end
            if now > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
            time.sleep(0.002)

    def output(self, pid: int) -> str:
        path = self.folder / f"output-{pid}"
        text = path.read_text(errors="replace") if path.exists() else ""
        path.unlink(missing_ok=True)
        return text

    def results(self, stage: str) -> dict:
        """All that a stage's end must not depend on its being disturbed: contents of its files, and their names."""
        home = self.run / STAGES[stage].home
        found: dict[str, object] = {}
        if stage in ("search", "retrain"):
            for path in sorted((home / "checkpoint").iterdir()):
                found[path.name] = digest_of(torch.load(path, weights_only=True)) if path.suffix == ".tar" else "?"
        if stage == "search":
            found["seen"] = (home / "seen.yaml").read_text()
        if stage == "sample":
            for name in ("population.jsonl", "architectures.yaml"):
                found[name] = (home / name).read_text()
        if stage == "test":
            results = json.loads((home / "results.json").read_text())
            found = {name: results[name] for name in ("architecture", "top1", "top5", "loss", "images", "macs")}
        found["unfinished"] = sorted(path.name for path in home.rglob("*.tmp"))
        return found


def digest_of(state: object) -> str:
    """A digest of a checkpoint's contents, to the bit."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(-1).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()

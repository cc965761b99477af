"""What the three stage programs share: arguments, configuration, process group, and how they end."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vitas import interruption, slurm
from vitas.errors import UserError

if TYPE_CHECKING:
    from vitas.config import RunConfig
    from vitas.distributed import World
    from vitas.lock import Lock

MISTAKE = 2
# Where a job's supervisor wants to be told how its ranks ended (see `vitas.launch.supervisor`).
OUTCOME_VARIABLE = "VITAS_OUTCOME"


def run_stages(program: str, description: str, stages: Mapping[str, str], epilog: str | None = None) -> None:
    """Run those of `stages` that the configuration on the command line flags, in order.

    stages: the module of each; its function of the stage's name takes (RunConfig, World).
    epilog: what --help says at its end.

    The program ends with exit code 0; with 2 and one message for a `UserError`;
    with 75 where it was interrupted, and the same command goes on; else with 1.
    """
    # Before torch is loaded, which takes seconds in which a signal would kill.
    interruption.listen()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of it, as search.epochs=10")
    arguments = parser.parse_args()

    from vitas import distributed

    try:
        config, flagged = _configuration(arguments, tuple(stages))
        world = distributed.init(config.port)
    except UserError as error:
        # Every process finds the same mistakes; one of them tells.
        _end(MISTAKE, f"error: {error}", tells=_rank() == 0)
    except distributed.RendezvousError as error:
        _end(1, f"error: {error}")
    lock = None
    try:
        lock = _take_lock(program, config, world)
        for name in flagged:
            getattr(import_module(stages[name]), name)(config, world)
            if name != flagged[-1] and (reason := interruption.requested(world, at_once=True)):
                raise interruption.Interrupted(reason)
        interruption.settle()
    except UserError as error:
        # Mostly all ranks find it. Another than the first tells only where the first is not about to end them all.
        if world.rank:
            time.sleep(5)
        _release(lock)
        _end(MISTAKE, f"error: {error}")
    except interruption.Interrupted as error:
        # A job that is requeued still owns what it writes while it waits, so its lock stays.
        if OUTCOME_VARIABLE not in os.environ:
            _release(lock)
        distributed.shutdown()
        _end(interruption.EXIT_CODE, f"stopped by {error}; the same command goes on", tells=world.is_main)
    except Exception:
        if world.size == 1:
            raise
        # Without the usual clean-up: it waits for the other ranks, which wait for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    _release(lock)
    distributed.shutdown()


def _configuration(arguments: argparse.Namespace, stages: tuple[str, ...]) -> tuple[RunConfig, list[str]]:
    from vitas import config as configuration

    config = configuration.load(arguments.config, arguments.overrides, stages)
    flagged = [name for name in stages if (section := getattr(config, name)) and section.flag]
    if not flagged:
        keys = " or ".join(f"{name}.flag" for name in stages)
        raise UserError(f"{arguments.config}: there is nothing to do; set {keys} to true")
    config.folder.check_writable()
    if config.warning and _rank() == 0:
        print(f"warning: {config.warning}", file=sys.stderr, flush=True)
    return config, flagged


def _take_lock(program: str, config: RunConfig, world: World) -> Lock | None:
    """Rank 0 takes the run's lock, and writes down what it starts. Raises `UserError` on every rank if it may not."""
    from vitas import distributed, provenance
    from vitas.lock import Lock

    lock = refusal = None
    if world.is_main:
        try:
            lock = Lock(config.folder.lock(program))
        except UserError as error:
            refusal = str(error)
    refusal = distributed.broadcast(refusal, world)
    if refusal:
        raise UserError(refusal)
    if lock:
        provenance.write_start(config.folder.start(program, slurm.job_id()), config, world)
        interruption.guard(lock.check)
        interruption.watch_time_limit()
    return lock


def _release(lock: Lock | None) -> None:
    if lock:
        lock.release()


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _end(code: int, message: str, tells: bool = True) -> None:
    """Say why, to the user and to the job's supervisor, and exit."""
    if tells:
        print(message, file=sys.stderr, flush=True)
    outcome = os.environ.get(OUTCOME_VARIABLE)
    if outcome and tells:
        # The first rank to end says why; the others end because it did.
        try:
            with open(Path(outcome), "x") as file:
                json.dump({"code": code, "message": message, "rank": _rank()}, file)
        except OSError:
            pass
    sys.exit(code)

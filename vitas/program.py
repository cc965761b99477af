"""What the three stage programs share: arguments, configuration, process group, and how they end."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitas import config as configuration
from vitas.config import RunConfig
from vitas.errors import MISTAKE, UserError
from vitas.run import STAGES, stages_of
from vitas.slurm import queries, signals
from vitas.slurm.lock import Lock
from vitas.slurm.supervisor import OUTCOME_VARIABLE

if TYPE_CHECKING:
    from vitas.distributed import World


def natural(text: str) -> int:
    """An argument that is a whole number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number")
    return int(text)


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number above 0")
    return int(text)


def run_stages(
    program: str, description: str, epilog: str | None = None, arguments: Sequence[str] | None = None
) -> None:
    """Run those stages of a program that the configuration on the command line flags, in order.

    epilog: what --help says at its end.
    arguments: of the command line, without the program's name; None is `sys.argv`'s.

    The program ends with exit code 0; with 2 and one message for a `UserError`;
    with 75 where it was interrupted, and the same command goes on; else with 1.
    """
    # Before torch is loaded, which takes seconds in which a signal would kill.
    signals.listen()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of it, as search.epochs=10")
    parsed = parser.parse_args(arguments)
    try:
        config, flagged = _configuration(parsed, stages_of(program))
    except UserError as error:
        # Every process finds the same mistakes; one of them tells.
        _end(MISTAKE, f"error: {error}", tells=_rank() == 0)
    _run(program, config, flagged)


def _run(program: str, config: RunConfig, flagged: list[str]) -> None:
    # It loads torch, which takes seconds: after the configuration is known to be right.
    from vitas import distributed

    try:
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
            STAGES[name].function(getattr(getattr(config, name), "method", ""))(config, world)
            if name != flagged[-1] and (reason := distributed.stop_requested(world, at_once=True)):
                raise signals.Interrupted(reason)
        distributed.settle()
    except UserError as error:
        # Mostly all ranks find it. Another than the first tells only where the first is not about to end them all.
        if world.rank:
            time.sleep(5)
        _release(lock)
        _end(MISTAKE, f"error: {error}")
    except signals.Interrupted as error:
        # A job that is requeued still owns what it writes while it waits, so its lock stays.
        if OUTCOME_VARIABLE not in os.environ:
            _release(lock)
        distributed.shutdown()
        _end(signals.EXIT_CODE, f"stopped by {error}; the same command goes on", tells=world.is_main)
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
    config = configuration.load(arguments.config, arguments.overrides, stages)
    flagged = config.flagged(stages)
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
        provenance.write_start(config.folder.start(program, queries.job_id()), config, world)
        signals.guard(lock.check)
        signals.watch_time_limit()
    return lock


def _release(lock: Lock | None) -> None:
    if lock:
        # Looking after it would take it again.
        signals.guard(None)
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

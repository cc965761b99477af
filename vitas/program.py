"""The main function of the three stage programs: arguments, configuration, process group, lock and exit."""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vitas import config as configuration
from vitas import watchdog
from vitas.config import RunConfig
from vitas.errors import MISTAKE, UserError, print_any_name
from vitas.files import guard_writes, naming_what_has_no_room, remove_leftovers, write_text
from vitas.next_step import next_step
from vitas.report_page.refresh import PageRefresh
from vitas.run import STAGES, stages_of
from vitas.slurm import queries, signals
from vitas.slurm.lock import Lock
from vitas.slurm.supervisor import OUTCOME_VARIABLE

if TYPE_CHECKING:
    from vitas.distributed import World


def run_stages(
    program: str, description: str, epilog: str | None = None, arguments: Sequence[str] | None = None
) -> None:
    """Run, in order, the stages of a program that the configuration flags.

    epilog: the last part of the --help text.
    arguments: of the command line, without the program's name; by default those of `sys.argv`.

    The exit code is 0 on success; 2, with one message, for a `UserError`; 75 if
    the program was interrupted, and the same command resumes it; otherwise 1.
    """
    # First, because importing torch takes seconds, during which a signal would end the process.
    signals.listen()
    print_any_name()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of it, e.g. search.epochs=10")
    parsed = parser.parse_args(arguments)
    _load_and_run(program, stages_of(program), parsed.config, parsed.overrides)


def run_stage(name: str, path: str, overrides: Sequence[str]) -> None:
    """Run one stage, whatever its flag says, and none beside it: `vitas STAGE CONFIG`. Ends as `run_stages` does."""
    signals.listen()
    _load_and_run(STAGES[name].program, (name,), path, overrides, (f"{name}.flag=true",))


def _load_and_run(
    program: str, stages: Sequence[str], path: str, overrides: Sequence[str], settings: Sequence[str] = ()
) -> None:
    """settings: overrides that the command means, beside those that were given."""
    try:
        config, flagged = _load(path, (*overrides, *settings), stages)
    except UserError as error:
        # Every process finds the same mistakes; rank 0 reports them.
        _exit(MISTAKE, f"error: {error}", report=_rank() == 0)
    _run(program, config, flagged, (path, *overrides))


def _run(program: str, config: RunConfig, flagged: list[str], given: Sequence[str]) -> None:
    # After the configuration is checked: this imports torch, which takes seconds.
    with quick_imports():
        functions = [STAGES[name].function(getattr(getattr(config, name), "method", "")) for name in flagged]
        from vitas import distributed
        from vitas.data.workers import ending_workers

    try:
        world = distributed.init(config.port)
    except UserError as error:
        # Every process finds the same mistakes; rank 0 reports them.
        _exit(MISTAKE, f"error: {error}", report=_rank() == 0)
    except distributed.RendezvousError as error:
        _exit(1, f"error: {error}")
    lock = None
    try:
        with ending_workers(), naming_what_has_no_room(config.folder.root):
            lock = _take_lock(program, config, world, given)
            _watch(program, config, world)
            page = PageRefresh(config.folder.root) if world.is_main else None
            for name, function in zip(flagged, functions, strict=True):
                function(config, world)
                if page:
                    page.start(config.folder.log(name, queries.job_id()))
                if name != flagged[-1] and (reason := distributed.stop_requested(world, at_once=True)):
                    raise signals.Interrupted(reason)
            distributed.settle()
    except UserError as error:
        # Usually all ranks find the same mistake. Others wait, so that they report it only if rank 0 does not end them.
        if world.rank:
            time.sleep(5)
        _note_end(program, config, MISTAKE, str(error), lock)
        _release(lock)
        _exit(MISTAKE, f"error: {error}")
    except signals.Interrupted as error:
        _note_end(program, config, signals.EXIT_CODE, f"stopped by {error}", lock)
        # A requeued job keeps its lock while it waits in the queue.
        if OUTCOME_VARIABLE not in os.environ:
            _release(lock)
        watchdog.stop()
        distributed.shutdown()
        _exit(
            signals.EXIT_CODE,
            f"stopped by {error}; run the same command again to resume",
            report=world.is_main,
        )
    except Exception as error:
        _note_end(program, config, 1, f"{type(error).__name__}: {error}", lock)
        if world.size == 1:
            _release(lock)
            raise
        # Without the usual clean-up, which would wait for the other ranks, while they wait for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    watchdog.stop()
    _note_end(program, config, 0, "done", lock)
    _release(lock)
    distributed.shutdown()
    # Last, when no rank waits for this one, and no lock is held.
    if page:
        page.finish()
    # A job's last line is its supervisor's.
    if world.is_main and OUTCOME_VARIABLE not in os.environ:
        print(next_step(config, flagged[-1], given), flush=True)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import within it what takes long, such as torch.

    Nearly every object that an import makes lives until the process ends. To search them for garbage, during the
    import and at exit, takes as long as the import itself; so they are exempt from it. timm loads all of wandb to see
    whether it is there. So meanwhile it is not; a stage that logs to it loads it later.
    """
    gc.disable()
    hides = "wandb" not in sys.modules
    if hides:
        # Python's way to say that there is no such module, which its types do not know.
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            del sys.modules["wandb"]
        gc.freeze()
        gc.enable()


def _load(path: str, overrides: Sequence[str], stages: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The configuration and its flagged stages. Raises `UserError` if none is flagged."""
    config = configuration.load(path, overrides, stages)
    flagged = config.flagged(stages)
    if not flagged:
        keys = " or ".join(f"{name}.flag" for name in stages)
        raise UserError(f"{path}: there is nothing to do; set {keys} to true")
    config.folder.check_writable()
    if config.warning and _rank() == 0:
        print(f"warning: {config.warning}", file=sys.stderr, flush=True)
    return config, flagged


def _take_lock(program: str, config: RunConfig, world: World, given: Sequence[str]) -> Lock | None:
    """Take the run's lock on rank 0 and record the start. Raises `UserError` on every rank if another holds it.

    given: the arguments of the program, for the record.
    """
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
        # Of processes that were killed in the middle of a write.
        remove_leftovers(config.folder.lock(program).parent)
        config.folder.end(program, queries.job_id()).unlink(missing_ok=True)
        provenance.write_start(config.folder.start(program, queries.job_id()), program, given, config, world)
        # Another start takes the lock over where this process was silent for long.
        signals.guard(lock.check)
        guard_writes(lock.held)
        signals.watch_time_limit()
    return lock


def _note_end(program: str, config: RunConfig, code: int, message: str, lock: Lock | None) -> None:
    """Write how this start ended, for `vitas status`. lock: that of rank 0; others, and who was refused it, write none.

    A start that was killed leaves no such file.
    """
    if lock is not None:
        end = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "code": code, "message": message}
        # It must not hide how the program ended.
        with suppress(UserError, OSError, RuntimeError):
            write_text(config.folder.end(program, queries.job_id()), json.dumps(end) + "\n")


def _watch(program: str, config: RunConfig, world: World) -> None:
    """Have a rank that no longer gets on noticed, where others wait for it."""
    from vitas import distributed

    if world.size == 1:
        return
    # Numbered by the start: ranks of an earlier one may linger on a lost node.
    folder = config.folder.start(program, queries.job_id()) / f"stall-{queries.restarts()}"
    if world.is_main:
        watchdog.forget(folder)
    hosts = distributed.gather(socket.gethostname(), world)
    watchdog.start(folder, world.rank, hosts, config.stall_seconds, _end_at_once)


def _end_at_once(message: str, report: bool) -> None:
    """End this process, whatever its main thread waits for."""
    if report:
        _tell(1, message)
    sys.stderr.flush()
    os._exit(1)


def _release(lock: Lock | None) -> None:
    if lock:
        # First, because the check would write the lock again.
        signals.guard(None)
        guard_writes(None)
        # On a disk that fails, the file stays; the next start sees that its holder is gone.
        with suppress(UserError, OSError):
            lock.release()


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _exit(code: int, message: str, report: bool = True) -> None:
    """Exit with `code`; with `report`, first give the message to the user and to the job's supervisor."""
    if report:
        _tell(code, message)
    sys.exit(code)


def _tell(code: int, message: str) -> None:
    """Give a message to the user, and it and the exit code to the job's supervisor."""
    print(message, file=sys.stderr, flush=True)
    outcome = os.environ.get(OUTCOME_VARIABLE)
    if outcome:
        # Only the first rank to end writes it; the others end as a result.
        with suppress(OSError), open(outcome, "x") as file:
            json.dump({"code": code, "message": message, "rank": _rank()}, file)

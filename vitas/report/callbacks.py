"""Callbacks: code of installed packages that follows a run.

A YAML may come from a stranger, so it names no code. It names entry points of
the group `vitas.callbacks`, which only packages have that somebody installed:

    # setup.py, or the same in pyproject.toml
    entry_points={"vitas.callbacks": ["telegram = my_package.notify:Telegram"]}

    # the run's YAML
    callbacks: [telegram]

The entry point is a class derived from `Callback`, or a function that returns
such an object; it is called without arguments, on rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vitas.errors import UserError

GROUP = "vitas.callbacks"


class Callback:
    """What a callback may be told; by default it does nothing.

    A run waits for it, and its other ranks too, so what takes long belongs in a thread. It must not draw from global
    random generators. Where it raises, the log says so with its name, and it is told nothing more in this start of the
    stage: days of training do not end for a notice.
    """

    def stage_started(self, stage: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """A stage starts, or goes on. folder: the run's. settings: of the stage, by their dotted keys."""

    def scalars(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        """Numbers after a step, by their names, e.g. `train/loss`."""

    def epoch_ended(self, epoch: int, values: Mapping[str, float]) -> None:
        """So many epochs of a training are done. values: the newest numbers."""

    def checkpoint_saved(self, path: Path) -> None:
        """A checkpoint is on the disk, whole."""

    def stage_ended(self, results: Mapping[str, float]) -> None:
        """A stage has done all its work. It is not told of one that is stopped, and will go on."""


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check_callbacks(names: Sequence[str]) -> None:
    """Raise `UserError` for a name that no installed package has. Loads none of them."""
    if not names:
        return
    installed = _installed()
    for name in names:
        if name not in installed:
            there = f"there are {', '.join(sorted(installed))}" if installed else "there are none"
            raise UserError(
                f"callbacks: found {name!r}, which is no entry point {GROUP} of an installed package; {there}"
            )


def load_callbacks(names: Sequence[str]) -> dict[str, Callback]:
    """The callbacks of some names. Raises `UserError` for one that is not there, or that cannot be made."""
    check_callbacks(names)
    installed, made = _installed() if names else {}, {}
    for name in names:
        try:
            made[name] = installed[name].load()()
        except Exception as error:
            raise UserError(
                f"callbacks: {name!r} ({installed[name].value}) cannot be made: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(made[name], Callback):
            raise UserError(
                f"callbacks: {name!r} ({installed[name].value}) is a {type(made[name]).__name__}; "
                "it must be a vitas.report.callbacks.Callback"
            )
    return made

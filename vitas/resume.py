"""What a training's checkpoint holds, and what it may be resumed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from vitas import checkpoint
from vitas.checkpoint import CheckpointFolder
from vitas.config import ALLOWED_CHANGES, Training
from vitas.config_section import Section, defaults_of, fields_of, leaves, sections_in
from vitas.data.folders import Listing, explain_change
from vitas.distributed import World, broadcast
from vitas.errors import UserError, is_integer
from vitas.report import Report

# Keys that do not influence the result; a run may be resumed with other values of them.
_FREE_KEYS = {
    "flag", "accumulate", "activation_checkpointing",
    "keep", "checkpoint_steps", "checkpoint_epochs", "log_steps", "data.data_dir", "data.workers",
    "data.bad_images", "panel", "panel.size", "panel.epochs", "panel.stop_at",
    "val", "val_epochs", "patience", "compile", "allow_changes", "not_finite.in_a_row", "not_finite.returns",
}  # fmt: skip
_FREE_SECTIONS = ("val.",)


class TrainingState:
    """The state of a training: what a checkpoint holds, and the recipe that it may be resumed with.

    model, ema, optimizer, states: what a checkpoint holds; `states` by name.
    about: plain data beside them, which is of the recipe too.
    listing: the names of the images, as `vitas.data.folders.listing` gives them.
    returns: how often the training went back to a checkpoint because it diverged.
    """

    def __init__(
        self,
        model: nn.Module,
        ema: ModelEmaV3 | None,
        optimizer: torch.optim.Optimizer,
        states: Mapping[str, Any],
        about: Mapping[str, Any],
        settings: Training,
        per_epoch: int,
        listing: Listing,
        seed: int,
        report: Report,
    ) -> None:
        self._model, self._ema, self._optimizer, self._states, self._about = model, ema, optimizer, states, about
        self._settings, self._per_epoch, self._listing, self._report = settings, per_epoch, listing, report
        self.returns = 0
        # Values of the recipe that were changed on the way: {step, key, from, to}.
        self._changes: list[dict[str, Any]] = []
        # An architecture can be written in several forms; `about` has its canonical text.
        given = settings.model_dump(mode="json", exclude={"architecture"})
        decisive = {
            key: value for key, value in leaves(given) if key not in _FREE_KEYS and not key.startswith(_FREE_SECTIONS)
        }
        self._recipe = {"seed": seed, "steps_per_epoch": per_epoch, **decisive, **dict(leaves(about))}
        # A key that an older version did not have counts as its present default.
        self._defaults = dict(_default_leaves(type(settings)))
        self._rates = [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]

    def at(self, step: int) -> dict[str, Any]:
        """The state after `step` steps; `epoch` counts whole epochs."""
        return {
            "epoch": step // self._per_epoch,
            "step": step,
            "model": self._model.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema else None,
            "optimizer": self._optimizer.state_dict(),
            "recipe": self._recipe,
            "listing": self._listing,
            "changes": self._changes,
            "returns": self.returns,
            **{name: part.state_dict() for name, part in self._states.items()},
            **self._about,
        }

    @property
    def size(self) -> int:
        """About how many bytes a checkpoint takes; AdamW keeps two numbers for each weight."""
        weights = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return weights * (4 if self._ema else 3)

    def resume(self, checkpoints: CheckpointFolder, world: World) -> int:
        """Load the newest whole checkpoint, if there is one. Returns the step to start from; all ranks take the same.

        Raises `UserError` for a checkpoint of another recipe, other images or another program.
        """
        path: Path | None = None
        mistake: str | None = None
        if world.is_main:
            try:
                checkpoints.tidy()
                path = checkpoints.newest()
                self._report.line(*checkpoints.passed_over())
            except UserError as error:
                mistake = str(error)
        path, mistake = broadcast((path, mistake), world)
        if mistake:
            raise UserError(mistake)
        if path is None:
            return 0
        state = checkpoint.read(path, world.device)
        if not isinstance(state.get("recipe"), Mapping):
            raise UserError(f"{path} is not a checkpoint of this program; move it away, or choose another save_path")
        try:
            self._check_epochs(state, path)
            start = self._start(state)
            self._take_changes(state, path)
            self._load(state)
        except UserError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a checkpoint of this training ({_first_line(error)})") from None
        return start

    def _check_epochs(self, state: Mapping[str, Any], path: Path) -> None:
        """Raise `UserError` for other `epochs` than the checkpoint's, unless it is as it would be with ours."""
        stage, recipe, ours = self._report.stage, {**self._defaults, **state["recipe"]}, self._settings.epochs
        theirs, step, per_epoch = recipe["epochs"], state["step"], recipe.get("steps_per_epoch", self._per_epoch)
        if theirs == ours or not (is_integer(step) and is_integer(per_epoch)):
            return
        if step > ours * per_epoch:
            raise UserError(
                f"{stage}.epochs: found {ours}; {path} was trained for {step / per_epoch:.4g} already; "
                "set it back, or choose another save_path"
            )
        # As the checkpoint was trained: the rate may be another from now on.
        rates = {key: recipe[key] for key in ("lr", "min_lr", "warmup_epochs")}
        tied = self._settings.model_copy(update=rates).tied_to_epochs(step, per_epoch)
        if tied:
            way_on = (
                f", or train on from its weights with a schedule of its own: another save_path, and "
                f"{stage}.from_checkpoint={path}"
                if "from_checkpoint" in fields_of(type(self._settings))
                else ""
            )
            raise UserError(
                f"{path} was trained with epochs {theirs!r}, and now it is {ours!r}; {tied}, so its steps would have "
                f"been others: set it back, or choose another save_path{way_on}"
            )
        self._report.line(
            f"goes on from step {step:,} to {ours} epochs instead of {theirs}, as if it had been so from the start: "
            "no step up to here depends on it"
        )

    def _start(self, state: Mapping[str, Any]) -> int:
        """The step that a checkpoint leads to."""
        step = state["step"]
        per_epoch: int = state["recipe"].get("steps_per_epoch", self._per_epoch)
        total = self._settings.epochs * per_epoch
        if not is_integer(step) or not 0 <= step <= total:
            raise KeyError(f"its step is {step!r}, of {total}")
        if per_epoch == self._per_epoch:
            return step
        # Other images, and so many, that an epoch has other steps: it begins at the same part of an epoch.
        epoch, within = divmod(step, per_epoch)
        return epoch * self._per_epoch + within * self._per_epoch // per_epoch

    def _load(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        # Those of the checkpoint may have been changed since; the scheduler sets the rate anew in every step.
        for group, rates in zip(self._optimizer.param_groups, self._rates, strict=True):
            group.update(rates)
        if self._ema:
            self._ema.module.load_state_dict(state["ema"])
        for name, part in self._states.items():
            # An earlier version did not save it; it begins anew.
            if name in state:
                part.load_state_dict(state[name])
        self.returns = state.get("returns", 0)

    def _take_changes(self, state: Mapping[str, Any], path: Path) -> None:
        """Compare a checkpoint's recipe and images with ours; `allow_changes` must have what differs, or it raises."""
        stage, allowed, recipe = self._report.stage, self._settings.allow_changes, state["recipe"]
        self._changes = list(state.get("changes", []))
        step = state["step"]
        # Checkpoints of earlier versions do not say which images they have seen.
        before = state.get("listing", self._listing)
        # First, because another holdout explains why the images differ.
        for key in {**self._recipe, **recipe}:
            ours, theirs = (part.get(key, self._defaults.get(key)) for part in (self._recipe, recipe))
            if ours == theirs or key == "epochs" or (key == "steps_per_epoch" and before != self._listing):
                continue
            # Which of the folder's images are trained on is a matter of the images too.
            named = "data" if key == "data.holdout" else key
            if named not in allowed:
                way_on = (
                    f", or go on with the new value: {stage}.allow_changes=[{named}]"
                    if named in ALLOWED_CHANGES
                    else ""
                )
                raise UserError(
                    f"{path} was trained with {key} {theirs!r}, and now it is {ours!r}; "
                    f"set it back, or choose another save_path{way_on}"
                )
            self._changes.append({"step": step, "key": key, "from": theirs, "to": ours})
            self._report.line(
                f"goes on from step {step:,} with {key} {ours!r} instead of {theirs!r}, as {stage}.allow_changes says: "
                "the result is that of no single recipe"
            )
        if before != self._listing:
            change = explain_change(before, self._listing)
            if "data" not in allowed:
                raise UserError(
                    f"{stage}.data.data_dir: {self._settings.data.data_dir!r} holds other images than when {path} was "
                    f"written: {change}; put them back, choose another save_path, or go on with these: "
                    f"{stage}.allow_changes=[data]"
                )
            self._changes.append({"step": step, "key": "data", "from": "", "to": change})
            self._report.line(f"goes on from step {step:,} with other images ({change}), as {stage}.allow_changes says")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _default_leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The defaults of a section and of the sections in it, with their dotted keys, as JSON values."""
    defaults = section.model_construct(**defaults_of(section)).model_dump(mode="json", warnings=False)
    yield from leaves(defaults, prefix)
    for key, annotation in fields_of(section).items():
        if key not in defaults:
            for inner in sections_in(annotation):
                yield from _default_leaves(inner, f"{prefix}{key}.")

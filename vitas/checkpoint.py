"""Checkpoints: atomic save, rotation, resume, and reading what others wrote.

Files of a stage lie in `save_path/STAGE/checkpoint/`: `epoch_N_ckpt.pth.tar`
after epoch N (the last K are kept) and `recent_ckpt.pth.tar` at any step.
Everything is read as weights only: a downloaded file never runs code.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitas import released
from vitas.errors import UserError
from vitas.files import write_atomically

RECENT = "recent_ckpt.pth.tar"
DOWNLOADED = "download.pth"
_EPOCH = re.compile(r"epoch_(\d+)_ckpt\.pth\.tar$")


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one stage. keep: how many epoch files stay; 0 keeps all."""

    folder: Path
    keep: int = 3

    def epoch_path(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch}_ckpt.pth.tar"

    @staticmethod
    def epoch_of(path: Path) -> int | None:
        """The epoch that a file is named after."""
        match = _EPOCH.match(path.name)
        return int(match[1]) if match else None

    def epochs(self) -> list[int]:
        """The epochs that have a file, ascending."""
        found = map(self.epoch_of, self.folder.glob("epoch_*_ckpt.pth.tar"))
        return sorted(epoch for epoch in found if epoch is not None)

    def save_recent(self, state: Mapping) -> None:
        """Write the state of a run in the middle of an epoch."""
        write_atomically(self.folder / RECENT, lambda file: torch.save(state, file))

    def save_epoch(self, state: Mapping) -> None:
        """Write the state after an epoch, `state["epoch"]`; then drop what is too old."""
        write_atomically(self.epoch_path(state["epoch"]), lambda file: torch.save(state, file))
        (self.folder / RECENT).unlink(missing_ok=True)
        for epoch in self.epochs()[: -self.keep or None] if self.keep else []:
            self.epoch_path(epoch).unlink()

    def newest(self) -> Path | None:
        """The file of the most steps: the last epoch's, or a recent one where it is ahead of that."""
        recent = self.folder / RECENT
        epochs = self.epochs()
        last = self.epoch_path(epochs[-1]) if epochs else None
        if not recent.exists() or last is None:
            return recent if recent.exists() else last
        # A process that died right after an epoch's file leaves an older recent one beside it.
        return max(last, recent, key=_step)

    def candidates(self) -> list[Path]:
        """What is here to be read, the preferred first: this run's newest, `download.pth`, other .pth files by name."""
        newest = self.newest()
        others = sorted(self.folder.glob("*.pth"), key=lambda path: (path.name != DOWNLOADED, path.name))
        return [*([newest] if newest else []), *others]

    def resolve(self, load_name: str | None = None) -> Path:
        """The file that `load_name` names here or as a path; without it, the first candidate. Raises `UserError`."""
        if load_name is None:
            candidates = self.candidates()
            if not candidates:
                raise UserError(f"{self.folder} holds no checkpoint; run the stage that writes it first")
            return candidates[0]
        for path in (self.folder / load_name, Path(load_name)):
            if path.is_file():
                return path
        paths = [*self.folder.glob("*.pth*"), *self.folder.glob("*.safetensors")]
        held = ", ".join(sorted(path.name for path in paths)) or "no checkpoint"
        raise UserError(f"load_name: found {load_name!r}, which is no file; {self.folder} holds {held}")


def read(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """The dict of a checkpoint, as weights only. Raises `UserError` for what is no such file.

    Of a safetensors file: its tensors as `model`, and `architecture` where its metadata says that.
    """
    if _is_safetensors(path):
        return _read_safetensors(path, device)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        # What is no checkpoint breaks torch's reader in many ways; only a refused global is an attempt to run code.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds more than weights: reading it would run code of its own, so it is refused"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if _is_cut_short(Path(path)):
            reason = "it is cut short; download or copy it again"
        raise UserError(f"{path} is no whole checkpoint file ({reason})") from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}; a checkpoint is a dict of weights")
    return dict(state)


def _step(path: Path) -> int:
    """The step of a checkpoint of ours. Its weights are mapped, not read: on a large network they are gigabytes."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        # `read` says what is wrong with it.
        state = read(path)
    return state.get("step", 0) if isinstance(state, Mapping) else 0


def _is_safetensors(path: Path | str) -> bool:
    """Whether a file begins as safetensors do: the length of a header, which is less than 2^32, and JSON."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[4:] == b"\0\0\0\0{"


def _is_cut_short(path: Path) -> bool:
    """Whether a file begins as torch's do, which are zip archives, but lacks the table that those end with."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)
    return False


def _read_safetensors(path: Path | str, device: torch.device | str) -> dict:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error})") from None
    return state | {name: metadata[name] for name in ("architecture",) if name in metadata}


def load_weights(model: nn.Module, path: Path | str, weights: str = "model") -> None:
    """Load a checkpoint's weights into a model.

    path: one of ours (`weights` chooses `model` or `ema`), a released ViTAS
        file, a plain state dict, or a safetensors file.

    Raises `UserError` for a file that is no checkpoint, holds no such weights,
    or holds weights of another architecture (naming the first that differ).
    """
    load_state(model, read(path), path, weights)


def load_state(model: nn.Module, state: Mapping, path: Path | str, weights: str = "model") -> None:
    """`load_weights` of a checkpoint that was read already; `path` is where it came from."""
    named = _weights_in(state, path, weights)
    _refuse_differences(path, _differences(model.state_dict(), named))
    model.load_state_dict(named)


def interpolate_positions(pos_embed_1ND: Tensor, patches: int) -> Tensor:
    """Position embeddings [1, 1 + n, D] for another square grid: [1, 1 + patches, D], bicubic; the first one stays."""
    side = math.isqrt(patches)
    return resample_abs_pos_embed(pos_embed_1ND, [side, side], num_prefix_tokens=1)


def start_from(model: nn.Module, path: Path | str) -> list[str]:
    """Give a model the weights of a checkpoint that may be of another class count and image size (fine-tuning).

    model: with the parameters `pos_embed` [1, 1 + patches, D], `head.weight` and
        `head.bias`. Position embeddings are interpolated to the model's grid;
        a classifier of another class count keeps its fresh weights.
    path: as of `load_weights`.

    Returns what was changed, a line each. Raises `UserError` as `load_weights` does.
    """
    state, wanted, changes = _weights_in(read(path), path), model.state_dict(), []
    differing = {key for key in state if key in wanted and state[key].shape != wanted[key].shape}
    if "pos_embed" in differing and state["pos_embed"].shape[-1] == wanted["pos_embed"].shape[-1]:
        side = math.isqrt(wanted["pos_embed"].shape[1] - 1)
        before = math.isqrt(state["pos_embed"].shape[1] - 1)
        state["pos_embed"] = interpolate_positions(state["pos_embed"], side**2)
        changes.append(f"position embeddings are interpolated from {before} x {before} to {side} x {side} patches")
    if "head.weight" in differing and state["head.weight"].shape[1:] == wanted["head.weight"].shape[1:]:
        classes = [len(part["head.weight"]) for part in (state, wanted)]
        state |= {key: wanted[key] for key in ("head.weight", "head.bias")}
        changes.append(f"the classifier starts anew: {classes[1]} classes, and the file has {classes[0]}")
    _refuse_differences(path, _differences(wanted, state))
    model.load_state_dict(state)
    return changes


def _refuse_differences(path: Path | str, differences: list[str]) -> None:
    if differences:
        shown = "; ".join(differences[:5])
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(f"{path} does not fit this architecture: {shown}{more}")


def _weights_in(state: Mapping, path: Path | str, weights: str = "model") -> dict:
    """The weights of a checkpoint under our names; `UserError` for what holds none."""
    if weights == "ema" and state.get("ema") is None:
        raise UserError(
            f"{path} holds no averaged weights (ema): it was trained without retrain.ema_decay, or it holds "
            "one set of weights alone, which test.weights=model takes"
        )
    chosen = state.get(weights, state)
    if not isinstance(chosen, Mapping):
        raise UserError(f"{path}: its {weights!r} is a {type(chosen).__name__}; it must be a dict of weights")
    for key in chosen:
        if not isinstance(key, str):
            raise UserError(f"{path}: found {key!r} as the name of a weight; names must be strings")
    if released.is_released(chosen):
        try:
            chosen = released.rename_keys(chosen)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return dict(chosen)


def _differences(wanted: Mapping, found: Mapping) -> list[str]:
    rows = []
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        shapes = [
            "nothing" if key not in side else str(tuple(getattr(side[key], "shape", ()))) for side in (wanted, found)
        ]
        if shapes[0] != shapes[1]:
            rows.append(f"{key} is {shapes[0]} in the network and {shapes[1]} in the file")
    return rows

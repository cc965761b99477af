"""Checkpoints: atomic save, rotation, resume, and reading files of other programs.

A stage's files are in `save_path/STAGE/checkpoint/`: `epoch_N_ckpt.pth.tar`
after epoch N (the last K are kept) and `recent_ckpt.pth.tar` within an epoch.
All files are read with `weights_only`, so a downloaded file cannot run code.
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

from vitas import released, watchdog
from vitas.errors import UserError
from vitas.files import may_write, write_atomically

RECENT = "recent_ckpt.pth.tar"
DOWNLOADED = "download.pth"
_EPOCH = re.compile(r"epoch_(\d+)_ckpt\.pth\.tar$")


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one stage. keep: how many epoch files to keep; 0 keeps all."""

    folder: Path
    keep: int = 3

    def epoch_path(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch}_ckpt.pth.tar"

    @staticmethod
    def epoch_of(path: Path) -> int | None:
        """The epoch in a file's name; None for other files."""
        match = _EPOCH.match(path.name)
        return int(match[1]) if match else None

    def epochs(self) -> list[int]:
        """The epochs with a file, ascending."""
        found = map(self.epoch_of, self.folder.glob("epoch_*_ckpt.pth.tar"))
        return sorted(epoch for epoch in found if epoch is not None)

    def save_recent(self, state: Mapping) -> None:
        """Write the state of a run within an epoch."""
        with watchdog.patient("writes a checkpoint"):
            write_atomically(self.folder / RECENT, lambda file: torch.save(state, file))

    def save_epoch(self, state: Mapping) -> None:
        """Write the state after epoch `state["epoch"]`, then remove old files."""
        with watchdog.patient("writes a checkpoint"):
            write_atomically(self.epoch_path(state["epoch"]), lambda file: torch.save(state, file))
        with may_write():
            (self.folder / RECENT).unlink(missing_ok=True)
            for epoch in self.epochs()[: -self.keep or None] if self.keep else []:
                self.epoch_path(epoch).unlink()

    def newest(self) -> Path | None:
        """The file with the most steps: that of the last epoch, or the recent one if it is ahead; None if neither."""
        recent = self.folder / RECENT
        epochs = self.epochs()
        last = self.epoch_path(epochs[-1]) if epochs else None
        if not recent.exists() or last is None:
            return recent if recent.exists() else last
        # The recent one may be older: a process that dies right after writing an epoch's file leaves it behind.
        return max(last, recent, key=_step)

    def candidates(self) -> list[Path]:
        """The checkpoints to read by default, in order: this run's newest, `download.pth`, other .pth files by name."""
        newest = self.newest()
        others = sorted(self.folder.glob("*.pth"), key=lambda path: (path.name != DOWNLOADED, path.name))
        return [*([newest] if newest else []), *others]

    def resolve(self, load_name: str | None = None) -> Path:
        """The file `load_name` in this folder or as a path; by default the first candidate. Raises `UserError`."""
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
        raise UserError(f"load_name: found {load_name!r}, which is not a file; {self.folder} holds {held}")


def read(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """The dict in a checkpoint file, read with `weights_only`. Raises `UserError` for any other file.

    A safetensors file gives its tensors as `model`, and `architecture` if that is in its metadata.
    """
    if _is_safetensors(path):
        return _read_safetensors(path, device)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        # torch raises many kinds of exceptions for other files; only a refused global is an attempt to run code.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(f"{path} holds more than weights: reading it could run code, so it is refused") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if _is_cut_short(Path(path)):
            reason = "it is cut short; download or copy it again"
        raise UserError(f"{path} is not a complete checkpoint file ({reason})") from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}; a checkpoint is a dict of weights")
    return dict(state)


def _step(path: Path) -> int:
    """The step of a checkpoint of ours. The weights, which may be gigabytes, are mapped and not read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        state = read(path)  # Raises with a message that says what is wrong.
    return state.get("step", 0) if isinstance(state, Mapping) else 0


def _is_safetensors(path: Path | str) -> bool:
    """Whether a file begins as safetensors do: the length of its header, less than 2^32, and JSON."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return head[4:] == b"\0\0\0\0{"


def _is_cut_short(path: Path) -> bool:
    """Whether a file begins like a zip archive, as torch's do, but lacks the table at the end of one."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)
    return False


def _read_safetensors(path: Path | str, device: torch.device | str) -> dict:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})") from None
    if "architecture" in metadata:
        state["architecture"] = metadata["architecture"]
    return state


def load_weights(model: nn.Module, path: Path | str, weights: str = "model") -> None:
    """Load a checkpoint's weights into a model.

    path: a checkpoint of ours (`weights` selects `model` or `ema`), a released
        ViTAS file, a plain state dict, or a safetensors file.

    Raises `UserError` for a file that is not a checkpoint, has no such weights,
    or has weights of another architecture (naming the first that differ).
    """
    load_state(model, read(path), path, weights)


def load_state(model: nn.Module, state: Mapping, path: Path | str, weights: str = "model") -> None:
    """`load_weights` from a checkpoint that is already read; `path` is its file, for messages."""
    named = _weights_in(state, path, weights)
    _refuse_differences(path, _differences(model.state_dict(), named))
    model.load_state_dict(named)


def interpolate_positions(pos_embed_1ND: Tensor, patches: int, prefix_tokens: int = 1) -> Tensor:
    """Interpolate position embeddings [1, prefix + n, D] to [1, prefix + patches, D]: bicubic; the prefix stays."""
    side = math.isqrt(patches)
    return resample_abs_pos_embed(pos_embed_1ND, [side, side], num_prefix_tokens=prefix_tokens)


def start_from(model: nn.Module, path: Path | str) -> list[str]:
    """Load a checkpoint of possibly another class count and image size into a model (fine-tuning).

    model: has the parameters `pos_embed` [1, tokens, D], `head.weight` and
        `head.bias`. Position embeddings are interpolated to the model's grid;
        a classifier of another class count keeps its fresh weights.
    path: see `load_weights`.

    Returns a line per change. Raises `UserError` as `load_weights` does.
    """
    state, wanted, changes = _weights_in(read(path), path), model.state_dict(), []
    differing = {key for key in state if key in wanted and state[key].shape != wanted[key].shape}
    if "pos_embed" in differing and state["pos_embed"].shape[-1] == wanted["pos_embed"].shape[-1]:
        prefix = 1 if "cls_token" in wanted else 0
        side = math.isqrt(wanted["pos_embed"].shape[1] - prefix)
        before = math.isqrt(state["pos_embed"].shape[1] - prefix)
        state["pos_embed"] = interpolate_positions(state["pos_embed"], side**2, prefix)
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
    """The weights in a checkpoint, under our names. Raises `UserError` if there are none."""
    if weights == "ema" and state.get("ema") is None:
        raise UserError(
            f"{path} holds no averaged weights (ema): it was trained without retrain.ema_decay, or it holds "
            "a single set of weights, which test.weights=model reads"
        )
    named = state.get(weights, state)
    if not isinstance(named, Mapping):
        raise UserError(f"{path}: its {weights!r} is a {type(named).__name__}; it must be a dict of weights")
    for key in named:
        if not isinstance(key, str):
            raise UserError(f"{path}: found {key!r} as the name of a weight; names must be strings")
    if released.is_released(named):
        try:
            named = released.rename_keys(named)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return dict(named)


def _differences(wanted: Mapping, found: Mapping) -> list[str]:
    rows = []
    for key in {**wanted, **found}:
        shapes = [
            "nothing" if key not in side else str(tuple(getattr(side[key], "shape", ()))) for side in (wanted, found)
        ]
        if shapes[0] != shapes[1]:
            rows.append(f"{key} is {shapes[0]} in the network and {shapes[1]} in the file")
    return rows

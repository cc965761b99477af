"""Checkpoints: atomic save, rotation, resume, and reading files of other programs.

A stage's files are in `save_path/STAGE/checkpoint/`: `epoch_N_ckpt.pth.tar`
after epoch N (the last K are kept), `recent_ckpt.pth.tar` within an epoch, and
`best_ckpt.pth.tar` where val images say which is best.
Each holds a digest, which every reading checks; a damaged one is passed over
for the newest that is whole. All files are read with `weights_only`, so a
downloaded file cannot run code.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_save
from torch import Tensor

from vitas.digests import DIGEST, NOT_YET, damage, is_archive, safetensors_damage, sealed_safetensors, write_with_digest
from vitas.errors import UserError
from vitas.files import link_atomically, may_write, write_atomically

RECENT = "recent_ckpt.pth.tar"
# The best network by val images, which no rotation removes.
BEST = "best_ckpt.pth.tar"
DOWNLOADED = "download.pth"
_EPOCH = re.compile(r"epoch_(\d+)_ckpt\.pth\.tar$")


class NoSuchFileError(UserError):
    """A checkpoint is not there, or not any more: a training that goes on removes old ones."""


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

    def save_recent(self, state: Mapping[str, Any]) -> Path:
        """Write the state of a run within an epoch. Returns the file."""
        path = self.folder / RECENT
        write(state, path)
        return path

    def save_epoch(self, state: Mapping[str, Any]) -> Path:
        """Write the state after epoch `state["epoch"]`, then remove old files. Returns the new one."""
        path = self.epoch_path(state["epoch"])
        write(state, path)
        self._drop_recent()
        self._rotate()
        return path

    def keep_best(self, path: Path) -> None:
        """Keep a checkpoint of this folder as the best one: its file gets a second name, so that takes no room."""
        link_atomically(path, self.folder / BEST)

    def save(self, state: Mapping[str, Any], ends_epoch: bool, is_best: bool) -> Path:
        """`save_epoch` or `save_recent`, then `keep_best` if it is the best. Returns the file."""
        path = (self.save_epoch if ends_epoch else self.save_recent)(state)
        # Only then: what is the best must not be ahead of what a run resumes from.
        if is_best:
            self.keep_best(path)
        return path

    def epoch_in(self, name: str) -> int | None:
        """The epoch of a checkpoint of this folder; None if there is no such file, or a damaged one."""
        path = self.folder / name
        with suppress(UserError, FileNotFoundError):
            if damage(path) is None:
                epoch = _mapped(path).get("epoch")
                return epoch if isinstance(epoch, int) else None
        return None

    def _drop_recent(self) -> None:
        with may_write():
            (self.folder / RECENT).unlink(missing_ok=True)

    def _rotate(self) -> None:
        with may_write():
            for epoch in self.epochs()[: -self.keep or None] if self.keep else []:
                self.epoch_path(epoch).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Finish what a killed process left undone after it wrote an epoch's file; for the one process that writes."""
        newest = self.newest()
        if newest is None or newest.name == RECENT:
            return
        self._drop_recent()
        # If the last file is damaged, those before it are worth more than their number.
        if not self.passed_over():
            self._rotate()

    def newest(self) -> Path | None:
        """The whole file with the most steps: that of the last epoch, or the recent one if it is ahead; None if none.

        Raises `UserError` if there are files, and none is whole: a run must not start anew over them.
        """
        newest, damaged = self._search()
        if newest is None and damaged:
            listed = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise UserError(
                f"{self.folder}: no checkpoint is whole ({listed}); copy one back, or move them away to start anew"
            )
        return newest

    def passed_over(self) -> list[str]:
        """A line for each damaged file that `newest` passed over for an older one."""
        newest, damaged = self._search()
        return [
            f"{path} is damaged ({reason}); {newest.name} is taken instead"
            for path, reason in damaged.items()
            if newest
        ]

    def _search(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest whole file, and the damaged ones that were met on the way to it, with the reason."""
        damaged: dict[Path, str] = {}
        gone: list[Path] = []

        def whole(paths: Iterable[Path]) -> Path | None:
            for path in paths:
                try:
                    reason = damage(path) if is_archive(path) else "it is no archive, as torch writes"
                except FileNotFoundError:
                    gone.append(path)
                    continue
                if reason is None:
                    return path
                damaged[path] = reason
            return None

        while True:
            gone.clear()
            # In this order: the file of an epoch is there before the recent one is removed.
            recents = [path for path in [self.folder / RECENT] if path.exists()]
            last, recent = whole(map(self.epoch_path, reversed(self.epochs()))), whole(recents)
            if gone and last is None:
                # All that was there has been rotated away since: there is another.
                continue
            if recent is None or last is None:
                return recent or last, damaged
            # One may be rotated away by now. Then there is another.
            with suppress(NoSuchFileError):
                # The recent one may be older: a process that dies right after writing an epoch's file leaves it behind.
                return max(last, recent, key=_step), damaged

    def require_space(self, size: int) -> None:
        """Raise `UserError` unless the file system has room for a checkpoint of `size` bytes beside those there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(
                f"save_path: {self.folder} has {free / 1e6:,.0f} MB free, and a checkpoint takes about "
                f"{size / 1e6:,.0f} MB; make room, or choose another save_path"
            )

    def candidates(self) -> list[Path]:
        """The checkpoints to read by default, in order: the newest, the best, `download.pth`, other .pth by name."""
        newest, best = self.newest(), self.folder / BEST
        others = sorted(self.folder.glob("*.pth"), key=lambda path: (path.name != DOWNLOADED, path.name))
        # The newest may be rotated away by now: who reads it meets that, and looks again.
        return [*([newest] if newest else []), *([best] if best.exists() else []), *others]

    def resolve(self, load_name: str | None = None) -> Path:
        """The file `load_name` in this folder (`.pth.tar` may be left out) or as a path; by default a candidate.

        Raises `UserError`.
        """
        if load_name is None:
            candidates = self.candidates()
            if not candidates:
                raise UserError(f"{self.folder} holds no checkpoint; run the stage that writes it first")
            return candidates[0]
        for path in (self.folder / load_name, self.folder / f"{load_name}.pth.tar", Path(load_name)):
            if path.is_file():
                return path
        paths = [*self.folder.glob("*.pth*"), *self.folder.glob("*.safetensors")]
        held = ", ".join(sorted(path.name for path in paths)) or "no checkpoint"
        raise UserError(f"load_name: found {load_name!r}, which is not a file; {self.folder} holds {held}")

    def read(self, load_name: str | None = None) -> tuple[Path, dict[str, Any]]:
        """The file that `resolve` finds, and the dict in it. Raises `UserError` as `resolve` and `read` do."""
        while True:
            try:
                path = self.resolve(load_name)
                return path, read(path)
            except NoSuchFileError:
                # A training that goes on has removed the newest since, and written another.
                if load_name is not None:
                    raise


def write(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint with its digest, so that it is there whole or not at all."""
    write_atomically(path, lambda file: write_with_digest(file, lambda into: torch.save(state, into)))


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Weights and metadata as a safetensors file with its digest."""
    return sealed_safetensors(safetensors_save(dict(state), {**metadata, DIGEST: NOT_YET}))


def read(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The dict in a checkpoint file, read with `weights_only`. Raises `UserError` for any other file.

    A file that changed since it was written is refused: ours by their digest,
    others by their checksums. A safetensors file gives its tensors as `model`,
    and `architecture` if that is in its metadata.
    """
    if _is_safetensors(path):
        return _read_safetensors(path, device)
    try:
        reason = damage(Path(path))
        state = None if reason else torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise NoSuchFileError(f"{path}: no such file") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # torch raises many kinds of exceptions for other files; only a refused global is an attempt to run code.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(f"{path} holds more than weights: reading it could run code, so it is refused") from None
        raise UserError(f"{path} is not a complete checkpoint file ({_reason(error)})") from None
    if reason:
        raise UserError(f"{path} is not a complete checkpoint file ({reason})")
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}; a checkpoint is a dict of weights")
    _refuse_inflated(state, path)
    return dict(state)


def _reason(error: Exception) -> str:
    """Why torch could not read a file. Its own words may advise to read it in a way that can run code."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or of another program"
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _refuse_inflated(state: Mapping[str, Any], path: Path | str) -> None:
    """Raise `UserError` for a tensor of more elements than the file holds: to copy it would fill the memory."""
    for tensor in tensors_in(state):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise UserError(f"{path} holds a tensor of layout {tensor.layout}; weights are plain, dense tensors")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} holds a tensor of shape {tuple(tensor.shape)} with fewer elements than that")


def tensors_in(value: object, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in the values of a checkpoint, in order; `depth` counts what they lie in."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 8 and isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part, depth + 1)


def _mapped(path: Path) -> Mapping[str, Any]:
    """What a checkpoint of ours holds. The weights, which may be gigabytes, are mapped and not read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        state = read(path)  # Raises with a message that says what is wrong.
    return state if isinstance(state, Mapping) else {}


def _step(path: Path) -> int:
    step = _mapped(path).get("step", 0)
    return step if isinstance(step, int) else 0


def _is_safetensors(path: Path | str) -> bool:
    """Whether a file begins as safetensors do: the length of its header, less than 2^32, and JSON."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except (OSError, ValueError):
        return False
    return head[4:] == b"\0\0\0\0{"


def _read_safetensors(path: Path | str, device: torch.device | str) -> dict[str, Any]:
    try:
        if reason := safetensors_damage(Path(path)):
            raise UserError(f"{path} is not a complete safetensors file ({reason})")
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})") from None
    if "architecture" in metadata:
        state["architecture"] = metadata["architecture"]
    return state

"""Checkpoints that are written while the training goes on.

The state is copied to host memory, and one thread writes the copy, as durably
as `vitas.checkpoint` always does. A thread suffices: what takes long (hashing,
writing, waiting for the disk) lets Python go on meanwhile, and a process would
need a second copy. Host memory holds one copy of the state, whose room every
checkpoint uses again; so the next one waits for the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vitas import watchdog
from vitas.checkpoint import tensors_in
from vitas.report import Report


class HostCopy:
    """A copy of a state in host memory, in the room of the copy before it.

    device: where the state is. From a GPU it is copied beside the training, on a stream of its own, into pinned memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[Tensor] = []

    def take(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
        """The copy, and on a GPU the event after which it is whole. All but tensors is copied at once."""
        tensors = list(tensors_in(state))
        if [_form(tensor) for tensor in tensors] != [_form(buffer) for buffer in self._buffers]:
            pinned = self._stream is not None
            self._buffers = [torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=pinned) for t in tensors]
        copied = None
        if self._stream is None:
            self._fill(tensors)
        else:
            # What the training has started must have changed the state before it is read.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._fill(tensors)
                copied = self._stream.record_event()
        # Its tensors are copied already; the rest must not change while it is written.
        known: dict[int, Any] = {id(t): buffer for t, buffer in zip(tensors, self._buffers, strict=True)}
        return deepcopy(dict(state), known), copied

    def _fill(self, tensors: list[Tensor]) -> None:
        for tensor, buffer in zip(tensors, self._buffers, strict=True):
            buffer.copy_(tensor, non_blocking=True)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


class BackgroundSave:
    """Writes checkpoints of a training one at a time, beside it; a context that ends when all are written.

    device: where the state is.
    report: is told of each checkpoint when it is durable, in the training's thread.

    An error of the writing is raised in the training's thread: by `poll`, the
    next `save`, `wait` or the end of the context, whichever comes first.
    """

    def __init__(self, device: torch.device, report: Report) -> None:
        self._report, self._copy = report, HostCopy(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        # On a GPU, until the state may change: the event, and the state, whose tensors may be of this call alone.
        self._copied: tuple[torch.cuda.Event, Mapping[str, Any]] | None = None

    def save(self, state: Mapping[str, Any], write: Callable[[Mapping[str, Any]], Path]) -> None:
        """Wait for the last checkpoint, copy the state, and let the thread `write` the copy."""
        self.wait()
        copy, copied = self._copy.take(state)
        self._copied = None if copied is None else (copied, state)
        self._pending = self._thread.submit(_write, copy, copied, write)

    def before_change(self) -> None:
        """To call before the state changes: the device waits until it is copied, this thread does not."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied[0])
            self._copied = None

    def poll(self) -> None:
        """Report a checkpoint that is written by now, or raise why it could not be; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is durable, and report it; or raise why it could not be written."""
        if self._pending is None:
            return
        with watchdog.patient("writes a checkpoint"):
            pending, self._pending = self._pending, None
            path = pending.result()
        self._report.checkpoint_saved(path)

    def __enter__(self) -> BackgroundSave:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
            elif isinstance(error, Exception):
                self._finish()
        finally:
            # After a second Ctrl-C alone a file may still be written; Python ends when it is whole.
            self._thread.shutdown(wait=False)

    def _finish(self) -> None:
        """Let the last checkpoint be written after an error, which is what ends the training, whatever comes of it."""
        try:
            self.wait()
        except Exception as error:
            self._report.line(f"nor could the last checkpoint be written: {error}")


def _write(
    copy: Mapping[str, Any], copied: torch.cuda.Event | None, write: Callable[[Mapping[str, Any]], Path]
) -> Path:
    if copied is not None:
        copied.synchronize()
    return write(copy)

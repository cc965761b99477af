"""Where a GPU's memory does not suffice: how many images fit is measured on the spot, and said."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vitas import watchdog
from vitas.errors import UserError


@contextmanager
def measuring_what_fits(
    tried: int, attempt: Callable[[int], object], device: torch.device, message: Callable[[int, str], str]
) -> Iterator[None]:
    """Within it, a device that is out of memory ends in a `UserError`, for which it is measured how many images fit.

    tried: images. attempt: (images) -> passes so many; raises `torch.OutOfMemoryError` if they do not fit.
    message: (images that fit, 0 if not one does; the name of the memory) -> the error's.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        _forget(error)
    with watchdog.patient("measures how many images fit in memory"):
        fit = _largest_that_fits(tried, attempt, device)
    size = f" ({torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB)" if device.type == "cuda" else ""
    raise UserError(message(fit, f"the memory of {device}{size}"))


def _largest_that_fits(tried: int, attempt: Callable[[int], object], device: torch.device) -> int:
    """Half of what was tried, or half of that, and so on, until it fits; 0 if not even one does."""
    count = tried // 2
    while count:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            attempt(count)
            break
        except torch.OutOfMemoryError as error:
            _forget(error)
        count //= 2
    return count


def _forget(error: BaseException) -> None:
    """Let go of what fills the memory: the frames that an error went through hold it."""
    traceback.clear_frames(error.__traceback__)

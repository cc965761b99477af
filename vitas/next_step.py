"""What to do when a stage is done: the last line that it prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vitas.config import AsvitSearch, RunConfig
from vitas.run import STAGES


def next_step(config: RunConfig, done: str, given: Sequence[str]) -> str:
    """The line that says what follows a stage, as a command with the same YAML and overrides.

    done: the stage. given: the YAML's path and the overrides.
    """
    words = " ".join(shlex.quote(str(word)) for word in given)
    stages = list(STAGES)
    # As-ViT's search writes architectures itself.
    left_out = {"sample"} if isinstance(config.search, AsvitSearch) else set()
    later = [name for name in stages[stages.index(done) + 1 :] if name not in left_out]
    there = [name for name in later if getattr(config, name) is not None]
    if there:
        return f"next: vitas {there[0]} {words}"
    if done == "test":
        return f"next: vitas export {words} --format onnx, or vitas predict {words} IMAGE_OR_FOLDER"
    found = f"; vitas describe {shlex.quote(config.save_path)} shows what was found" if done == "sample" else ""
    return f"next: give {shlex.quote(str(given[0]))} a section {later[0]}, then vitas {later[0]} {words}{found}"

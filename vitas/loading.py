"""The weights of a checkpoint in a network: as they are, or for the fine-tuning of one of another image size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitas import released
from vitas.checkpoint import read
from vitas.errors import UserError


def load_weights(model: nn.Module, path: Path | str, weights: str = "model") -> None:
    """Load a checkpoint's weights into a model.

    path: a checkpoint of ours (`weights` selects `model` or `ema`), a released
        ViTAS file, a plain state dict, or a safetensors file.

    Raises `UserError` for a file that is not a checkpoint, has no such weights,
    or has weights of another architecture (naming the first that differ).
    """
    load_state(model, read(path), path, weights)


def load_state(model: nn.Module, state: Mapping[str, Any], path: Path | str, weights: str = "model") -> None:
    """`load_weights` from a checkpoint that is already read; `path` is its file, for messages."""
    named = _weights_in(state, path, weights)
    _refuse_differences(path, _differences(model.state_dict(), named))
    model.load_state_dict(named)


def interpolate_positions(pos_embed_1ND: Tensor, patches: int, prefix_tokens: int = 1) -> Tensor:
    """Interpolate position embeddings [1, prefix + n, D] to [1, prefix + patches, D]: bicubic; the prefix stays."""
    side = math.isqrt(patches)
    resampled: Tensor = resample_abs_pos_embed(pos_embed_1ND, [side, side], num_prefix_tokens=prefix_tokens)
    return resampled


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


def _weights_in(state: Mapping[str, Any], path: Path | str, weights: str = "model") -> dict[str, Any]:
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


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    rows = []
    for key in {**wanted, **found}:
        shapes = [
            "nothing" if key not in side else str(tuple(getattr(side[key], "shape", ()))) for side in (wanted, found)
        ]
        if shapes[0] != shapes[1]:
            rows.append(f"{key} is {shapes[0]} in the network and {shapes[1]} in the file")
    return rows

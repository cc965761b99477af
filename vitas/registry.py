"""The networks under their names in timm: `timm.create_model("vitas_c")`, and any architecture of your own.

This module is loaded right after timm, which may be in the middle of loading
`vitas.models`. So it imports timm, torch and what needs them in its functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vitas import released
from vitas.errors import UserError
from vitas.space import Architecture, Network
from vitas.space.found import architectures_of
from vitas.space.published import resolve_architecture, zoo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitas.models import VisionTransformer

__all__ = ["register", "register_published"]

# The entry point that takes any architecture, as `architecture=`.
GENERIC = "vitas"
_PAPER = {"paper_ids": "arXiv:2106.13700", "paper_name": "ViTAS: Vision Transformer Architecture Search"}
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# timm looks here for the configuration of the names that it registers.
default_cfgs: dict[str, object] = {}


def register(name: str, architecture: Architecture | str) -> None:
    """Make an architecture a model of timm: `timm.create_model(name)`.

    name: a word of letters, digits and underscores.
    architecture: itself, its canonical text, or FILE.yaml:NAME of a run's `architectures.yaml`.

    The same name may be registered again for the same architecture. Raises
    `UserError` for a name that timm has for something else or that is no
    word, and for what names no architecture, or several.
    """
    if not _WORD.fullmatch(name):
        raise UserError(
            f"name: found {name!r}; a name in timm is a word of letters, digits and underscores, as vitas_mine"
        )
    if isinstance(architecture, str):
        found = architectures_of(architecture)
        if len(found) != 1:
            raise UserError(f"{architecture} holds {', '.join(found) or 'nothing'}; name one of them, as FILE:NAME")
        (architecture,) = found.values()
    _register(name, _vitas(name, architecture), {})


def _vitas(name: str, network: Network) -> Architecture:
    if not isinstance(network, Architecture):
        raise UserError(f"{name}: found the genotype {network}; timm is given ViTAS's architectures alone")
    return network


def register_published() -> None:
    """Register the published ViTAS networks and the entry point for any architecture.

    DeiT's are timm's own, and As-ViT's have no entry there.
    """
    for name, architecture in zoo().items():
        if name.startswith("vitas_"):
            _register(name, architecture, {"license": "mit", **_PAPER})
    _register(GENERIC, None, {})


def _register(name: str, architecture: Architecture | None, facts: Mapping[str, str]) -> None:
    import timm.models

    if timm.models.is_model(name):
        # A mark on the entry point, and no list kept here: timm's registry outlives a second loading of this module.
        held = getattr(timm.models.model_entrypoint(name), "vitas_architecture", None)
        if held == str(architecture):
            return
        raise UserError(f"name: found {name!r}, which timm has already for {held or 'another network'}; choose another")
    default_cfgs.update(timm.models.generate_default_cfgs({name: _pretrained_cfg() | facts}))
    public = list(__all__)
    timm.models.register_model(_entry_point(name, architecture))
    # timm adds the name, but a model is no attribute of this module.
    __all__[:] = public


def _entry_point(name: str, architecture: Architecture | None) -> Callable[..., nn.Module]:
    if architecture is None:

        def create(pretrained: bool = False, architecture: Architecture | str | None = None, **kwargs) -> nn.Module:
            if architecture is None:
                raise UserError(f"{name}: say which network, as architecture='p16-e230-token-h3q432m720x12'")
            return _create(name, _vitas(name, resolve_architecture(architecture)), pretrained, **kwargs)
    else:

        def create(pretrained: bool = False, **kwargs) -> nn.Module:
            return _create(name, architecture, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{architecture or 'Any architecture'}, as a `vitas.VisionTransformer`."
    create.vitas_architecture = str(architecture)
    return create


def _pretrained_cfg() -> dict[str, object]:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def _create(
    name: str,
    architecture: Architecture,
    pretrained: bool,
    pretrained_cfg: Mapping | str | None = None,
    pretrained_cfg_overlay: Mapping | None = None,
    img_size: int | Sequence[int] | None = None,
    out_indices: int | Sequence[int] | None = None,
    **kwargs,
) -> nn.Module:
    from timm.models import build_model_with_cfg, resolve_pretrained_cfg

    source = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and not (source.has_weights or source.state_dict):
        raise UserError(
            f"{name}: pretrained=True, but there are no weights to download; "
            "load a checkpoint with checkpoint_path=, or a folder as 'local-dir:FOLDER'"
        )
    if out_indices is None:
        out_indices = min(3, architecture.depth)
    size = _square(source.input_size[-2:] if img_size is None else img_size)
    in_chans = kwargs.setdefault("in_chans", source.input_size[0])
    model = build_model_with_cfg(
        _network,
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        architecture=architecture,
        img_size=size,
        **kwargs,
    )
    # timm takes the transform of a network from here, and the network takes no other size.
    model.pretrained_cfg["input_size"] = (in_chans, size, size)
    return model


def _network(
    architecture: Architecture, img_size: int, device=None, dtype=None, num_classes: int = 1000, **kwargs
) -> VisionTransformer:
    from vitas.models import VisionTransformer

    network = VisionTransformer(architecture, num_classes, img_size, **kwargs)
    # `timm.create_model(checkpoint_path=)` hands a file's weights to load_state_dict as they are.
    network.register_load_state_dict_pre_hook(_rename_released_keys)
    return network.to(device=device, dtype=dtype)


def _square(img_size: int | Sequence[int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise UserError(f"img_size: found {img_size!r}; images are square here, so give one number of pixels")
    return sides.pop()


def _rename_released_keys(network: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give the keys of a released file the names of ours, in place: a pre-hook of `load_state_dict`."""
    keys = [key for key in state_dict if key.startswith(prefix)]
    weights = _under_our_names({key.removeprefix(prefix): state_dict.pop(key) for key in keys})
    state_dict.update({prefix + name: value for name, value in weights.items()})


def _under_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # timm takes `module.`, the mark of DistributedDataParallel, off the keys of every file; in released names it stays.
    whole = {f"module.{key}" if key.startswith("net.") else key: value for key, value in weights.items()}
    return released.rename_keys(whole) if released.is_released(whole) else dict(weights)


def checkpoint_filter_fn(state_dict: Mapping, model: VisionTransformer) -> dict[str, Tensor]:
    """Weights of a file for a network that may take another image size, as timm loads pretrained ones.

    state_dict: of a checkpoint of this project, a released ViTAS file, or a
        plain one. Position embeddings are interpolated (bicubic) to the network's size.
    """
    from timm.layers import resample_abs_pos_embed

    weights = _under_our_names(state_dict.get("model", state_dict))
    positions = weights.get("pos_embed")
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        weights["pos_embed"] = resample_abs_pos_embed(positions, model.patch_embed.grid_size)
    return weights

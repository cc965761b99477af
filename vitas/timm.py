"""The networks in timm. `import vitas.timm` registers them: `timm.create_model("vitas_c")`, and any of your own.

timm's tools ask more of a vision transformer than training does (features of
single blocks, another pooling, a classifier that is taken away). What they ask
is here; `vitas.VisionTransformer` is the network alone.

Shape suffixes: B images, N tokens, D embedding dim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import timm.models
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from vitas import released
from vitas.architecture import Architecture, coarser_side
from vitas.catalog import find_architecture, zoo
from vitas.errors import UserError
from vitas.loading import interpolate_positions
from vitas.models.recomputation import run
from vitas.models.vision_transformer import VisionTransformer, init_weights, read_out

__all__ = ["TimmVisionTransformer", "register"]

# timm's words for what the classifier reads, and ours; "" is timm's for all tokens, which no Architecture says.
CLASSIFIER_OF_POOL = {"token": "token", "avg": "mean"}
POOL_OF_CLASSIFIER = {classifier: pool for pool, classifier in CLASSIFIER_OF_POOL.items()}


# Of a block: its patch tokens, or those and the class token.
Output: TypeAlias = Tensor | tuple[Tensor, Tensor]


class TimmVisionTransformer(VisionTransformer):
    """A `VisionTransformer` with the attributes and methods of timm's vision transformers.

    num_classes: 0 leaves the classifier out.
    in_chans: channels of the images.
    global_pool: what the classifier reads, in timm's words: `token`, `avg`, or
        "" (every token by itself); None is as the architecture says.
    drop_rate: dropout before the classifier.

    The names of the weights are the same. Raises `UserError` for another pooling.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        image_size: int = 224,
        drop_path_rate: float = 0.0,
        *,
        in_chans: int = 3,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        # torch warns of a layer without outputs, so the classifier of 0 classes is taken away afterwards.
        super().__init__(architecture, num_classes or 1, image_size, drop_path_rate)
        patch_size, dim = architecture.patch_size, architecture.embed_dim
        self.in_chans = in_chans
        self.global_pool = POOL_OF_CLASSIFIER[architecture.classifier] if global_pool is None else _pool(global_pool)
        self.num_prefix_tokens = architecture.prefix_tokens
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": dim, "reduction": patch_size} for i in range(len(self.blocks))
        ]
        if in_chans != 3:
            self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, dim)
        self.head_drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        if not num_classes:
            self.reset_classifier(0)

    @property  # type: ignore[override]  # the one change to the base: it may be None
    def architecture(self) -> Architecture | None:
        """What this network is an instance of; None where no `Architecture` says it.

        That is so while nothing is pooled (`global_pool` is "") or the last
        norm is pruned away, and of the family `vit` with another pooling than
        its own. Pooling and blocks changed later are in it.
        """
        if not self.global_pool or isinstance(self.norm, nn.Identity):
            return None
        pooled = replace(self._architecture, classifier=CLASSIFIER_OF_POOL[self.global_pool])
        return pooled if pooled.prefix_tokens == self._architecture.prefix_tokens else None

    @architecture.setter
    def architecture(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def forward(self, images: Tensor) -> Tensor:
        # All tokens through all blocks: users of timm hook the last block, or the norm, and expect every token there.
        return self.forward_head(self.forward_features(images))

    def forward_head(self, x_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens [B, N, D] -> logits [B, C], or with `pre_logits` what the classifier reads [B, D].

        Where nothing is pooled, both are of every token: [B, N, C] and [B, N, D].
        """
        prefix = self.num_prefix_tokens
        pooled = read_out(x_BND, CLASSIFIER_OF_POOL[self.global_pool], prefix) if self.global_pool else x_BND
        x = self.head_drop(pooled)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Output] | tuple[Tensor, list[Output]]:
        """What blocks put out, as timm's networks give it: (normalised tokens of the last block, outputs).

        indices: the last so many blocks (int), these (negative ones from the end), or all.
        return_prefix_tokens: each output is a pair, with the class token [B, 1, D].
        norm: the last norm is applied to outputs too.
        stop_early: blocks after the last one asked for are not run.
        output_fmt: patch tokens as `NCHW` [B, D, rows, columns], or `NLC` [B, N - 1, D].
        intermediates_only: the list of outputs alone.

        Outputs are in the order of the blocks. Raises `UserError` for a block or format that there is not.
        """
        x_BND, outputs = self._outputs(images, indices, return_prefix_tokens, norm, stop_early, output_fmt)
        return outputs if intermediates_only else (self.norm(x_BND), outputs)

    def _outputs(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None,
        return_prefix_tokens: bool,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
    ) -> tuple[Tensor, list[Output]]:
        """Tokens of the last block that was run, and the outputs of `forward_intermediates`."""
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt: found {output_fmt!r}; it must be NCHW or NLC")
        taken = self._block_indices(indices)
        x_BND = self.embed(images)
        outputs: list[Output] = []
        for i, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            x_BND = run(block, x_BND, self.grad_checkpointing)
            if i in taken:
                tokens = self.norm(x_BND) if norm else x_BND
                class_token, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
                if output_fmt == "NCHW":
                    side = coarser_side(self.patch_embed.grid_size[0], self.token_reduction)
                    patches = patches.transpose(1, 2).unflatten(-1, (side, side)).contiguous()
                outputs.append((patches, class_token) if return_prefix_tokens else patches)
        return x_BND, outputs

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Output]:
        """`forward_intermediates` under DINO's name: the outputs of the last `n` blocks, or of these."""
        output_fmt = "NCHW" if reshape else "NLC"
        return self._outputs(images, n, return_prefix_tokens, norm, False, output_fmt)[1]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one of `indices`, and the last norm and the classifier if asked to.

        Returns the indices, none negative. Raises `UserError` for a block that there is not.
        """
        taken = self._block_indices(indices)
        kept = max(taken) + 1
        self.blocks = self.blocks[:kept]
        positions = [i for i, block in enumerate(self._architecture.blocks) if not block.is_identity]
        self._architecture = replace(self._architecture, blocks=self._architecture.blocks[: positions[kept - 1] + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer: `nn.Linear`, or `nn.Identity` where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one, or none for 0 classes.

        global_pool: `token`, `avg` or "" (see the class); None leaves it as it is.
        """
        if global_pool is not None:
            self.global_pool = _pool(global_pool)
        self.num_classes = num_classes
        if num_classes:
            like = self.pos_embed
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            init_weights(self.head)
        else:
            self.head = nn.Identity()
        self.head.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter names as patterns, by depth: timm's layer-wise learning rate decay goes by it."""
        # 99999 is timm's mark for "as the group before": the last norm goes with the last block.
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _block_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.blocks)
        if indices is None or isinstance(indices, int):
            last = count if indices is None else indices
            wanted = [*range(count - last, count)] if last > 0 else []
        else:
            wanted = [count + i if i < 0 else i for i in indices]
        if not wanted or not all(0 <= i < count for i in wanted):
            raise UserError(f"indices: found {indices!r}; this network has {count} blocks")
        return wanted


def _pool(name: str) -> str:
    if name and name not in CLASSIFIER_OF_POOL:
        raise UserError(f"global_pool: found {name!r}; it must be token, avg or '' (nothing is pooled)")
    return name


# The entry point that takes any architecture, as `architecture=`.
GENERIC = "vitas"
_PAPER = {"paper_ids": "arXiv:2106.13700", "paper_name": "ViTAS: Vision Transformer Architecture Search"}
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# timm looks here for the configuration of the names that this module registers.
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
    _register(name, _find(name, architecture))


def _register_published() -> None:
    """Register the published ViTAS networks and the entry point for any architecture.

    DeiT's are timm's own, and As-ViT's have no entry there.
    """
    for name, architecture in zoo().items():
        if isinstance(architecture, Architecture) and name.startswith("vitas_"):
            _register(name, architecture, license="mit", **_PAPER)
    _register(GENERIC, None)


def _register(name: str, architecture: Architecture | None, **facts: str) -> None:
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


def _pretrained_cfg() -> dict[str, object]:
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


def _entry_point(name: str, architecture: Architecture | None) -> Callable[..., nn.Module]:
    """What timm calls to make the network of a name; None makes that of any architecture."""
    if architecture is None:

        def create_any(
            pretrained: bool = False, architecture: Architecture | str | None = None, **kwargs: Any
        ) -> nn.Module:
            if architecture is None:
                raise UserError(f"{name}: say which network, as architecture='p16-e230-token-h3q432m720x12'")
            return _create(name, _find(name, architecture), pretrained, **kwargs)

        create: Callable[..., nn.Module] = create_any
    else:

        def create_one(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            return _create(name, architecture, pretrained, **kwargs)

        create = create_one
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{architecture or 'Any architecture'}, as a `vitas.timm.TimmVisionTransformer`."
    create.vitas_architecture = str(architecture)  # type: ignore[attr-defined]  # the mark that `_register` looks for
    return create


def _find(name: str, reference: Architecture | str) -> Architecture:
    architecture = find_architecture(reference)
    if not isinstance(architecture, Architecture):
        raise UserError(f"{name}: found the genotype {architecture}; timm is given ViTAS's architectures alone")
    return architecture


def _create(
    name: str,
    architecture: Architecture,
    pretrained: bool,
    pretrained_cfg: dict[str, Any] | str | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    img_size: int | Sequence[int] | None = None,
    out_indices: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
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
        pretrained_cfg=pretrained_cfg,  # type: ignore[arg-type]  # it may be a name, as above
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        architecture=architecture,
        img_size=size,
        **kwargs,
    )
    # timm takes the transform of a network from here, and the network takes no other size.
    vars(model)["pretrained_cfg"]["input_size"] = (in_chans, size, size)
    return model


def _square(img_size: int | Sequence[int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise UserError(f"img_size: found {img_size!r}; images are square here, so give one number of pixels")
    return sides.pop()


def _network(
    architecture: Architecture,
    img_size: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    num_classes: int = 1000,
    **kwargs: Any,
) -> TimmVisionTransformer:
    network = TimmVisionTransformer(architecture, num_classes, img_size, **kwargs)
    # `timm.create_model(checkpoint_path=)` hands a file's weights to load_state_dict as they are.
    network.register_load_state_dict_pre_hook(_rename_released_keys)  # type: ignore[no-untyped-call]  # torch's
    return network.to(device=device, dtype=dtype)


def _rename_released_keys(network: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give the keys of a released file the names of ours, in place: a pre-hook of `load_state_dict`."""
    keys = [key for key in state_dict if key.startswith(prefix)]
    weights = _under_our_names({key.removeprefix(prefix): state_dict.pop(key) for key in keys})
    state_dict.update({prefix + name: value for name, value in weights.items()})


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TimmVisionTransformer) -> dict[str, Tensor]:
    """Weights of a file for a network that may take another image size, as timm loads pretrained ones.

    state_dict: of a checkpoint of this project, a released ViTAS file, or a
        plain one. Position embeddings are interpolated (bicubic) to the network's size.
    """
    weights = _under_our_names(state_dict.get("model", state_dict))
    positions = weights.get("pos_embed")
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        patches = model.patch_embed.num_patches
        weights["pos_embed"] = interpolate_positions(positions, patches, model.num_prefix_tokens)
    return weights


def _under_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # timm takes `module.`, the mark of DistributedDataParallel, off the keys of every file; in released names it stays.
    whole = {f"module.{key}" if key.startswith("net.") else key: value for key, value in weights.items()}
    return released.rename_keys(whole) if released.is_released(whole) else dict(weights)


_register_published()

"""Networks that are already good, as `VisionTransformer`s of the family `vit`: timm's plain ViTs and DeiTs, our files.

What such a network does apart from its matrices is folded into them: layer
scale into the layers that it scales, another attention scale into q, and the
normalisation of its images into the patch projection. So the result takes the
run's images, and its logits are the network's own, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Attention, LayerScale, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as PlainTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vitas import checkpoint, loading
from vitas.architecture import Architecture, Block
from vitas.catalog import parse_architecture
from vitas.errors import UserError
from vitas.models import VisionTransformer
from vitas.models.vision_transformer import BLOCK_NORM_EPS, LAST_NORM_EPS

FORMS = (
    "a model of timm (vit_small_patch16_224), a checkpoint of `retrain` or an export, or NAME:FILE of timm's weights"
)


@dataclass(frozen=True)
class Images:
    """What a network is given: square images of this size, normalised so, of so many classes."""

    size: int
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True)
class Pretrained:
    """A network that was trained before.

    network: of the family `vit`, for the images that were asked for.
    has_classifier: whether its classifier was trained for as many classes; if not, its weights are fresh.
    """

    source: str
    network: VisionTransformer
    has_classifier: bool


def load_pretrained(source: str, images: Images) -> Pretrained:
    """Load a network: a model of timm (downloaded by timm), a checkpoint of ours, or NAME:FILE of timm's weights.

    Position embeddings are interpolated where the images have another size.

    Raises `UserError` for a source that there is not, for weights that cannot
    be read, and for a network that is no plain vision transformer, with the reason.
    """
    name, colon, file = source.partition(":")
    if Path(source).is_file():
        return _of_checkpoint(source, images)
    if colon and timm.is_model(name):
        return _of_timm(source, _timm_from_file(name, Path(file), images), images)
    if timm.is_model(source):
        return _of_timm(source, _timm_by_name(source, images), images)
    near = get_close_matches(name, timm.list_models(), 1)
    hint = f"did you mean {near[0]}?" if near else f"it must be {FORMS}"
    raise UserError(f"found {source!r}, which is neither a file nor a model of timm; {hint}")


def as_checkpoint(network: VisionTransformer, images: Images) -> dict[str, Any]:
    """What a checkpoint of `retrain` says of a network for these images: `load_pretrained` and fine-tuning read it."""
    return {
        "model": {name: value.cpu() for name, value in network.state_dict().items()},
        "architecture": str(network.architecture),
        "num_classes": images.num_classes,
        "image_size": images.size,
        "mean": list(images.mean),
        "std": list(images.std),
    }


def native_images(source: str) -> Images:
    """The images that a source was trained on. Raises `UserError` as `load_pretrained` does, and where it is not known.

    num_classes is 0 where the network has no classifier.
    """
    name, _, file = source.partition(":")
    if Path(source).is_file():
        state = checkpoint.read(source)
        if not isinstance(state.get("architecture"), str):
            raise UserError(_no_architecture(source))
        missing = [key for key in ("image_size", "num_classes", "mean", "std") if key not in state]
        if missing:
            raise UserError(f"{source} does not say its {missing[0]}; give a checkpoint of `retrain`")
        return Images(state["image_size"], state["num_classes"], state["mean"], state["std"])
    facts = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if facts is None:
        near = get_close_matches(name, timm.list_models(), 1)
        hint = f"did you mean {near[0]}?" if near else f"it must be {FORMS}"
        raise UserError(f"found {source!r}, which is neither a file nor a model of timm; {hint}")
    classes = facts.num_classes
    if file:
        head = _weights(checkpoint.read(file)).get("head.weight")
        classes = 0 if head is None else len(head)
    return Images(facts.input_size[-1], classes, facts.mean, facts.std)


def _no_architecture(path: str) -> str:
    return f"{path} does not say its architecture; of timm's weights, give the model's name before it: NAME:{path}"


def _of_checkpoint(path: str, images: Images) -> Pretrained:
    state = checkpoint.read(path)
    text = state.get("architecture")
    if not isinstance(text, str):
        raise UserError(_no_architecture(path))
    architecture = parse_architecture(text)
    if not isinstance(architecture, Architecture):
        raise UserError(f"{path} holds the genotype {text}; the network must be a plain vision transformer")
    architecture.check_image_size(images.size)
    found = VisionTransformer(architecture.compact(), images.num_classes, images.size)
    changes = loading.start_from(found, path)
    has_classifier = not any("classifier" in change for change in changes)
    network = VisionTransformer(replace(architecture.compact(), family="vit"), images.num_classes, images.size)
    if architecture.family != "vit" and network.architecture.prefix_tokens != architecture.prefix_tokens:
        raise UserError(
            f"{path}: {text} reads the mean of its patches beside a class token; only one of them can be kept"
        )
    weights = found.state_dict()
    for i, block in enumerate(found.architecture.blocks):
        factor = found.architecture.attention_scale(block) / network.architecture.attention_scale(block)
        for kind in ("weight", "bias"):
            weights[f"blocks.{i}.attn.qkv.{kind}"][: block.attention_dim] *= factor
    network.load_state_dict(weights)
    given = state.get("mean", images.mean), state.get("std", images.std)
    fold_normalisation(network, *given, images)
    return Pretrained(path, network.eval(), has_classifier)


def _timm_by_name(name: str, images: Images) -> nn.Module:
    facts = timm.get_pretrained_cfg(name)
    if facts is None or not facts.has_weights:
        raise UserError(f"timm has no pretrained weights of {name!r}; of a file of yours, give {name}:FILE")
    _refuse_before_download(name)
    try:
        return timm.create_model(name, pretrained=True, img_size=images.size)
    except Exception as error:
        # A download fails in as many ways as there are networks.
        raise UserError(f"the weights of {name} cannot be loaded: {str(error).splitlines()[0]}") from None


def _refuse_before_download(name: str) -> None:
    """Raise `UserError` for a model that is refused, without its weights, which may be gigabytes."""
    with torch.device("meta"):
        try:
            network = timm.create_model(name, pretrained=False)
        except Exception:
            # Not every model can be built so; it is looked at when it is loaded.
            return
    if reason := refusal(network):
        raise UserError(f"{name}: {reason}")


def _timm_from_file(name: str, file: Path, images: Images) -> nn.Module:
    weights = _weights(checkpoint.read(file))
    head = weights.get("head.weight")
    network = timm.create_model(
        name, pretrained=False, img_size=images.size, num_classes=0 if head is None else len(head)
    )
    network = _plain(network, name)
    try:
        network.load_state_dict(checkpoint_filter_fn(weights, network))
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not hold the weights of {name}: {str(error).splitlines()[-1].strip()}") from None
    return network


def _weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a file of timm's, DeiT's or anybody's training."""
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()}


def _plain(network: nn.Module, who: str) -> PlainTransformer:
    """The network, if it is a plain vision transformer of timm. Raises `UserError`, beginning with `who`, if not."""
    reason = refusal(network)
    if isinstance(network, PlainTransformer) and reason is None:
        return network
    raise UserError(f"{who}: {reason}")


def refusal(network: nn.Module) -> str | None:
    """Why a network of timm is no plain vision transformer; None for one that is."""
    if isinstance(network, VisionTransformerDistilled):
        return "it has a distillation token and a second classifier"
    if type(network) is not PlainTransformer:
        return f"it is timm's {type(network).__name__}, no plain vision transformer"
    if network.reg_token is not None:
        return "it has register tokens"
    stem = network.patch_embed
    if type(stem) is not PatchEmbed or not isinstance(stem.norm, nn.Identity):
        return "its stem is more than one projection of the patches"
    if stem.proj.in_channels != 3 or stem.patch_size[0] != stem.patch_size[1]:
        return "its patches are not square, or its images have no three channels"
    if network.pos_embed is None:
        return "it has no learned position embeddings"
    if not isinstance(network.norm_pre, nn.Identity):
        return "it has a norm before its blocks"
    if network.attn_pool is not None or network.global_pool not in ("token", "avg"):
        return "it pools by attention, or nothing, or more than the mean"
    if not isinstance(network.fc_norm, nn.Identity):
        return "its last norm comes after the pooling"
    if network.global_pool == "avg" and network.cls_token is not None:
        return "it reads the mean of its patches beside a class token"
    for i, block in enumerate(network.blocks):
        if reason := _refusal_of_block(block):
            return f"block {i}: {reason}"
    if not _is_norm(network.norm, LAST_NORM_EPS["vit"]):
        return f"its last norm is {network.norm}; it must be a LayerNorm with an eps of {LAST_NORM_EPS['vit']}"
    return None


def _refusal_of_block(block: nn.Module) -> str | None:
    if type(block) is not TimmBlock:
        return f"it is a {type(block).__name__}, not attention followed by an MLP"
    attention, mlp = block.attn, block.mlp
    if type(attention) is not Attention or type(mlp) is not Mlp:
        return f"it has a {type(attention).__name__} and a {type(mlp).__name__}"
    inner = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()), mlp.norm)
    if not all(isinstance(norm, nn.Identity) for norm in inner):
        return "it has a norm inside its attention or MLP"
    if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        return f"its activation is {mlp.act}; it must be the exact GELU"
    if not all(_is_norm(norm, BLOCK_NORM_EPS) for norm in (block.norm1, block.norm2)):
        return f"its norm is {block.norm1}; it must be a LayerNorm with an eps of {BLOCK_NORM_EPS}"
    return None


def _is_norm(norm: nn.Module, eps: float) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.eps == eps and norm.elementwise_affine


@torch.no_grad()
def _of_timm(source: str, network: nn.Module, images: Images) -> Pretrained:
    facts = getattr(network, "pretrained_cfg", {})
    ours, has_classifier = from_timm(network, images)
    fold_normalisation(ours, facts["mean"], facts["std"], images)
    return Pretrained(source, ours.eval(), has_classifier)


@torch.no_grad()
def from_timm(network: nn.Module, images: Images) -> tuple[VisionTransformer, bool]:
    """A plain vision transformer of timm, for images of the same kind; and whether its classifier fits.

    Raises `UserError` with the `refusal`.
    """
    network = _plain(network, "the network cannot be taken")
    stem = network.patch_embed
    if stem.img_size[0] != images.size:
        raise UserError(f"the network takes images of {stem.img_size[0]} x {stem.img_size[0]}, not {images.size}")
    sizes = attrgetter("attn.num_heads", "attn.qkv.out_features", "mlp.fc1.out_features")
    blocks = tuple(Block(*sizes(block)) for block in network.blocks)
    classifier = "token" if network.cls_token is not None else "mean"
    architecture = Architecture(stem.patch_size[0], network.embed_dim, blocks, classifier, "vit")
    ours = VisionTransformer(architecture, images.num_classes, images.size)
    # LayerScale's gamma, and what it scales.
    theirs = {name: value.clone() for name, value in network.state_dict().items()}
    for i, block in enumerate(network.blocks):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            if isinstance(getattr(block, scale), LayerScale):
                gamma = theirs.pop(f"blocks.{i}.{scale}.gamma")
                theirs[f"blocks.{i}.{layer}.weight"] *= gamma[:, None]
                theirs[f"blocks.{i}.{layer}.bias"] *= gamma
    if network.no_embed_class and network.cls_token is not None:
        # The class token has no position: its embedding is zero.
        theirs["pos_embed"] = torch.cat([torch.zeros_like(theirs["pos_embed"][:, :1]), theirs["pos_embed"]], dim=1)
    wanted = ours.state_dict()
    has_classifier = "head.weight" in theirs and theirs["head.weight"].shape == wanted["head.weight"].shape
    if not has_classifier:
        theirs |= {key: wanted[key] for key in ("head.weight", "head.bias")}
    # Some have no biases in q, k and v, or in the patch projection.
    theirs |= {
        key: torch.zeros_like(value) for key, value in wanted.items() if key not in theirs and key.endswith("bias")
    }
    ours.load_state_dict(theirs)
    return ours, has_classifier


@torch.no_grad()
def fold_normalisation(network: VisionTransformer, mean: Sequence[float], std: Sequence[float], images: Images) -> None:
    """Let a network that was trained on images of this mean and std take images that are normalised otherwise."""
    ours, theirs = (
        [torch.tensor(values, dtype=torch.float64) for values in pair]
        for pair in ((images.mean, images.std), (mean, std))
    )
    if all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        return
    projection, bias = (network.get_parameter(f"patch_embed.proj.{kind}") for kind in ("weight", "bias"))
    weight = projection.double()
    # (x * std + mean - their mean) / their std, for each channel of the image.
    shift = ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1)
    bias.add_((weight * shift).sum(dim=(1, 2, 3)).to(bias.dtype))
    projection.copy_(weight * (ours[1] / theirs[1]).view(1, 3, 1, 1))

"""How important the channels, heads, MLP units and blocks of a network are, and the network in that order.

Ordinal sharing keeps the first channels of every width, so they must be the
important ones. A score is the sum over all that goes with a channel or unit;
scores of units of one kind can be compared over all blocks (isomorphic groups;
Fang et al., ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.errors import UserError
from vitas.models import VisionTransformer
from vitas.models.vision_transformer import read_out, tokens_read

_BATCH = 64
# A classifier that is fitted needs so many images of each class.
IMAGES_OF_A_CLASS = 32


@dataclass(frozen=True)
class Importances:
    """Scores, more being more important: of embedding channels [D], of each block's heads [H] and MLP units [M]."""

    embed: Tensor
    heads: list[Tensor]
    mlp: list[Tensor]


def score_parts(network: VisionTransformer, images: Tensor, labels: Tensor, score: str = "taylor") -> Importances:
    """Score the parts of a network by images [n, 3, H, W], normalised, and labels [n].

    score: a name in `SCORES`: `taylor` is the mean over images, or batches for
        channels of the embedding, of |sum of activation x gradient| (Molchanov
        et al., CVPR 2019); `activation` the mean absolute activation;
        `magnitude` the norm of all weights that go with a part.

    Raises `UserError` for another name.
    """
    if score not in _RULES:
        raise UserError(f"score: found {score!r}; it must be {' or '.join(_RULES)}")
    was_training = network.training
    network.eval()
    try:
        with torch.enable_grad():
            found = _RULES[score](network, images, labels)
    finally:
        network.zero_grad(set_to_none=True)
        network.train(was_training)
    return found


def _taylor(network: VisionTransformer, images: Tensor, labels: Tensor) -> Importances:
    def of_channels(inputs: Mapping[str, Tensor]) -> Tensor:
        return _of_channels(network, lambda p: p.double() * _gradient(p).double()).abs()

    return _over_batches(network, images, labels, lambda x: x * _gradient(x), of_channels)


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise RuntimeError("no backward pass has come to this tensor")
    return tensor.grad


def _activation(network: VisionTransformer, images: Tensor, labels: Tensor) -> Importances:
    def of_channels(inputs: Mapping[str, Tensor]) -> Tensor:
        # What every norm reads: the channels themselves.
        norms = [x for name, x in inputs.items() if name.rpartition(".")[2].startswith("norm")]
        return reduce(torch.add, (x.double().abs().sum(dim=(0, 1)) for x in norms))

    return _over_batches(network, images, labels, torch.abs, of_channels)


def _over_batches(
    network: VisionTransformer,
    images: Tensor,
    labels: Tensor,
    of_inputs: Callable[[Tensor], Tensor],
    of_channels: Callable[[Mapping[str, Tensor]], Tensor],
) -> Importances:
    """Scores that are sums over images. Called after the backward pass of each batch:

    of_inputs: the inputs of a layer [b, N, dims] -> what each is worth; heads and units sum it up.
    of_channels: the inputs of all layers by name -> the scores of the channels of the embedding [D].
    """
    architecture, device = network.architecture, network.pos_embed.device
    blocks = architecture.active_blocks

    def zeros(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.float64, device=device)

    sums = Importances(
        zeros(architecture.embed_dim), [zeros(b.heads) for b in blocks], [zeros(b.mlp_dim) for b in blocks]
    )
    for batch, targets in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        network.zero_grad(set_to_none=True)
        with _inputs_of(network) as inputs:
            # All tokens through all blocks: those of the last block count as those of the others, read or not.
            tokens = network.forward_features(batch.to(device))
            logits = network.head(read_out(tokens, architecture.classifier, architecture.prefix_tokens))
            F.cross_entropy(logits.float(), targets.to(device), reduction="sum").backward()
        with torch.no_grad():
            for i in range(len(blocks)):
                for layer, out in (("attn.proj", sums.heads[i]), ("mlp.fc2", sums.mlp[i])):
                    # [b, N, parts x dims of one] -> [b, parts]
                    of_parts = of_inputs(inputs[f"blocks.{i}.{layer}"]).double().unflatten(-1, (len(out), -1))
                    out += of_parts.sum(dim=(1, 3)).abs().sum(dim=0)
            sums.embed.add_(of_channels(inputs))
    return sums


@contextmanager
def _inputs_of(network: VisionTransformer) -> Iterator[dict[str, Tensor]]:
    """Within it, the inputs of norms, attention projections and second MLP layers in forward passes, by their names."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            kept[name] = args[0]
            if args[0].requires_grad:
                args[0].retain_grad()

        return hook

    wanted = [
        (n, m) for n, m in network.named_modules() if n.endswith(("attn.proj", "mlp.fc2", "norm1", "norm2", "norm"))
    ]
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in wanted if not isinstance(m, nn.Identity)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


# Along which dimensions a weight has the channels of the embedding, by the end of its name.
_EMBED_DIMS = {
    "cls_token": 2, "pos_embed": 2, "patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0,
    "norm1.weight": 0, "norm1.bias": 0, "norm2.weight": 0, "norm2.bias": 0, "norm.weight": 0, "norm.bias": 0,
    "attn.qkv.weight": 1, "attn.proj.weight": 0, "attn.proj.bias": 0, "mlp.fc1.weight": 1, "mlp.fc2.weight": 0,
    "mlp.fc2.bias": 0, "head.weight": 1,
}  # fmt: skip


def _embed_dim_of(name: str) -> int | None:
    return next((dim for end, dim in _EMBED_DIMS.items() if name == end or name.endswith(f".{end}")), None)


def _of_channels(network: VisionTransformer, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of a value of all weights that go with each channel of the embedding [D]."""
    total = torch.zeros(network.architecture.embed_dim, dtype=torch.float64, device=network.pos_embed.device)
    for name, parameter in network.named_parameters():
        dim = _embed_dim_of(name)
        if dim is not None and parameter is not None:
            total += value(parameter).movedim(dim, 0).reshape(len(total), -1).sum(dim=1)
    return total


@torch.no_grad()
def _magnitude(network: VisionTransformer, images: Tensor, labels: Tensor) -> Importances:
    def square(p: Tensor) -> Tensor:
        return p.double().square()

    def squares(name: str) -> Tensor:
        return square(network.get_parameter(name))

    heads, mlp = [], []
    for i, block in enumerate(network.architecture.active_blocks):
        attn, units = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        rows = squares(f"{attn}.qkv.weight").sum(1) + squares(f"{attn}.qkv.bias")
        of_dims = rows.view(3, -1).sum(0) + squares(f"{attn}.proj.weight").sum(0)
        heads.append(of_dims.view(block.heads, -1).sum(1).sqrt())
        of_units = squares(f"{units}.fc1.weight").sum(1) + squares(f"{units}.fc1.bias")
        mlp.append((of_units + squares(f"{units}.fc2.weight").sum(0)).sqrt())
    return Importances(_of_channels(network, square).sqrt(), heads, mlp)


# To add a score, add it here, and its meaning to `SCORES`, which the configuration reads.
_RULES: dict[str, Callable[[VisionTransformer, Tensor, Tensor], Importances]] = {
    "taylor": _taylor,
    "activation": _activation,
    "magnitude": _magnitude,
}


@torch.no_grad()
def order_blocks(network: VisionTransformer, images: Tensor, least: int = 1) -> list[int]:
    """The positions of a network's blocks, the most important first, by images [n, 3, H, W].

    Again and again, the block is left out without which the network's
    probabilities change least, by their Kullback-Leibler divergence from those
    of the whole network, until `least` are left. These come first, by what the
    last comparison said of them.
    """
    was_training = network.training
    network.eval()
    device = network.pos_embed.device
    whole = [network(batch.to(device)).float().log_softmax(1) for batch in images.split(_BATCH)]
    left, removed = list(range(len(network.blocks))), []
    all_blocks = network.blocks

    def divergence(kept: Sequence[int]) -> float:
        network.blocks = nn.ModuleList(all_blocks[i] for i in kept)
        total = 0.0
        for batch, expected in zip(images.split(_BATCH), whole, strict=True):
            found = network(batch.to(device)).float().log_softmax(1)
            total += F.kl_div(found, expected, reduction="sum", log_target=True).item()
        return total

    try:
        costs = dict.fromkeys(left, 0.0)
        while len(left) > max(least, 1):
            costs = {i: divergence([j for j in left if j != i]) for i in left}
            removed.append(min(left, key=lambda i: (costs[i], i)))
            left.remove(removed[-1])
    finally:
        network.blocks = all_blocks
        network.train(was_training)
    return sorted(left, key=lambda i: (-costs[i], i)) + removed[::-1]


@torch.no_grad()
def reordered(network: VisionTransformer, scores: Importances) -> VisionTransformer:
    """The same network with channels, heads and MLP units in the order of their scores: its logits are equal, to
    rounding.
    """
    result = VisionTransformer(network.architecture, network.num_classes, network.image_size)
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def descending(values: Tensor) -> Tensor:
        # Stable, so that ties do not depend on the machine.
        return torch.argsort(values, descending=True, stable=True)

    def permute(name: str, dim: int, order: Tensor) -> None:
        state[name] = state[name].index_select(dim, order.to(state[name].device))

    embed = descending(scores.embed)
    for name in state:
        if (dim := _embed_dim_of(name)) is not None:
            permute(name, dim, embed)
    for i, block in enumerate(network.architecture.active_blocks):
        head_dim = block.attention_dim // block.heads
        heads = descending(scores.heads[i])
        dims = (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).flatten()
        rows = torch.cat([dims + part * block.attention_dim for part in range(3)])
        permute(f"blocks.{i}.attn.qkv.weight", 0, rows)
        permute(f"blocks.{i}.attn.qkv.bias", 0, rows)
        permute(f"blocks.{i}.attn.proj.weight", 1, dims)
        units = descending(scores.mlp[i])
        permute(f"blocks.{i}.mlp.fc1.weight", 0, units)
        permute(f"blocks.{i}.mlp.fc1.bias", 0, units)
        permute(f"blocks.{i}.mlp.fc2.weight", 1, units)
    result.load_state_dict(state)
    return result.to(network.pos_embed.device).train(network.training)


def fit_classifier(network: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], decay: float = 1e-3) -> float:
    """Give a network a classifier for these images: a logistic regression on its features. Returns its top-1 on them.

    batches: images [b, 3, H, W], normalised, and labels [b].
    """
    architecture, device = network.architecture, network.pos_embed.device
    was_training = network.training
    network.eval()
    found: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.no_grad():
        for images, of_images in batches:
            tokens = network.forward_features(images.to(device), tokens_read(architecture.classifier))
            found.append(read_out(tokens, architecture.classifier, architecture.prefix_tokens).float())
            targets.append(of_images.to(device))
    network.train(was_training)
    features, labels = torch.cat(found), torch.cat(targets)
    head = nn.Linear(features.shape[1], network.num_classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(features), labels) + decay * head.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    network.head.load_state_dict(head.state_dict())
    with torch.no_grad():
        return 100 * float((head(features).argmax(1) == labels).double().mean())

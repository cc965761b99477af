"""Where the class token alone is read, the last block computes nothing for other tokens: logits and gradients stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vitas.conftest import logits_of_all_tokens, random_images, randomise
from vitas import Architecture, SearchSpace, SuperNet, VisionTransformer
from vitas.elastic_space import ElasticSpace
from vitas.models import supernet as of_supernets

IMAGE_SIZE, TOKENS = 32, 17
SPACES = {read: SearchSpace((8,), 32, 3, (2, 4), 96, 64, (0.5, 1.0), classifier=read) for read in ("token", "mean")}
# {} is the classifier. Identities last, between blocks, and nothing but them.
SHAPES = ["p8-e32-{}-h2q96m64-h4q48m32-id", "p8-e32-{}-h4q48m32-id-h2q96m64", "p8-e16-{}-idx3"]
PLAIN = "vit8-e24-{}-h3q72m48-h3q72m48"


def results(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits, and the gradients of all parameters, with the same random draws at each call."""
    network.zero_grad()
    torch.manual_seed(5)
    logits = forward(random_images(6, IMAGE_SIZE).double())
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in network.named_parameters()}


def flops(forward: Callable[[Tensor], Tensor]) -> int:
    """Of the forward and backward pass of one image."""
    # The mathematical form of attention is two matrix products, which the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(random_images(1, IMAGE_SIZE)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reduce", [1, 2])
@pytest.mark.parametrize("classifier", ["token", "mean"])
@pytest.mark.parametrize("shape", [*SHAPES, PLAIN])
def test_a_network_has_the_logits_and_gradients_of_all_tokens_through_all_blocks(shape, classifier, reduce, recompute):
    """In training, with the same images dropped by stochastic depth."""
    architecture = Architecture.parse(shape.format(classifier))
    network = randomise(VisionTransformer(architecture, 5, IMAGE_SIZE, drop_path_rate=0.5)).double().train()
    network.set_token_reduction(reduce)
    network.set_grad_checkpointing(recompute)
    found = results(network, network)
    torch.testing.assert_close(found, results(network, lambda images: logits_of_all_tokens(network, images)))


SIDES = [("ordinal", "left"), ("bilateral", "right"), ("cyclic", 24)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("classifier", ["token", "mean"])
@pytest.mark.parametrize(
    ("shape", "sharing", "side"), [*((s, *at) for s in SHAPES for at in SIDES), (PLAIN, *SIDES[0])]
)
def test_a_subnet_has_the_logits_and_gradients_of_all_tokens(shape, classifier, sharing, side, recompute, monkeypatch):
    architecture = Architecture.parse(shape.format(classifier))
    space = ElasticSpace(architecture, (0, 1)) if architecture.family == "vit" else SPACES[classifier]
    supernet = randomise(SuperNet(space, 5, IMAGE_SIZE, sharing)).double()
    supernet.set_grad_checkpointing(recompute)

    def forward(images: Tensor) -> Tensor:
        return supernet(images, architecture, side)

    found = results(supernet, forward)
    monkeypatch.setattr(of_supernets, "tokens_read", lambda _: None)
    torch.testing.assert_close(found, results(supernet, forward))


@pytest.mark.parametrize("classifier", ["token", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_of_other_tokens_in_the_last_block_are_gone(shape, classifier, monkeypatch):
    """Forward and backward, by torch's counter; in the supernet those of q too, which has a matrix of its own there."""
    architecture = Architecture.parse(shape.format(classifier))
    network, supernet = VisionTransformer(architecture, 5, IMAGE_SIZE), SuperNet(SPACES[classifier], 5, IMAGE_SIZE)
    saved = of_q = 0
    if classifier == "token" and architecture.depth:
        last, dim = architecture.active_blocks[-1], architecture.embed_dim
        of_q = (TOKENS - 1) * dim * last.attention_dim
        saved = (TOKENS - 1) * (dim * last.attention_dim + 2 * TOKENS * last.attention_dim + 2 * dim * last.mlp_dim)
    whole = flops(lambda images: logits_of_all_tokens(network, images))
    # A multiply-add is two operations, and the backward pass of a product is two products.
    assert whole - flops(network) == 6 * saved
    of_subnet = flops(lambda images: supernet(images, architecture))
    monkeypatch.setattr(of_supernets, "tokens_read", lambda _: None)
    assert flops(lambda images: supernet(images, architecture)) - of_subnet == 6 * (saved + of_q)


@torch.inference_mode()
def test_features_of_some_tokens_are_those_of_all_tokens():
    network = randomise(VisionTransformer(Architecture.parse(SHAPES[0].format("mean")), 5, IMAGE_SIZE)).double()
    images = random_images(2, IMAGE_SIZE).double()
    for queries in (1, 3, TOKENS):
        torch.testing.assert_close(
            network.forward_features(images, queries), network.forward_features(images)[:, :queries]
        )

"""Coarser tokens of the same weights: what a larger stride and dilation of the first projection give, and cost."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vitas.conftest import logits_of_all_tokens, random_images, randomise
from vitas import Genotype, StagedTransformer, VisionTransformer, create_model, zoo
from vitas.catalog import find_architecture
from vitas.errors import UserError
from vitas.timm import TimmVisionTransformer

VIT = "p4-e32-mean-h2q96m64x2"
STAGED = "4,2,2,1|2,1,2,2|3,1,3,1|2,1,2,1|16,16"
# Windows that reduced tokens do not divide, kernels with uneven paddings, heads that do not divide the dims.
UNEVEN = "7,8,2,1|3,4,2,2|4,2,3,1|3,1,2,1|16,18"
# (network, image size, reduction): with tokens that the reduction divides, and with those that it does not.
REDUCED = [
    (VIT, 32, 2), (VIT, 32, 3), (VIT, 32, 8), ("p16-e24-token-h2q48m24", 224, 4), ("p1-e8-token-h2q12m8", 6, 2),
    (STAGED, 32, 2), (STAGED, 32, 8), (STAGED, 96, 5), (UNEVEN, 224, 2), (UNEVEN, 224, 4), (UNEVEN, 32, 2),
]  # fmt: skip


def random_network(text: str, image_size: int) -> VisionTransformer | StagedTransformer:
    return randomise(create_model(text, 5, image_size))


# Full tokens


@pytest.mark.parametrize("text", [VIT, UNEVEN])
def test_full_tokens_after_reduced_ones_are_what_they_were(text):
    network, images = random_network(text, 32), random_images(2, 32)
    features, keys = network.forward_features(images), list(network.state_dict())
    network.set_token_reduction(2)
    assert not torch.equal(network.forward_features(images).mean(), features.mean())
    assert list(network.state_dict()) == keys
    network.set_token_reduction()
    assert torch.equal(network.forward_features(images), features)


def test_weights_know_no_reduction():
    network = random_network(VIT, 32)
    network.set_token_reduction(4)
    fresh = create_model(VIT, 5, 32)
    fresh.load_state_dict(network.state_dict())
    assert fresh.token_reduction == 1
    network.set_token_reduction(1)
    assert torch.equal(fresh(random_images(2, 32)), network(random_images(2, 32)))


# Reduced tokens


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_patch_tokens_are_those_of_a_convolution_of_larger_stride_and_dilation(reduce):
    network, images = random_network(VIT, 32), random_images(2, 32)
    projection = network.patch_embed.proj
    plain = F.conv2d(images, projection.weight, projection.bias, stride=4 * reduce, dilation=reduce)
    class_position, positions = network.pos_embed[:, :1], network.pos_embed[:, 1:]
    # A coarse token's place is a square of full tokens.
    squares = positions.unflatten(1, (8 // reduce, reduce, 8 // reduce, reduce)).mean(dim=(2, 4)).flatten(1, 2)
    network.set_token_reduction(reduce)
    network.blocks, network.norm = nn.ModuleList(), nn.Identity()
    tokens = network.forward_features(images)
    torch.testing.assert_close(tokens[:, 1:], plain.flatten(2).transpose(1, 2) + squares)
    torch.testing.assert_close(tokens[:, :1], (network.cls_token + class_position).expand(2, -1, -1))


@pytest.mark.parametrize("kernel", [4, 5, 7, 8])
@pytest.mark.parametrize("reduce", [2, 4])
def test_the_stem_is_a_convolution_of_larger_stride_dilation_and_padding(kernel, reduce):
    network, images = random_network(STAGED.replace("4", str(kernel), 1), 32), random_images(2, 32)
    network.set_token_reduction(reduce)
    seen = []
    network.patch_embed.norm = nn.Identity()
    network.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(images)
    before, after = (reduce * zeros for zeros in network.patch_embed.padding)
    projection = network.patch_embed.proj
    plain = F.conv2d(
        F.pad(images, (before, after, before, after)), projection.weight, projection.bias, 4 * reduce, 0, reduce
    )
    torch.testing.assert_close(seen[0], plain.permute(0, 2, 3, 1))


def test_tokens_beyond_the_edge_see_the_mean_colour_and_the_positions_that_are_there():
    """14 x 14 tokens reduced by 4 are 4 x 4, the last of which stand for 2."""
    network = random_network("p16-e24-token-h2q48m24", 224)
    images, wider = random_images(2, 224), torch.zeros(2, 3, 256, 256)
    wider[..., :224, :224] = images
    projection = network.patch_embed.proj
    plain = F.conv2d(wider, projection.weight, projection.bias, stride=64, dilation=4).flatten(2).transpose(1, 2)
    last = network.pos_embed[0, 1:].unflatten(0, (14, 14))[12:, 12:].mean(dim=(0, 1))
    network.set_token_reduction(4)
    network.blocks, network.norm = nn.ModuleList(), nn.Identity()
    tokens = network.forward_features(images)
    assert tokens.shape == (2, 17, 24)
    torch.testing.assert_close(tokens[:, -1], plain[:, -1] + last)


def test_outputs_of_blocks_have_the_shape_of_the_reduced_tokens():
    network = randomise(TimmVisionTransformer(find_architecture(VIT), 5, 32))
    network.set_token_reduction(3)
    for maps in network.forward_intermediates(random_images(2, 32), intermediates_only=True):
        assert maps.shape == (2, 32, 3, 3)


@pytest.mark.parametrize(("text", "image_size", "reduce"), REDUCED)
def test_every_parameter_has_a_gradient_in_the_same_order(text, image_size, reduce):
    """Several processes reduce gradients in the order in which the first step of a start had them."""
    network, orders = random_network(text, image_size), []
    for reduction in (1, reduce):
        network.set_token_reduction(reduction)
        orders.append([])
        hooks = [
            p.register_post_accumulate_grad_hook(lambda _, name=name: orders[-1].append(name))
            for name, p in network.named_parameters()
        ]
        network.zero_grad()
        network(random_images(2, image_size)).square().sum().backward()
        for hook in hooks:
            hook.remove()
    assert orders[0] == orders[1]
    assert len(orders[0]) == len(list(network.parameters()))
    if isinstance(network, VisionTransformer):
        assert (network.pos_embed.grad[0].abs().amax(dim=1) > 0).all()


# Costs


@pytest.mark.parametrize(("text", "image_size", "reduce"), REDUCED)
def test_counted_macs_of_reduced_tokens_are_torchs(text, image_size, reduce):
    network = random_network(text, image_size).eval()
    network.set_token_reduction(reduce)
    forward = partial(logits_of_all_tokens, network) if isinstance(network, VisionTransformer) else network
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(random_images(1, image_size))
    assert find_architecture(text).macs(image_size, 5, reduce=reduce) == counter.get_total_flops() / 2


def test_tokens_and_windows_of_reduced_tokens():
    genotype = Genotype.parse(UNEVEN)
    assert genotype.resolutions(224, 2) == (28, 14, 7, 4)
    # A split of 8 divides neither 28 nor 14, and 4 not 14.
    assert genotype.splits(224, 1) == (8, 4, 2, 1)
    assert genotype.splits(224, 2) == (7, 2, 1, 1)
    assert genotype.splits(224, 4) == (7, 1, 2, 1)
    assert genotype.resolutions(32, 4) == (2, 1, 1, 1)
    assert [zoo()["vitas_c"].tokens_per_side(224, r) for r in (1, 2, 4, 14)] == [14, 7, 4, 1]


# Mistakes


@pytest.mark.parametrize("reduce", [0, -1, 9, 2.0, True, "2"])
@pytest.mark.parametrize("text", [VIT, STAGED])
def test_a_reduction_that_there_are_too_few_tokens_for_is_refused(text, reduce):
    message = rf"found {reduce!r}; an image gives 8 x 8 tokens, it must be an integer from 2 to 8"
    architecture = find_architecture(text)
    network = create_model(architecture, 5, 32)
    for refuse in (lambda: network.set_token_reduction(reduce), lambda: architecture.macs(32, 5, reduce=reduce)):
        with pytest.raises(UserError, match=message):
            refuse()
    assert network.token_reduction == 1


def test_a_single_token_cannot_be_reduced():
    with pytest.raises(UserError, match=r"found 2; an image gives 1 x 1 tokens, so there is nothing to reduce"):
        create_model("p32-e8-token-h2q12m8", 5, 32).set_token_reduction(2)

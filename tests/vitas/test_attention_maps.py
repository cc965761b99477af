"""Where a network looks."""

import pytest
import torch
import torch.nn.functional as F

from vitas import Architecture, Block, VisionTransformer
from vitas.asvit.genotype import Genotype
from vitas.models import StagedTransformer
from vitas.models.attention_maps import attention_maps


@pytest.mark.parametrize("family", ["vitas", "vit"])
@pytest.mark.parametrize("classifier", ["token", "mean"])
def test_the_map_is_what_the_last_blocks_attention_weighs_patches_with(monkeypatch, family, classifier):
    architecture = Architecture(8, 24, (Block(2, 36, 20), Block(3, 54, 20)), classifier, family)
    torch.manual_seed(0)
    network = VisionTransformer(architecture, 5, 32).eval()
    for parameter in network.parameters():
        # Large enough that attention is far from even.
        torch.nn.init.normal_(parameter, std=0.4)
    images = torch.randn(3, 3, 32, 32)
    weights, attend = [], F.scaled_dot_product_attention

    def recorded(q, k, v, scale):
        # With the unit matrix for values, attention gives its weights.
        weights.append(attend(q, k, torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1), scale=scale))
        return attend(q, k, v, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    with torch.no_grad():
        network(images)
    monkeypatch.undo()
    of_heads = weights[-1].mean(1)
    prefix = architecture.prefix_tokens
    rows = of_heads[:, :1] if classifier == "token" else of_heads[:, prefix:]
    expected = rows.mean(1)[:, prefix:]
    found = attention_maps(network, images)
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(found.flatten(1), expected / expected.sum(1, keepdim=True))
    assert found.std() > 0.01


@pytest.mark.parametrize("text", ["8,2,2,2|4,1,2,1|4,1,2,1|4,1,2,2|16,32", "8,2,2,1|4,1,2,1|4,2,2,1|4,2,2,1|16,32"])
def test_with_windows_the_map_is_of_all_patches_of_each_window(monkeypatch, text):
    torch.manual_seed(0)
    genotype = Genotype.parse(text)
    network = StagedTransformer(genotype, 5, 128).eval()
    for parameter in network.layers[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    images = torch.randn(2, 3, 128, 128)
    inputs = []
    last = network.layers[-1].blocks[-1].attn
    last.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        network(images)
    found = attention_maps(network, images)
    side, split = 4, network.layers[-1].split
    assert found.shape == (2, side, side)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2))
    # By hand, window by window, as rows and columns of the picture.
    own, head_dim = side // split, last.qkv.out_features // 3 // last.heads
    for image in range(2):
        for window in range(split**2):
            q, k, _ = last.qkv(inputs[0][image, window]).reshape(-1, 3, last.heads, head_dim).unbind(1)
            weights = torch.einsum("qhd,nhd->hqn", q, k).mul(last.scale).softmax(-1).mean((0, 1)).reshape(own, own)
            row, column = (own * place for place in divmod(window, split))
            part = found[image, row : row + own, column : column + own]
            torch.testing.assert_close(part, weights / split**2)
    assert found.std() > 0.001


def test_a_network_without_blocks_looks_everywhere_alike():
    network = VisionTransformer(Architecture(8, 24, ()), 5, 32)
    assert torch.equal(attention_maps(network, torch.zeros(2, 3, 32, 32)), torch.full((2, 4, 4), 1 / 16))

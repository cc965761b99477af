"""Where a network looks."""

import pytest
import torch
import torch.nn.functional as F

from vitas import Architecture, Block, VisionTransformer
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


def test_a_network_without_blocks_looks_everywhere_alike():
    network = VisionTransformer(Architecture(8, 24, ()), 5, 32)
    assert torch.equal(attention_maps(network, torch.zeros(2, 3, 32, 32)), torch.full((2, 4, 4), 1 / 16))

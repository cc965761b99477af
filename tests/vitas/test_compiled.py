"""Networks compiled by torch."""

import pytest
import torch

from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, Block, VisionTransformer
from vitas.compiled import compiled
from vitas.errors import UserError


@pytest.fixture
def network():
    return randomise(VisionTransformer(Architecture(8, 24, (Block(2, 36, 20),)), 5, 16, drop_path_rate=0.5)).train()


def loss_and_gradients(forward, network, images) -> tuple[torch.Tensor, list[torch.Tensor]]:
    network.zero_grad()
    torch.manual_seed(3)
    loss = forward(images).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters()]


def test_a_compiled_network_has_the_same_loss_and_gradients_to_rounding(network):
    images = random_images(6, 16)
    expected = loss_and_gradients(network, network, images)
    forward = compiled(network, "retrain.compile")
    names = list(network.state_dict())
    for _ in range(2):
        found = loss_and_gradients(forward, network, images)
        torch.testing.assert_close(found, expected)
    assert list(network.state_dict()) == names


def test_batches_of_another_shape_pass_uncompiled(network, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda images: calls.append(len(images)) or images)
    forward = compiled(network.eval(), "test.compile")
    sizes = (4, 4, 3, 4)
    outputs = [forward(random_images(size, 16)) for size in sizes]
    assert calls == [4, 4, 4]
    torch.testing.assert_close(outputs[2], network(random_images(3, 16)))


def test_where_torch_cannot_compile_the_key_is_named(network, monkeypatch):
    def no_compiler(*_):
        raise torch._dynamo.exc.TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda module, **_: no_compiler)
    with pytest.raises(UserError, match=r"retrain\.compile: torch cannot compile .*No working C\+\+ .* to false"):
        compiled(network, "retrain.compile")(random_images(1, 16))

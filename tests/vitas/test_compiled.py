"""Networks compiled by torch."""

import pytest
import torch

from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, Block, VisionTransformer
from vitas.accumulation import parts_of
from vitas.architecture import IDENTITY
from vitas.compiled import compiled
from vitas.errors import UserError


@pytest.fixture
def network():
    # At the second position, as the first one is never dropped; each block takes long to compile.
    architecture = Architecture(8, 24, (IDENTITY, Block(2, 36, 20)))
    return randomise(VisionTransformer(architecture, 5, 16, drop_path_rate=0.5)).train()


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


def test_a_compiled_network_whose_batches_pass_in_parts_has_the_same_loss_and_gradients_to_rounding(
    network, monkeypatch
):
    """Of 2, 3, 2 and 3 images: those of the first one's shape pass compiled, each with the draws of its own images."""
    # What is captured, and when it holds, is the same without generating code, which takes most of the time.
    compile, eager, graphs = torch.compile, torch._dynamo.lookup_backend("aot_eager"), []

    def captured(graph, inputs):
        graphs.append(graph)
        return eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda module, **_: compile(module, dynamic=False, backend=captured))
    images, labels = random_images(10, 16), torch.arange(10) % 5
    expected = loss_and_gradients_of_parts(network, network, images, labels)
    forward = compiled(network, "retrain.compile")
    for _ in range(2):
        found = loss_and_gradients_of_parts(forward, network, images, labels)
        torch.testing.assert_close(found, expected)
    whole = loss_and_gradients_of_parts(network, network, images, labels, count=1)
    torch.testing.assert_close(found, whole)
    assert len(graphs) == 1, "one for the shape, and not for each part"


def loss_and_gradients_of_parts(forward, network, images, labels, count=4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    network.zero_grad()
    torch.manual_seed(3)
    loss = torch.zeros(())
    for part in parts_of(images, labels, count):
        of_part = part.share * torch.nn.functional.cross_entropy(forward(part.images), part.targets)
        of_part.backward()
        loss += of_part.detach()
    return loss, [parameter.grad.clone() for parameter in network.parameters()]


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

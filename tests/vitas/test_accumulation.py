"""A batch that passes in parts, and blocks that are computed again: the same gradients in less memory."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from retrain.retrain import retrain
from search.search import search
from tests.conftest import largest
from tests.retrain.test_token_schedule import STAGED, VIT
from tests.test_resume import assert_equal
from vitas import SuperNet, create_model
from vitas import config as configuration
from vitas.accumulation import parts_of
from vitas.checkpoint import CheckpointFolder, read
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.loading import load_weights
from vitas.models import stochastic_depth
from vitas.models.stochastic_depth import StochasticDepth


def gradients(network: nn.Module, images: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    network.zero_grad()
    torch.manual_seed(5)
    for part in parts_of(images, labels, count):
        (part.share * nn.functional.cross_entropy(network(part.images), part.targets)).backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.fixture(params=[0, 2**18], ids=["left out", "masked"])
def few(request, monkeypatch) -> int:
    """How many numbers of a residual stream are few: the images here are computed without what is dropped, or with."""
    monkeypatch.setattr(stochastic_depth, "_FEW", request.param)
    return request.param


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(10, 3, 32, 32, dtype=torch.float64), torch.randint(10, (10,))


@pytest.mark.parametrize("architecture", [VIT, STAGED])
@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_gradients_of_the_parts_add_up_to_those_of_the_batch(batch, few, architecture, count) -> None:
    network = create_model(architecture, 10, 32, drop_path_rate=0.5).double().train()
    whole, parts = (gradients(network, *batch, each) for each in (1, count))
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_parts_are_as_equal_as_possible_and_hold_every_image_once(batch) -> None:
    parts = list(parts_of(*batch, 3))
    assert [len(part.images) for part in parts] == [3, 3, 4]
    assert [part.is_last for part in parts] == [False, False, True]
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert torch.equal(torch.cat([part.images for part in parts]), batch[0])
    assert torch.equal(torch.cat([part.targets for part in parts]), batch[1])
    assert len(list(parts_of(*batch, 40))) == 10


@pytest.mark.parametrize("rows", [None, 2])
def test_a_whole_batch_has_the_stochastic_depth_of_timm(few, rows) -> None:
    """The same images are kept, with the same gradients; of many numbers, those images alone are computed."""
    tokens, layer = torch.randn(16, 5, 8).double().requires_grad_(), nn.Linear(8, 8).double()
    seen = []

    def branch(x: Tensor) -> Tensor:
        seen.append(len(x))
        return layer(x)[:, :rows]

    def timms(x: Tensor) -> Tensor:
        return x[:, :rows] + DropPath(0.4)(layer(x)[:, :rows])

    found = []
    for forward in (lambda x: StochasticDepth(0.4)(x, branch, rows), timms):
        torch.manual_seed(1)
        out = forward(tokens)
        found.append((out, *torch.autograd.grad(out.square().sum(), (tokens, *layer.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    left_out = (found[0][0] == tokens[:, :rows]).all(dim=(1, 2)).sum()
    assert left_out > 0
    assert seen == [16 if few else 16 - left_out]


def test_stochastic_depth_leaves_nothing_out_in_evaluation() -> None:
    tokens = torch.randn(16, 5, 8)
    assert torch.equal(StochasticDepth(0.9).eval()(tokens, torch.square), tokens + tokens.square())


@pytest.mark.parametrize("what", ["p8-e16-token-h2q48m16x2", STAGED])
def test_a_block_whose_every_image_is_left_out_has_gradients_of_zero(few, what) -> None:
    """A parameter without one would be missed by the average over the ranks, which waits for all."""
    network = create_model(what, 10, 32, drop_path_rate=0.9999).train()
    torch.manual_seed(0)
    network(torch.randn(3, 3, 32, 32)).sum().backward()
    blocks = [module for module in network.modules() if getattr(module, "drop_path", None)]
    assert len(blocks) > 1
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in blocks[-1].parameters())


# Blocks that are computed again


@pytest.mark.parametrize("architecture", [VIT, STAGED])
@pytest.mark.parametrize("count", [1, 3])
def test_a_network_whose_blocks_are_computed_again_has_the_same_gradients(batch, few, architecture, count) -> None:
    network = create_model(architecture, 10, 32, drop_path_rate=0.5).double().train()
    plain = gradients(network, *batch, count)
    network.set_grad_checkpointing()
    assert_equal(gradients(network, *batch, count), plain)


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic"])
def test_a_subnet_whose_blocks_are_computed_again_has_the_same_gradients(small_space, batch, sharing) -> None:
    supernet = SuperNet(small_space, 10, 32, sharing).double()
    subnet, kept, runs = largest(small_space), [], []
    for enable in (False, True):
        supernet.set_grad_checkpointing(enable)
        supernet.zero_grad()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = sum(supernet(batch[0], subnet, side) for side in supernet.scheme.training_sides(3)).square().sum()
        loss.backward()
        kept.append(sum(sizes))
        runs.append([None if p.grad is None else p.grad.clone() for p in supernet.parameters()])
    assert_equal(*runs)
    assert kept[1] < kept[0] / 2


# In a training


def trained(path, stage: str, name: str, *overrides: str) -> RunConfig:
    config = configuration.load(path, [f"save_path={path.parent / name}", *overrides])
    {"search": search, "retrain": retrain}[stage](config, World())
    return config


def newest(config: RunConfig, stage: str):
    return CheckpointFolder(config.folder.checkpoints(stage)).newest()


RECIPE = [
    "retrain.mixup=0.8", "retrain.cutmix=1.0", f"retrain.architecture={VIT}", "retrain.drop_path_rate=0.3",
    "search.subnets={parts: 2, together: sandwich, randoms: 1}", "search.distillation={teacher: largest}",
]  # fmt: skip


def test_a_network_trained_in_parts_is_that_of_whole_batches(trainings, batch) -> None:
    logits = []
    for name, count in (("whole", 1), ("parts", 3)):
        config = trained(trainings, "retrain", name, *RECIPE, f"retrain.accumulate={count}")
        network = create_model(VIT, 10, 32).eval()
        load_weights(network, newest(config, "retrain"))
        logits.append(network(batch[0].float()))
    # Adam magnifies rounding.
    torch.testing.assert_close(*logits, rtol=0, atol=1e-2)


def test_a_supernet_trained_in_parts_is_that_of_whole_batches(trainings, batch) -> None:
    logits, losses = [], []
    for name, count in (("whole", 1), ("parts", 3)):
        config = trained(trainings, "search", name, *RECIPE, f"search.accumulate={count}")
        supernet = SuperNet.of(config).eval()
        load_weights(supernet, newest(config, "search"))
        logits.append(supernet(batch[0].float(), largest(config.space)))
        losses.append(read(newest(config, "search"))["choice_losses"]["sums"])
    torch.testing.assert_close(*logits, rtol=0, atol=1e-2)
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_blocks_that_are_computed_again_change_no_training(trainings, stage) -> None:
    states = [
        read(newest(trained(trainings, stage, name, *RECIPE, f"{stage}.activation_checkpointing={name}"), stage))
        for name in ("false", "true")
    ]
    assert_equal(*states)


def test_a_training_may_go_on_in_other_parts(trainings) -> None:
    given = [*RECIPE, "retrain.min_lr=2e-3", "retrain.warmup_epochs=0"]
    trained(trainings, "retrain", "run", *given, "retrain.epochs=1")
    config = trained(
        trainings, "retrain", "run", *given, "retrain.accumulate=2", "retrain.activation_checkpointing=true"
    )
    assert read(newest(config, "retrain"))["changes"] == []
    assert "resumes at step 8 of 16" in config.folder.log("retrain", None).read_text()

"""The stages on a GPU: bfloat16, images in GPU memory, gradients over NCCL."""

import json

import pytest
import torch
import torch.distributed as dist

from inference.test import test as measure
from retrain.retrain import retrain
from search.sample import sample
from search.search import search
from tests.conftest import largest
from vitas import SearchSpace, SuperNet, create_model, distributed
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.errors import UserError
from vitas.memory import measuring_what_fits
from vitas.models.step_weights import StepWeights
from vitas.reduction import Reduction

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def world():
    yield distributed.init()
    distributed.shutdown()


def test_all_stages_run_on_the_gpu(make_config, world) -> None:
    assert world.device.type == "cuda"
    config = configuration.load(make_config())
    search(config, world)
    sample(config, world)
    retrain(config, world)
    measure(config, world)
    assert json.loads(config.folder.results.read_text())["device"] == "cuda"


def test_evaluation_images_stay_in_gpu_memory(make_config, world) -> None:
    config = configuration.load(make_config())
    model = config.model
    images = EvaluationSet.load(config.test.data, model.image_size, model.mean, model.std, world, everything=True)
    assert images.images.is_cuda
    assert images.images.dtype == torch.uint8


def test_an_extracted_subnet_has_the_supernets_logits(world) -> None:
    space = SearchSpace((8,), 64, 3, (2, 4), 192, 128, (0.5, 1.0))
    supernet = SuperNet(space, 10, 32, "bilateral").to(world.device).eval()
    images = torch.randn(4, 3, 32, 32, device=world.device)
    dense = supernet.extract(largest(space), "right")
    assert torch.allclose(supernet(images, largest(space), "right"), dense(images), atol=1e-3)


def test_stochastic_depth_leaves_the_same_images_out_as_on_a_cpu(world) -> None:
    images = torch.randn(256, 3, 32, 32)
    network = create_model("p4-e32-token-h2q96m64x3", 10, 32, drop_path_rate=0.6).train()
    found = []
    for device in ("cpu", world.device):
        network.to(device).zero_grad()
        torch.manual_seed(1)
        network(images.to(device)).square().mean().backward()
        found.append([parameter.grad.cpu() for parameter in network.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        loss = network(images.to(world.device)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)


def test_a_pretrained_network_is_ordered_searched_and_served_on_the_gpu(make_config, world, tmp_path) -> None:
    first = {"model.sharing": "ordinal", "model.space": None, "retrain.architecture": "vit8-e32-token-h4q96m64x3"}
    source = configuration.load(make_config(first | {"save_path": str(tmp_path / "source")}), stages=("retrain",))
    retrain(source, world)
    changes = {
        "model.sharing": "ordinal",
        "model.space": {"embed": [0.5], "heads": [0.5], "mlp": [0.5], "depth": [0.67]},
        "model.from_pretrained": str(source.folder.checkpoints("retrain") / "epoch_2_ckpt.pth.tar"),
        "search.distillation": {"teacher": "pretrained", "weight": 1.0},
        "sample.budget": {"minimum": 150_000, "maximum": 450_000},
        "test.from_supernet": True,
    }
    config = configuration.load(make_config(changes, "elastic.yaml"))
    search(config, world)
    sample(config, world)
    measure(config, world)
    assert json.loads(config.folder.results.read_text())["from_supernet"]


def test_gradients_are_averaged_over_nccl(monkeypatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    try:
        # A world that says two but holds one rank: the sum is this rank's own, and the average half of it.
        world = distributed.World(rank=0, size=2, device=torch.device("cuda"))
        space = SearchSpace((8,), 32, 2, (2,), 96, 64, (0.5, 1.0))
        supernet = SuperNet(space, 10, 16, "bilateral").cuda()
        subnet, sides = space.decode([0, 0, 0, 1, 0, 1, 0, 1]), ("left", "right")
        images = torch.randn(2, 3, 16, 16, device="cuda")

        averaged = Reduction(world, 1)
        weights = StepWeights(supernet, arrived=averaged.arrived)

        def train() -> list[torch.Tensor]:
            supernet.zero_grad()
            weights.begin((subnet, side) for side in sides)
            logits = sum(supernet(images, subnet, side, weights.of(subnet, side)) for side in sides)
            logits.square().sum().backward()
            return [p.grad.clone() for p in supernet.parameters() if p.grad is not None]

        expected = train()
        averaged.begin(
            supernet.slices_in_use([subnet], sides), [supernet.parameters_in_use(subnet, side) for side in sides]
        )
        train()
        averaged.finish([])
        found = [p.grad for p in supernet.parameters() if p.grad is not None]
        for gradient, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, whole / 2)
    finally:
        dist.destroy_process_group()


def test_a_full_gpu_says_how_much_fits(world) -> None:
    each = torch.cuda.get_device_properties(world.device).total_memory // 32

    def attempt(count: int) -> None:
        torch.empty(count * each, dtype=torch.uint8, device=world.device)

    torch.cuda.set_per_process_memory_fraction(0.2)
    try:
        with pytest.raises(UserError, match=r"^4 in the memory of cuda:\d+ \(\d+ GB\)$"):  # noqa: SIM117
            with measuring_what_fits(16, attempt, world.device, lambda fit, memory: f"{fit} in {memory}"):
                attempt(16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_training_in_parts_and_with_less_memory_goes_on_from_checkpoints_written_beside_it(
    make_config, world
) -> None:
    given = {"accumulate": 2, "activation_checkpointing": True, "checkpoint_steps": 2, "epochs": 1, "warmup_epochs": 0}
    config = configuration.load(
        make_config({f"{stage}.{key}": value for stage in ("search", "retrain") for key, value in given.items()}),
        ["retrain.architecture=p8-e32-token-h2q96m64x2"],
    )
    for stage, train in (("search", search), ("retrain", retrain)):
        train(config, world)
        folder = CheckpointFolder(config.folder.checkpoints(stage))
        assert folder.epochs() == [1]
        # It is what the training ended with: the second time there is nothing to do.
        train(config, world)
        assert "all 1 epochs are done" in config.folder.log(stage, None).read_text()

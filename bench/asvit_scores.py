"""What As-ViT's scores of one network cost, beside a literal implementation of the definitions.

    python bench/asvit_scores.py [--image-size 224] [--peer-image-size 96] [--threads 2]

The peer runs one backward pass per feature for the length distortion, and one
per image for the NTK, as the released implementation does. It takes minutes at
224 x 224, so it runs at a smaller size, where both must agree. The scores are
timed at both sizes.

Seconds are the least of the repeats; the peer runs once. CPU seconds, summed
over all threads, are shown too: other work on the machine affects them less.
The difference is the relative one between our value and the peer's.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vitas import Genotype, StagedTransformer
from vitas.asvit.scores import circle_basis, length_distortion, ntk_condition_number

# The seed topology that As-ViT's authors published, at the hidden dim of the search.
SEED_TOPOLOGY = "8,2,3|4,1,2|4,1,4|4,1,6|32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genotype", default=SEED_TOPOLOGY)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--peer-image-size", type=int, default=96, help="0: no peer")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = f"{arguments.threads} threads" if arguments.device == "cpu" else torch.cuda.get_device_name()
    table = Table(title=f"{arguments.genotype} on {where}, torch {torch.__version__}")
    for column in ("score", "image", "seconds", "processor", "peer", "difference"):
        table.add_column(column, justify="right")
    for image_size in dict.fromkeys([arguments.image_size, arguments.peer_image_size]):
        if image_size:
            measure(table, arguments, image_size, with_peer=image_size == arguments.peer_image_size)
    Console().print(table)


def measure(table: Table, arguments: argparse.Namespace, image_size: int, with_peer: bool) -> None:
    """Add a row for each score."""
    network, images, circle = at_initialisation(
        arguments.genotype, image_size, arguments.batch_size, arguments.points, arguments.device
    )
    for name, ours, peer, inputs in (
        ("length distortion", length_distortion, plain_length_distortion, circle),
        ("NTK condition", ntk_condition_number, plain_ntk_condition_number, (images,)),
    ):
        value, wall, processor = least(lambda: ours(network, *inputs), arguments.repeats)  # noqa: B023
        row = [name, str(image_size), f"{wall:.2f}", f"{processor:.2f}", "", ""]
        if with_peer:
            expected, peer_wall, _ = least(lambda: peer(network, *inputs), 1)  # noqa: B023
            row[-2:] = [f"{peer_wall:.2f}", f"{abs(value / expected - 1):.1e}"]
        table.add_row(*row)


def at_initialisation(
    genotype: str = SEED_TOPOLOGY, image_size: int = 224, batch_size: int = 16, points: int = 10, device: str = "cpu"
) -> tuple[StagedTransformer, Tensor, tuple[Tensor, Tensor]]:
    """A network at one initialisation; images for the NTK; and for the length distortion the basis and the points of
    the circle. By default the published settings."""
    torch.manual_seed(0)
    network = StagedTransformer(Genotype.parse(genotype), 1, image_size).to(device)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    thetas = torch.linspace(0, 2 * math.pi, points, device=device)
    return network, images, (circle_basis(image_size, 0).to(device), thetas)


def least(function: Callable[[], float], repeats: int) -> tuple[float, float, float]:
    """A function's value, and its least seconds and CPU seconds over some calls."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        value = function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return value, min(walls), min(processors)


def plain_length_distortion(network: nn.Module, basis: Tensor, thetas: Tensor) -> float:
    """One backward pass per feature."""
    network = copy.deepcopy(network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    thetas = thetas.clone().requires_grad_()
    images = torch.stack([thetas.cos(), thetas.sin()], dim=1) @ basis.flatten(1)
    features = network.forward_features(images.unflatten(1, basis.shape[1:]))
    columns = [torch.autograd.grad(column.sum(), thetas, retain_graph=True)[0] for column in features.unbind(1)]
    return torch.stack(columns, dim=1).norm(dim=1).sum().item()


def plain_ntk_condition_number(network: nn.Module, images: Tensor) -> float:
    """One backward pass per image."""
    weights = [parameter for name, parameter in network.named_parameters() if "weight" in name]
    features = network.forward_features(images)
    rows = []
    for image_features in features:
        gradients = torch.autograd.grad(image_features.sum(), weights, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    rows = torch.stack(rows).double()
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T)
    return (eigenvalues[-1] / eigenvalues[0]).item()


if __name__ == "__main__":
    main()

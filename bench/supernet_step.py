"""What a training step of a subnet costs, beside the dense network of the same shape.

    python bench/supernet_step.py [--image-size 224] [--batch-size 8] [--subnets 6]

The limit is the dense network: the supernet's views should cost no more than
the network's own weights. Both are measured in turn, subnet by subnet, in this
process. A bilateral step has two passes, so it is compared with two dense ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from vitas import SearchSpace, SuperNet
from vitas.catalog import SPACE_ABE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--subnets", type=int, default=6)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"training step on {name}, torch {torch.__version__}, batch {arguments.batch_size}")
    for column in ("sharing", "MACs of subnets", "subnet ms", "dense ms", "ratio"):
        table.add_column(column, justify="right")
    space = SearchSpace(
        tuple(p for p in SPACE_ABE.patch_sizes if arguments.image_size % p == 0),
        SPACE_ABE.embed_dim,
        SPACE_ABE.depth,
        SPACE_ABE.heads,
        SPACE_ABE.qkv_dim,
        SPACE_ABE.mlp_dim,
        SPACE_ABE.widths,
    )
    for sharing in ("ordinal", "bilateral"):
        shared, dense, macs = measure(space, sharing, device, arguments)
        table.add_row(
            sharing, f"{macs / 1e9:.2f} G", f"{1e3 * shared:.1f}", f"{1e3 * dense:.1f}", f"{shared / dense:.3f}"
        )
    Console().print(table)


def measure(
    space: SearchSpace, sharing: str, device: torch.device, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Mean seconds of a supernet step, of as many dense passes, and mean MACs, over random subnets."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    supernet = SuperNet(space, image_size=arguments.image_size, sharing=sharing).to(device)
    shared_optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4, fused=True)
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=device)
    labels = torch.randint(1000, (arguments.batch_size,), device=device)
    shared, dense, macs = [], [], []
    for _ in range(arguments.subnets):
        architecture = space.sample(rng, 0.4)
        network = supernet.extract(architecture)
        dense_optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

        def shared_logits(architecture=architecture) -> torch.Tensor:
            return sum(supernet(images, architecture, side) for side in supernet.scheme.scoring_sides)

        def dense_logits(network=network) -> torch.Tensor:
            return sum(network(images) for _ in supernet.scheme.scoring_sides)

        shared.append(seconds(shared_logits, shared_optimizer, labels))
        dense.append(seconds(dense_logits, dense_optimizer, labels))
        macs.append(architecture.macs(arguments.image_size))
    return float(np.mean(shared)), float(np.mean(dense)), float(np.mean(macs))


def seconds(forward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, labels: torch.Tensor) -> float:
    """The median of some whole steps: forward, backward, optimiser."""
    times = []
    for _ in range(6):
        _synchronize(labels.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(forward(), labels).backward()
        optimizer.step()
        _synchronize(labels.device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

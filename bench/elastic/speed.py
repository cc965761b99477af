"""Is a network of fewer MACs faster, too?

    OMP_NUM_THREADS=1 python bench/elastic/speed.py [--batch-size 64] [ARCHITECTURE ...]

Images per second, forward passes, of the network of `setting.py` and of what `compare.py` found from it (or of the
given architectures): the median over the seeds, and beside it how many times faster than the network, where its MACs
are so many times fewer. On a GPU in bfloat16. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from setting import BUDGETS, MACS, NETWORK, results

from vitas import Architecture, create_model
from vitas.evaluate import images_per_second

SECONDS = 1.0


def speed(architecture: Architecture, batch_size: int, device: torch.device) -> float:
    """Images per second, the best of three medians: other work on the machine only slows."""
    network = create_model(architecture, 10, 28).to(device)
    return max(images_per_second(network, 28, batch_size, SECONDS) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", type=Architecture.parse, metavar="ARCHITECTURE")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    whole = speed(NETWORK, arguments.batch_size, device)
    print(f"{name}, batches of {arguments.batch_size}: {NETWORK} {whole:,.0f} images/s")
    found: dict[tuple[str, str], list[Architecture]] = defaultdict(list)
    for architecture in arguments.architectures:
        found["given", str(architecture)].append(architecture)
    if not arguments.architectures:
        for line in results("compare").lines:
            # With and without teacher, and before and after fine-tuning, networks are the same.
            method = line["method"].partition(",")[0]
            found[method, line["budget"]].append(Architecture.parse(line["architecture"]))
    print("| | budget | MACs | fewer | images/s | faster |\n|---|---|--:|--:|--:|--:|")
    order = {budget: place for place, budget in enumerate(BUDGETS)}
    for (method, budget), architectures in sorted(found.items(), key=lambda item: order.get(item[0][1], 0)):
        macs = np.median([a.macs(28, 10) for a in architectures])
        rate = np.median([speed(a, arguments.batch_size, device) for a in dict.fromkeys(architectures)])
        cells = f"{macs:,.0f} | {MACS / macs:.1f} x | {rate:,.0f} | {rate / whole:.1f} x"
        print(f"| {method} | {budget} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

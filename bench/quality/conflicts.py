"""Do subnets of a supernet want opposite things of the weights that they share?

    OMP_NUM_THREADS=1 python bench/quality/conflicts.py FOLDER [--variants TEXT ...] [--seed 0] [--pairs 100]

NASViT (Gong et al., ICLR 2022) reports that the gradients of large and small subnets conflict, and projects them. For a
trained supernet of each variant, this takes pairs of subnets and the gradients that the two have on the same 250 train
images, over the weights that both use, and prints how often their cosine is negative: between subnets of the budget,
and between the largest subnet of the space and the smallest. Beside it the cosine of one subnet's gradients on two such
batches: what chance makes of equal wishes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from setting import Setting, argument_parser
from supernets import DEFAULT, config_of

from search.search import build_supernet, search
from vitas import Architecture, SuperNet, loading
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.distributed import World
from vitas.in_budget import InBudget

IMAGES = 250


def gradient(
    supernet: SuperNet, architecture: Architecture, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The gradient of the loss of all sides' summed logits, over all weights [n]; 0 where the subnet has none."""
    supernet.zero_grad(set_to_none=True)
    logits = sum(supernet(images, architecture, side) for side in supernet.scheme.training_sides(0))
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in supernet.parameters()])


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Over the weights that both have a gradient for."""
    both = (first != 0) & (second != 0)
    return float(F.cosine_similarity(first[both], second[both], dim=0))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=[DEFAULT], metavar="TEXT", help="of supernets.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    print("| supernet | in the budget | largest and smallest | the same subnet, two batches |\n|---|--:|--:|--:|")
    for variant in arguments.variants:
        config = config_of(setting, variant, arguments.seed)
        search(config, World())
        supernet = build_supernet(config, World())
        path = CheckpointFolder(config.folder.checkpoints("search")).resolve()
        loading.load_weights(supernet, path, "model")
        model, space = config.model, config.space
        data = EvaluationData.model_validate(setting.data("train"))
        images = EvaluationSet.load(data, model.image_size, model.mean, model.std, World(), everything=True)
        rng = np.random.default_rng(0)
        drawn = InBudget(config.macs_model, config.budget).draw(rng, 2 * arguments.pairs)
        cosines: dict[str, list[float]] = {"in the budget": [], "ends": [], "same": []}
        for i in range(arguments.pairs):
            batches = []
            for _ in range(2):
                which = torch.from_numpy(rng.choice(images.total, IMAGES, replace=False))
                batches.append(next(images.take(which).batches(IMAGES)))
            genome = drawn[2 * i]
            of_patch = drawn[drawn[:, 0] == genome[0]]
            other = of_patch[rng.integers(len(of_patch))]
            ends = [space.extreme(genome, widest) for widest in (True, False)]
            first, second, large, small = (space.decode(g) for g in (genome, other, *ends))
            own = gradient(supernet, first, *batches[0])
            cosines["in the budget"].append(cosine(own, gradient(supernet, second, *batches[0])))
            cosines["same"].append(cosine(own, gradient(supernet, first, *batches[1])))
            cosines["ends"].append(cosine(*(gradient(supernet, a, *batches[0]) for a in (large, small))))
        cells = [f"{np.mean(values):.2f}, {np.mean(np.array(values) < 0):.0%} negative" for values in cosines.values()]
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""What the supernet's training saw: how dear and how deep its subnets were, and what of the supernet they updated.

Nothing of it is stored with a checkpoint: the plan says what any step trained.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from search.subnets import TrainingPlan
from vitas.budget import Budget, CostModel
from vitas.sharing import SharingScheme

# As many steps, evenly spaced, stand for a whole training.
_SAMPLED = 2000


def seen_by(genomes: np.ndarray, cost_model: CostModel, budget: Budget | None) -> dict[str, float]:
    """A few numbers about the subnets of some steps, genomes [passes, genes]: mean cost, depth, and shares."""
    columns, costs = cost_model.space.columns(genomes), cost_model.predict(genomes)
    values = {"mean_cost": float(cost_model.mean(genomes)), "mean_depth": float(columns.active.sum(1).mean())}
    if budget is not None:
        values["in_budget"] = float((budget.distance(costs) == 0).mean())
    for gene, size in enumerate(cost_model.space.patch_sizes):
        values[f"patch_size_{size}"] = float((columns.patch == gene).mean())
    return values


def describe_seen(
    plan: TrainingPlan, scheme: SharingScheme, cost_model: CostModel, budget: Budget | None, steps: int
) -> dict:
    """What a training of so many steps saw, as plain data, from up to 2,000 of the steps.

    Beside `seen_by`: a histogram of costs, the share of the subnets with each
    depth, and the share of the subnets that updated each block and each channel
    at full width (of attention and MLP: of their uses, over all blocks).
    """
    space = cost_model.space
    # Python's integers: the seed of a draw is made of their text.
    chosen = np.unique(np.linspace(0, steps - 1, _SAMPLED).astype(int)).tolist()
    groups = [np.concatenate(plan.genomes(step)) for step in chosen]
    sides = [scheme.training_sides(step) for step, group in zip(chosen, groups, strict=True) for _ in group]
    genomes = np.concatenate(groups)
    columns, costs = space.columns(genomes), cost_model.predict(genomes)

    def channels(genes: np.ndarray, used: np.ndarray, dims: tuple[tuple[int, ...], ...]) -> list[float]:
        """The share of the uses of a layer that updated each of its channels; genes and used are [passes, layers].

        dims: what the genes of each layer stand for. Layers of another size count in shares of their channels.
        """
        widest = max(of_layer[-1] for of_layer in dims)
        updates = np.zeros(widest)
        for row, of_pass in enumerate(sides):
            chosen = [(dims[layer], genes[row, layer]) for layer in np.flatnonzero(used[row])]
            for (of_layer, gene), times in Counter(chosen).items():
                updated = np.zeros(of_layer[-1], dtype=bool)
                for side in of_pass:
                    for start, stop in scheme.channels(of_layer[gene], of_layer[-1], side):
                        updated[start:stop] = True
                updates += times * updated[np.arange(widest) * of_layer[-1] // widest]
        return (updates / used.sum()).round(4).tolist()

    counts, edges = np.histogram(costs, bins=20)
    depths, of_depth = np.unique(columns.active.sum(1), return_counts=True)
    return {
        "steps": steps,
        **{name: round(value, 4) for name, value in seen_by(genomes, cost_model, budget).items()},
        "costs": {"edges": edges.tolist(), "share": (counts / len(costs)).round(4).tolist()},
        "depths": {str(d): round(float(n / len(costs)), 4) for d, n in zip(depths, of_depth, strict=True)},
        "updated": {
            "blocks": columns.active.mean(0).round(4).tolist(),
            **{name: channels(*of_kind) for name, of_kind in space.width_genes(columns).items()},
        },
    }

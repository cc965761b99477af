"""Is a supernet better whose optimizer moves only the weights that a step used?

    OMP_NUM_THREADS=1 python bench/quality/used_slices.py FOLDER --variants TEXT ... --seeds N ...

As `supernets.py`, with another optimizer: AdamW leaves the weights, and its moments of them, where the step's subnets
have no gradients. Today those decay, and go on by the momentum of earlier steps. Scores go to
`results/SETTING/supernets.jsonl` with "used slices" behind the variant; `ranking.py` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import supernets
import torch
from setting import Setting, argument_parser
from torch import nn

from vitas import train
from vitas.config import Training

WORD = "used slices"


class AdamWOfUsedSlices(torch.optim.AdamW):
    """AdamW of the places whose gradients are not 0, which a used weight's hardly ever are."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        assert closure is None
        kept = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    moments = [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]
                    kept.append((p, [(tensor, tensor.clone()) for tensor in (p, *moments)]))
        super().step()
        for p, tensors in kept:
            unused = p.grad == 0
            for tensor, before in tensors:
                tensor[unused] = before[unused]


def optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    usual = _usual(model, settings)
    return AdamWOfUsedSlices(usual.param_groups, lr=settings.lr, fused=True)


_usual = train._optimizer


def train_and_score(setting: Setting, variant: str, seed: int, architectures: list[str]) -> list[dict]:
    """The lines of `supernets.train_and_score`, with this optimizer; trainings lie in another folder."""
    folder = Setting(setting.images, setting.scale_name, setting.folder / "used_slices")
    folder.write_images()
    with patch.object(train, "_optimizer", optimizer):
        lines = supernets.train_and_score(folder, variant, seed, architectures, adapt=False)
    return [line | {"variant": f"{variant}, {WORD}"} for line in lines]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=[supernets.DEFAULT], metavar="TEXT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    table = list(dict.fromkeys(line["architecture"] for line in setting.journal("table").lines))
    journal = setting.journal("supernets")
    known = {(line["variant"], line["seed"]) for line in journal.lines}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            if (f"{variant}, {WORD}", seed) not in known:
                journal.append(*train_and_score(setting, variant, seed, table))
                print(f"{variant}, {WORD}, seed {seed}: scored", flush=True)


if __name__ == "__main__":
    main()

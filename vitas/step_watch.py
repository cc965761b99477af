"""Steps that must not count: those whose gradients are not finite.

One NaN in a gradient makes every weight NaN, and the checkpoints that follow
push the good ones out. So the optimizer leaves such a step out, on the device
and without waiting for it; a loop looks at the flags only when it reports or
saves. Many such steps in a row mean that the weights or the images are the
cause: then the training goes back to its newest checkpoint and on with other
random draws, a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitas.checkpoint import tensors_in
from vitas.config import Training
from vitas.distributed import World, sum_
from vitas.report import Report, shown_path


class Diverged(Exception):  # noqa: N818 (it is not an error: the loop answers it)
    """The training cannot go on from here, and should go back; the message says why."""


class StepWatch:
    """Has the optimizer leave out steps whose gradients are not finite, counts them and writes them down.

    optimizer: a fused one, which does that for a `found_inf` on its device.
    settings: `clip_grad`, `log_steps` and `not_finite`.
    describe: (step) -> what the step trained, in words, for `report.bad_steps`, which gets a line for each bad step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        settings: Training,
        describe: Callable[[int], str],
        report: Report,
        world: World,
    ) -> None:
        self._optimizer, self._settings, self._describe = optimizer, settings, describe
        self._path, self._report, self._world = report.bad_steps, report, world
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # One flag for each step since the last review, which is at most `log_steps` ago.
        self._flags = torch.zeros(settings.log_steps, device=world.device)
        self._reviewed = 0
        # All ranks have the same.
        self._in_a_row = self._total = 0

    @property
    def last_was_bad(self) -> bool:
        """Whether the last step of the last review was left out."""
        return self._in_a_row > 0

    def begin(self, step: int) -> None:
        """Start to watch at a step."""
        self._reviewed = step
        self._flags.zero_()

    def clip(self, step: int) -> Tensor:
        """Clip the gradients of a step as `clip_grad` says; 1 on the device if they are not finite, else 0.

        To call after the gradients are averaged over the ranks, so that all ranks find the same.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._settings.clip_grad:
            nn.utils.clip_grads_with_norm_(self._parameters, self._settings.clip_grad, norm)
        bad = torch.isfinite(norm).logical_not().float()
        self._flags[step % len(self._flags)] = bad
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]  # torch looks for it, and declares it nowhere
        return bad

    def review(self, done: int) -> None:
        """Count and write down the bad ones of the steps since the last review. Every rank must call it.

        Raises `Diverged` if the last `not_finite.in_a_row` steps were bad.
        """
        steps = range(self._reviewed, done)
        flags = self._flags.tolist()
        self._reviewed = done
        bad = [step for step in steps if flags[step % len(flags)]]
        for step in steps:
            self._in_a_row = self._in_a_row + 1 if flags[step % len(flags)] else 0
        self._flags.zero_()
        if not bad:
            return
        self._total += len(bad)
        self._write_down(bad)
        self._report.line(
            f"leaves out {len(bad)} of the last {len(steps)} steps, whose gradients are not finite "
            f"({self._total} in all; {shown_path(self._path)})"
        )
        if self._in_a_row >= self._settings.not_finite.in_a_row:
            raise Diverged(f"the gradients of the {self._in_a_row} steps before step {done:,} are not finite")

    def require_finite(self, state: object, done: int) -> None:
        """Raise `Diverged`, on every rank, if a tensor in a checkpoint's state is not finite on any."""
        wrong = torch.zeros((), device=self._world.device)
        for tensor in tensors_in(state):
            if tensor.is_floating_point():
                wrong += torch.isfinite(tensor).all().logical_not().to(wrong)
        if sum_(wrong, self._world).item():
            raise Diverged(f"after step {done:,} not all weights are finite")

    def _write_down(self, steps: list[int]) -> None:
        if not self._world.is_main:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known = set(self._path.read_text().splitlines()) if self._path.exists() else set()
        lines = [f"step {step}: {self._describe(step)}".rstrip(": ") for step in steps]
        # A resumed run sees some again.
        new = "".join(f"{line}\n" for line in lines if line not in known)
        with open(self._path, "a") as file:
            file.write(new)

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self._in_a_row, "total": self._total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._in_a_row, self._total = state["in_a_row"], state["total"]

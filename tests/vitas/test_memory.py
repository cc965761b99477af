"""A GPU without memory for a batch: one message, with how many images fit, and which keys help."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref

import pytest
import torch

from tests.processes import ENVIRONMENT, REPOSITORY
from vitas import VisionTransformer
from vitas.errors import UserError
from vitas.memory import measuring_what_fits
from vitas.models import SuperNet

CPU = torch.device("cpu")
VIT = "retrain.architecture=p8-e32-token-h2q96m64x2"


@pytest.fixture
def holds(monkeypatch):
    """(class of networks, images, in training) -> its passes of more images are out of memory."""

    def limit(of: type, images: int, training: bool) -> None:
        real = of.forward

        def forward(self, batch, *arguments, **options):
            if torch.is_grad_enabled() == training and len(batch) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, batch, *arguments, **options)

        monkeypatch.setattr(of, "forward", forward)

    return limit


@pytest.mark.parametrize(("room", "fit"), [(9, 8), (8, 8), (7, 4), (1, 1), (0, 0)])
def test_what_fits_is_measured_by_halving(room, fit) -> None:
    def attempt(count: int) -> None:
        if count > room:
            raise torch.OutOfMemoryError

    with pytest.raises(UserError, match=rf"^{fit} in the memory of cpu$"):  # noqa: SIM117
        with measuring_what_fits(16, attempt, CPU, lambda found, memory: f"{found} in {memory}"):
            attempt(16)


def test_what_filled_the_memory_is_freed_before_it_is_measured() -> None:
    held = []

    def step() -> None:
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    def attempt(count: int) -> None:
        assert all(each() is None for each in held)
        if count > 20:
            step()

    with pytest.raises(UserError, match="12"):  # noqa: SIM117
        with measuring_what_fits(100, attempt, CPU, lambda found, _: str(found)):
            step()
    assert len(held) == 3


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: SIM117
        with measuring_what_fits(100, lambda count: None, CPU, lambda found, _: ""):
            raise ZeroDivisionError


def test_a_step_that_does_not_fit_ends_with_what_does_and_the_way_on(trainings, vitas, holds) -> None:
    holds(VisionTransformer, 6, training=True)
    code, _, errors = vitas("retrain", trainings, VIT)
    assert code == 2
    assert errors.splitlines()[-1] == (
        "error: retrain.batch_size: found 20, of which a process passes 20; they do not fit in the memory of cpu, and "
        "as measured now 5 do. Set retrain.accumulate=4, which changes the result by rounding alone; or "
        "retrain.activation_checkpointing=true, which takes time and changes nothing; or a smaller "
        "retrain.batch_size, which is another recipe"
    )
    code, _, errors = vitas("retrain", trainings, VIT, "retrain.accumulate=4")
    assert (code, errors) == (0, "")


def test_a_step_of_the_supernet_that_does_not_fit_even_in_parts(trainings, vitas, holds) -> None:
    holds(SuperNet, 2, training=True)
    code, _, errors = vitas("search", trainings, "search.accumulate=2", "search.activation_checkpointing=true")
    assert code == 2
    assert "passes 20 in 2 parts; they do not fit in the memory of cpu, and as measured now 2 do" in errors
    assert "Set search.accumulate=20, which" in errors
    assert "activation_checkpointing" not in errors
    holds(SuperNet, 0, training=True)
    assert "not even one does. Set search.activation_checkpointing=true" in vitas("search", trainings)[2]


def test_images_to_score_that_do_not_fit_end_with_how_many_do(trainings, vitas, holds) -> None:
    assert vitas("search", trainings, "search.epochs=1", "search.warmup_epochs=0")[0] == 0
    holds(SuperNet, 10, training=False)
    code, _, errors = vitas("sample", trainings, "sample.batch_size=64")
    assert code == 2
    assert errors.splitlines()[-1] == (
        "error: batch_size: 64 images at once, to score them, do not fit in the memory of cpu; as measured now, 8 do. "
        "Take a smaller sample.batch_size or test.batch_size, or on val images of a training retrain.batch_size"
    )


# One rank of two has less memory than its passes need. Such a pass waits for no other rank, which waits for this one.
SCRIPT = """
import os, sys
from vitas.program import quick_imports, run_stages
with quick_imports():
    import torch
    from vitas.models import SuperNet, VisionTransformer
for of in (SuperNet, VisionTransformer):
    def forward(self, batch, *arguments, real=of.forward, **options):
        # The network passes two images before the first step.
        if torch.is_grad_enabled() and os.environ["RANK"] == "1" and len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, *arguments, **options)
    of.forward = forward
run_stages(sys.argv[1], "", arguments=sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_rank_alone_measures_what_fits(trainings, tmp_path, stage) -> None:
    script = tmp_path / "short.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    flags = [f"{name}.flag={str(name == stage).lower()}" for name in ("search", "sample", "retrain", "test")]
    done = subprocess.run(
        [*words, stage, str(trainings), VIT, *flags],
        env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(rf"error: {stage}.batch_size: found 20, of which a process passes 10; .* 2 do\.", done.stderr)

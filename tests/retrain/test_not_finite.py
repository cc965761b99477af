"""Steps whose gradients are not finite: they are left out, and many in a row lead back to a checkpoint."""

import math

import pytest
import torch

from retrain.retrain import retrain
from search.search import search
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder, read
from vitas.distributed import World
from vitas.errors import UserError
from vitas.train import Criterion

TEXT = "p8-e32-token-h2q96m64x2"
# 8 steps an epoch.
OVERRIDES = ("retrain.epochs=4", "retrain.warmup_epochs=1", f"retrain.architecture={TEXT}", "retrain.keep=0")


@pytest.fixture
def poison(monkeypatch):
    """(condition) -> from now on, the losses of the calls of `Criterion` whose number it holds for are NaN."""
    calls = 0
    healthy = Criterion.__call__

    def start(condition) -> None:
        def poisoned(self, *arguments):
            nonlocal calls
            calls += 1
            loss = healthy(self, *arguments)
            return loss * math.nan if condition(calls) else loss

        monkeypatch.setattr(Criterion, "__call__", poisoned)

    return start


def configure(path, *overrides: str):
    return configuration.load(path, [*OVERRIDES, *overrides])


def log_of(config, stage: str = "retrain") -> str:
    return config.folder.log(stage, None).read_text()


def states(config) -> dict[int, dict]:
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    return {epoch: read(folder.epoch_path(epoch)) for epoch in folder.epochs()}


def is_finite(state: dict) -> bool:
    return all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_bad_step_is_left_out_counted_and_written_down(path, poison) -> None:
    poison(lambda call: call in (12, 14))
    config = configure(path)
    retrain(config, World())
    found = states(config)
    assert list(found) == [1, 2, 3, 4]
    assert all(map(is_finite, found.values()))
    # The optimizer has made two steps less.
    assert {int(part["step"]) for part in found[4]["optimizer"]["state"].values()} == {30}
    assert (config.folder.root / "retrain" / "bad_steps.txt").read_text() == "step 11\nstep 13\n"
    assert "leaves out 2 of the last" in log_of(config)
    assert "loss nan" not in log_of(config)


def test_the_weights_do_not_move_in_a_bad_step(path, poison) -> None:
    poison(lambda call: call > 8)
    config = configure(path, "retrain.not_finite.in_a_row=1000", "retrain.checkpoint_steps=1", "retrain.log_steps=1")
    with pytest.raises(UserError, match="not finite"):
        retrain(config, World())
    # The last state that was worth keeping is that of step 8.
    assert list(states(config)) == [1]
    assert not (config.folder.checkpoints("retrain") / "recent_ckpt.pth.tar").exists()


def test_many_in_a_row_lead_back_to_the_newest_checkpoint_and_on_with_other_draws(path, poison) -> None:
    poison(lambda call: 20 <= call < 25)
    config = configure(path, "retrain.not_finite.in_a_row=4", "retrain.log_steps=4")
    retrain(config, World())
    found = states(config)
    assert list(found) == [1, 2, 3, 4]
    assert all(map(is_finite, found.values()))
    assert (found[2]["returns"], found[3]["returns"]) == (0, 1)
    assert "goes back to step 16 (epoch_2_ckpt.pth.tar)" in log_of(config)
    # The steps that were left out do not count twice.
    assert {int(part["step"]) for part in found[4]["optimizer"]["state"].values()} == {32}


def test_a_run_that_returned_resumes_bit_for_bit(path, make_config, poison, tmp_path) -> None:
    poison(lambda call: 20 <= call < 25)
    config = configure(path, "retrain.not_finite.in_a_row=4", "retrain.log_steps=4")
    retrain(config, World())
    whole = states(config)
    CheckpointFolder(config.folder.checkpoints("retrain")).epoch_path(4).unlink()
    poison(lambda call: False)
    retrain(config, World())
    again = states(config)[4]
    assert all(torch.equal(whole[4]["model"][name], again["model"][name]) for name in again["model"])


def test_the_returns_are_bounded_and_the_good_checkpoint_stays(path, poison) -> None:
    poison(lambda call: call >= 12)
    config = configure(path, "retrain.not_finite={in_a_row: 3, returns: 2}", "retrain.log_steps=3")
    with pytest.raises(UserError, match=r"also after 2 returns.*epoch_1_ckpt.*allow_changes=\[lr, clip_grad\]"):
        retrain(config, World())
    assert list(states(config)) == [1]
    assert log_of(config).count("goes back to step 8") == 2


def test_the_way_on_after_divergence_is_the_one_that_the_message_names(path, poison) -> None:
    poison(lambda call: call >= 12)
    config = configure(path, "retrain.not_finite={in_a_row: 3, returns: 0}", "retrain.log_steps=3")
    with pytest.raises(UserError, match="also after 0 returns"):
        retrain(config, World())
    poison(lambda call: False)
    with pytest.raises(UserError, match=r"trained with lr .*allow_changes=\[lr\]"):
        retrain(configure(path, "retrain.lr=1e-4"), World())
    changed = configure(path, "retrain.lr=1e-4", "retrain.weight_decay=0.2", "retrain.allow_changes=[lr, weight_decay]")
    retrain(changed, World())
    last = states(config)[4]
    assert [(change["step"], change["key"]) for change in last["changes"]] == [(8, "lr"), (8, "weight_decay")]
    assert "goes on from step 8 with lr 0.0001" in log_of(config)
    # Not only said: the optimizer has the new one.
    assert {group["weight_decay"] for group in last["optimizer"]["param_groups"]} == {0.2, 0.0}
    # From here on it is the recipe.
    retrain(configure(path, "retrain.lr=1e-4", "retrain.weight_decay=0.2"), World())


def test_weights_that_are_not_finite_are_never_saved(path, monkeypatch) -> None:
    """As a fault of the hardware would make them: no gradient says so."""
    step = torch.optim.AdamW.step
    calls = 0

    def faulty(self, *arguments):
        nonlocal calls
        calls += 1
        step(self, *arguments)
        if calls == 16:
            self.param_groups[0]["params"][0].data.view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", faulty)
    config = configure(path)
    retrain(config, World())
    found = states(config)
    assert list(found) == [1, 2, 3, 4]
    assert all(map(is_finite, found.values()))
    assert "not all weights are finite; goes back to step 8" in log_of(config)


def test_a_bad_step_of_the_supernet_is_written_down_with_its_subnet(path, poison) -> None:
    poison(lambda call: call == 5)
    config = configuration.load(path, ["search.epochs=2", "search.warmup_epochs=1"])
    search(config, World())
    (line,) = (config.folder.root / "search" / "bad_steps.txt").read_text().splitlines()
    number, _, subnet = line.partition(": ")
    assert number == "step 4"
    assert config.space.encode(config.architecture(subnet)) is not None
    state = read(CheckpointFolder(config.folder.checkpoints("search")).resolve())
    assert is_finite(state)
    assert all(torch.isfinite(value).all() for value in state["choice_losses"].values())

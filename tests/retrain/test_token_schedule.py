"""Progressive tokens through `retrain`: which steps see which, going on after a stop, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.test import test as measure
from retrain.retrain import retrain
from retrain.token_schedule import TokenSchedule
from tests.test_resume import assert_equal
from vitas import VisionTransformer
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder, read
from vitas.config import TokenPhase
from vitas.distributed import World
from vitas.errors import UserError

VIT = "p4-e16-token-h2q48m16"
STAGED = "4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|8,8"
# Of 24 steps, 4 see 2 x 2 tokens and 8 see 4 x 4: both switches lie within an epoch.
TOKENS = "retrain.tokens=[{until: 0.17, reduce: 4}, {until: 0.5, reduce: 2}]"
SMALL = ["retrain.epochs=3", "retrain.batch_size=20", "retrain.keep=0", "retrain.ema_decay=0.5", "retrain.log_steps=4"]


def phases(*pairs: tuple[float, int]) -> list[TokenPhase]:
    return [TokenPhase(until=until, reduce=reduce) for until, reduce in pairs]


def train(path, *overrides: str):
    config = configuration.load(path, [*SMALL, *overrides], ["retrain"])
    retrain(config, World())
    return config


def newest(config) -> dict:
    return read(CheckpointFolder(config.folder.checkpoints("retrain")).resolve())


def log_of(config) -> str:
    return (config.folder.root / "retrain" / "log" / "retrain.log").read_text()


# The schedule


def test_each_phase_ends_at_its_fraction_of_the_steps():
    schedule = TokenSchedule.from_phases(phases((0.15, 4), (0.25, 2)), 100)
    assert [schedule.reduction(step) for step in (0, 14, 15, 24, 25, 99)] == [4, 4, 2, 2, 1, 1]
    assert {TokenSchedule.from_phases([], 100).reduction(step) for step in range(100)} == {1}


@given(st.lists(st.floats(0.001, 0.999), unique=True, max_size=4), st.integers(1, 1000))
def test_every_step_has_a_reduction_and_the_last_has_full_tokens(untils, total):
    schedule = TokenSchedule.from_phases(phases(*((until, 2 + i) for i, until in enumerate(sorted(untils)))), total)
    reductions = [schedule.reduction(step) for step in range(total)]
    assert reductions[-1] == 1
    # The phases come in their order, and each ends at its fraction.
    for i, until in enumerate(sorted(untils)):
        coarse = [reduce in range(2, 3 + i) for reduce in reductions]
        assert coarse == sorted(coarse, reverse=True)
        assert abs(sum(coarse) - min(until * total, total - 1)) <= 0.5
    macs = {1: 1000, 2: 300, 3: 90, 4: 20, 5: 1}
    assert schedule.training_macs(macs, 7) == 7 * sum(macs[reduce] for reduce in reductions)


# Training


@pytest.fixture
def seen(monkeypatch):
    """The number of tokens in each forward pass of a `VisionTransformer`."""
    counts = []
    original = VisionTransformer.forward_features

    def forward_features(self, images, queries=None):
        tokens = original(self, images)
        counts.append(tokens.shape[1])
        return tokens

    monkeypatch.setattr(VisionTransformer, "forward_features", forward_features)
    return counts


def test_steps_see_the_tokens_of_the_schedule_and_the_test_sees_all(path, seen):
    config = train(path, f"retrain.architecture={VIT}", TOKENS)
    assert seen == [1 + 2 * 2] * 4 + [1 + 4 * 4] * 8 + [1 + 8 * 8] * 12
    seen.clear()
    measure(config, World())
    assert set(seen) == {1 + 8 * 8}


def test_the_log_says_what_is_saved_and_when_tokens_change(path):
    config = train(path, f"retrain.architecture={VIT}", TOKENS)
    macs = {r: config.architecture(VIT).macs(32, 10, reduce=r) for r in (1, 2, 4)}
    ours, full = 20 * (4 * macs[4] + 8 * macs[2] + 12 * macs[1]), 20 * 24 * macs[1]
    log = log_of(config)
    assert f"forward passes take {ours:,} MACs over the training, {1 - ours / full:.1%} less than the {full:,}" in log
    for step, side, reduce in ((0, 2, 4), (4, 4, 2), (12, 8, 1)):
        assert f"from step {step} on {side} x {side} tokens: {macs[reduce]:,} MACs an image" in log
    assert log.count("tokens: ") == 3


def test_without_phases_nothing_is_said_of_tokens(path):
    assert "tokens" not in log_of(train(path, f"retrain.architecture={VIT.replace('token', 'mean')}"))


@pytest.mark.parametrize("architecture", [VIT, STAGED])
def test_a_run_stopped_before_between_and_after_the_switches_goes_on_as_undisturbed(
    path, monkeypatch, tmp_path, architecture
):
    arguments = [f"retrain.architecture={architecture}", TOKENS, "retrain.drop_path_rate=0.2"]
    taken = {}
    original = CheckpointFolder.save_recent
    monkeypatch.setattr(
        CheckpointFolder,
        "save_recent",
        lambda self, state: (
            original(self, state),
            taken.update({state["step"]: (self.folder / "recent_ckpt.pth.tar").read_bytes()}),
        ),
    )
    undisturbed = newest(train(path, *arguments, "retrain.checkpoint_steps=1"))
    for step in (2, 4, 13):
        folder = tmp_path / f"stopped_{step}"
        checkpoint = folder / "retrain" / "checkpoint" / "recent_ckpt.pth.tar"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(taken[step])
        config = train(path, *arguments, f"save_path={folder}")
        assert f"resumes at step {step} of 24" in log_of(config)
        assert_equal(undisturbed, newest(config))


def test_other_phases_are_another_recipe(path):
    given = f"retrain.architecture={VIT}"
    train(path, given)
    with pytest.raises(UserError, match=r"trained with tokens \[\], and now it is .*0.17"):
        train(path, given, TOKENS)
    other = f"save_path={path.parent / 'other'}"
    train(path, given, TOKENS, other)
    with pytest.raises(UserError, match=r"trained with tokens .*0.17.* now it is .*0.2"):
        train(path, given, TOKENS.replace("0.17", "0.2"), other)
    with pytest.raises(UserError, match=r"trained with tokens .*0.17.* now it is \[\]"):
        train(path, given, other)


# Mistakes


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("[{until: 0, reduce: 2}]", "retrain.tokens.0.until: found 0; it must be greater than 0"),
        ("[{until: 1.0, reduce: 2}]", "retrain.tokens.0.until: found 1.0; it must be less than 1"),
        (
            "[{until: 0.3, reduce: 4}, {until: 0.3, reduce: 2}]",
            "retrain.tokens.1.until: found 0.3; it must be more than the one before, 0.3",
        ),
        ("[{until: 0.3, reduce: 1}]", "retrain.tokens.0.reduce: found 1; it must be greater than or equal to 2"),
        ("[{until: 0.3, reduce: 2.0}]", "retrain.tokens.0.reduce: found 2.0; it must be an integer"),
        ("[{until: 0.3}]", "retrain.tokens.0.reduce: is missing"),
        ("[{until: 0.3, reduced: 2}]", "retrain.tokens.0.reduced: unknown key"),
        ("{until: 0.3, reduce: 2}", "retrain.tokens: found .* it must be a list"),
        (
            "[{until: 0.1, reduce: 16}, {until: 0.2, reduce: 9}]",
            r"retrain.tokens.0.reduce: found 16; an image gives 8 x 8 tokens, it must be an integer from 2 to 8"
            r"\n.*retrain.tokens.1.reduce: found 9",
        ),
    ],
)
@pytest.mark.parametrize("architecture", [VIT, STAGED])
def test_phases_that_cannot_be_are_refused_with_their_key(path, tokens, message, architecture):
    with pytest.raises(UserError, match=message):
        train(path, f"retrain.architecture={architecture}", f"retrain.tokens={tokens}")


def test_the_stage_refuses_what_could_not_be_looked_up_before(path):
    """`sample` may have to find the architecture first; here no stage was asked for, so nothing was looked up."""
    config = configuration.load(path, [f"retrain.architecture={VIT}", "retrain.tokens=[{until: 0.1, reduce: 9}]"])
    with pytest.raises(UserError, match=r"retrain.tokens.0.reduce: found 9; an image gives 8 x 8 tokens"):
        retrain(config, World())

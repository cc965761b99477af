"""Which subnets a step of the supernet's training trains, what they learn from, and that a run goes on bit by bit."""

import numpy as np
import pytest
import torch
import yaml

from search.sample import sample
from search.search import budget_model, build_supernet, search
from search.seen import describe_seen, seen_by
from search.subnets import TOGETHER, NearBudget, Published, TrainingPlan, training_plan
from tests.conftest import largest
from tests.search.test_operators import PER_BLOCK, SHARED
from tests.test_resume import assert_equal
from vitas import config as configuration
from vitas import train
from vitas.budget import MacsModel
from vitas.catalog import read_found
from vitas.checkpoint import CheckpointFolder, read
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report
from vitas.sharing import SCHEMES
from vitas.slurm.signals import Interrupted


def plan_of(config, world: World = World()) -> TrainingPlan:
    return training_plan(config, budget_model(config, Report("search", config.folder, world), world))[0]


def draw_of(config):
    return training_plan(config, budget_model(config, Report("search", config.folder, World()), World()))[1]


def plan_over(space, together="one", randoms=2, parts=1, draw=None) -> TrainingPlan:
    return TrainingPlan(space, draw or Published(space, 0.4), 0, TOGETHER[together], randoms, parts)


# Rules


@pytest.mark.parametrize("draw", ["published", "uniform", "in_budget"])
@pytest.mark.parametrize("together", ["one", "complementary", "sandwich"])
def test_every_rank_trains_the_same_subnets_and_every_seed_others(make_config, draw, together) -> None:
    """Without a word between the ranks: there is no process group here."""
    rule = [f"search.subnets.draw={draw}", f"search.subnets.together={together}"]
    config = configuration.load(make_config(), rule)
    first, second = (plan_of(config, World(rank, 2)) for rank in range(2))
    # Also where a restart begins, in any order, over several chunks of draws.
    steps = [0, 1, 2, 700, 701, 1500]
    assert [first.at(step) for step in steps] == [second.at(step) for step in reversed(steps)][::-1]
    other = plan_of(configuration.load(make_config(), [*rule, "seed=1"]))
    assert [first.at(step) for step in steps] != [other.at(step) for step in steps]


def test_the_subnets_of_different_steps_differ(vitas_spaces) -> None:
    plan = plan_over(vitas_spaces["vitas_a"])
    assert len({plan.at(step) for step in range(600)}) == 600


def test_the_published_identity_probability_is_the_yamls_or_that_of_the_budget(make_config) -> None:
    path = make_config({"search.subnets.draw": "published"})
    assert draw_of(configuration.load(path, ["search.identity_probability=0.3"])).identity_probability == 0.3
    config = configuration.load(path)
    probability = draw_of(config).identity_probability
    genomes = config.space.sample_genomes(np.random.default_rng(5), 4000, probability)
    assert config.macs_model.predict(genomes).mean() == pytest.approx(config.sample.budget.middle, rel=0.05)
    # The steps draw at that probability.
    plan = plan_of(config)
    blocks = [plan.at(step)[0][0].depth for step in range(600)]
    assert np.mean(blocks) / config.space.depth == pytest.approx(1 - probability, abs=0.05)


def test_without_a_budget_or_with_uniform_an_identity_is_as_likely_as_a_head_count(make_config) -> None:
    alone = configuration.load(make_config({"sample": None}), ["search.subnets.draw=published"])
    assert draw_of(alone).identity_probability is None
    uniform = configuration.load(make_config(), ["search.subnets.draw=uniform"])
    assert draw_of(uniform).identity_probability is None


@pytest.mark.parametrize("draw", ["uniform", "in_budget"])
def test_an_identity_probability_that_nothing_would_read_is_refused(make_config, draw) -> None:
    with pytest.raises(UserError, match=rf"search\.identity_probability: found 0\.9; .*'{draw}'.*'published'"):
        configuration.load(make_config(), [f"search.subnets.draw={draw}", "search.identity_probability=0.9"])


def test_in_budget_draws_inside_the_widened_budget(make_config) -> None:
    config = configuration.load(make_config(), ["search.subnets={draw: in_budget, widen: 0.1, together: one}"])
    plan, model, budget = plan_of(config), config.macs_model, config.sample.budget
    costs = model.predict(np.concatenate([plan.genomes(step)[0] for step in range(300)]))
    assert (budget.widened(0.1).distance(costs) == 0).all()
    assert not (budget.distance(costs) == 0).all()
    assert isinstance(draw_of(config), NearBudget)


def test_in_budget_without_a_budget_is_refused(make_config) -> None:
    with pytest.raises(
        UserError, match=r"search\.subnets\.draw: found 'in_budget'.*sample\.budget.*published or uniform"
    ):
        configuration.load(make_config({"sample": None}))


# Steps


@pytest.mark.parametrize("space", [PER_BLOCK, SHARED], ids=["per block", "shared"])
def test_every_second_step_trains_the_complementary_widths(space) -> None:
    plan = plan_over(space, "complementary")
    for step in range(0, 40, 2):
        ((first,),), ((second,),) = plan.genomes(step), plan.genomes(step + 1)
        assert np.array_equal(space.complementary(first), second)
        assert np.array_equal(space.complementary(second), first)
        (a,), (b,) = plan.at(step)[0], plan.at(step + 1)[0]
        assert (a.patch_size, a.depth, [k.heads for k in a.blocks]) == (
            b.patch_size,
            b.depth,
            [k.heads for k in b.blocks],
        )
        widths = len(space.widths)
        ratios = (space.embed_dims.index(a.embed_dim), space.embed_dims.index(b.embed_dim))
        assert sum(ratios) == widths - 1


def test_over_complementary_steps_ordinal_sharing_updates_channels_more_evenly() -> None:
    space = PER_BLOCK
    model = MacsModel(space, 32, 10)
    seen = {
        together: describe_seen(plan_over(space, together), SCHEMES["ordinal"], model, None, 1000)["updated"]
        for together in ("one", "complementary")
    }
    # The first channels are in every width, the last in the widest only: one in four draws, also with complements.
    for updated in seen.values():
        assert updated["embed"][0] == 1
        assert updated["embed"][-1] == pytest.approx(0.25, abs=0.05)
    plan = plan_over(space, "complementary")
    widths = [space.embed_dims[plan.genomes(s)[0][0][1 + space.depth]] for s in range(1000)]
    assert np.mean(np.reshape(widths, (-1, 2)).sum(1)) == space.embed_dims[0] + space.embed_dims[-1]


@pytest.mark.parametrize("space", [PER_BLOCK, SHARED], ids=["per block", "shared"])
def test_a_sandwich_is_the_largest_random_ones_and_the_smallest_of_one_patch_size(space) -> None:
    plan = plan_over(space, "sandwich", randoms=3)
    for step in range(20):
        ((first, *randoms, last),) = plan.at(step)
        assert len(randoms) == 3
        widest = largest(space)
        assert first.patch_size == last.patch_size == randoms[0].patch_size
        assert (first.embed_dim, first.depth) == (widest.embed_dim, widest.depth)
        assert {(b.qkv_dim, b.mlp_dim) for b in first.blocks} == {(space.qkv_dims[-1], space.mlp_dims[-1])}
        assert (last.embed_dim, last.depth) == (space.embed_dims[0], 1)
        assert {(b.qkv_dim, b.mlp_dim) for b in last.active_blocks} == {(space.qkv_dims[0], space.mlp_dims[0])}
    sizes = {plan.at(step)[0][0].patch_size for step in range(20)}
    assert sizes == set(space.patch_sizes)


def test_the_smallest_network_of_a_space_without_identities_has_full_depth(tiny_spaces) -> None:
    space = tiny_spaces["no identity"]
    genome = space.sample_genomes(np.random.default_rng(0), 1)[0]
    assert space.decode(space.extreme(genome, widest=False)).depth == space.depth


def test_parts_of_a_batch_have_subnets_of_their_own() -> None:
    plan = plan_over(PER_BLOCK, parts=3)
    groups = [plan.at(step) for step in range(100)]
    assert all(len(parts) == 3 and all(len(part) == 1 for part in parts) for parts in groups)
    # The same draws as one by one, in order.
    one_by_one = plan_over(PER_BLOCK)
    assert [part[0] for parts in groups for part in parts] == [one_by_one.at(step)[0][0] for step in range(300)]


def test_a_batch_that_the_parts_do_not_divide_is_refused(make_config) -> None:
    with pytest.raises(UserError, match=r"search\.subnets\.parts: found 3.*divide.*search\.batch_size, 64"):
        configuration.load(make_config(), ["search.subnets.parts=3"])


# What training saw


def test_what_training_saw_counts_every_update() -> None:
    space, model = PER_BLOCK, MacsModel(PER_BLOCK, 32, 10)
    plan = plan_over(space)
    steps = 1500
    genomes = np.concatenate([plan.genomes(step)[0] for step in range(steps)])
    seen = describe_seen(plan, SCHEMES["bilateral"], model, None, steps)
    depths = space.columns(genomes).active.sum(1)
    assert seen["depths"] == {str(d): pytest.approx(np.mean(depths == d), abs=1e-4) for d in np.unique(depths)}
    assert seen["updated"]["blocks"] == pytest.approx([np.mean(depths > i) for i in range(space.depth)], abs=1e-4)
    assert sum(seen["costs"]["share"]) == pytest.approx(1, abs=1e-3)
    # Both sides together: the channels at the ends are in every width, those of the middle in half the width and more.
    dims = np.array(space.mlp_dims)[space.columns(genomes).mlp[space.columns(genomes).active]]
    assert seen["updated"]["mlp"][0] == seen["updated"]["mlp"][-1] == 1
    middle = space.mlp_dims[-1] // 2
    assert seen["updated"]["mlp"][middle] == pytest.approx(np.mean(dims >= middle), abs=1e-4)
    assert seen_by(genomes, model, None)["mean_cost"] == pytest.approx(model.predict(genomes).mean())


def test_a_training_says_what_it_saw(evolved) -> None:
    seen = yaml.safe_load(evolved.folder.seen.read_text())
    assert seen["steps"] == 16
    assert len(seen["updated"]["blocks"]) == evolved.space.depth
    assert 0 < seen["in_budget"] < 1


# Training


def trained_weights(config) -> dict:
    return read(CheckpointFolder(config.folder.checkpoints("search")).resolve())["model"]


OPTIONS = {
    "cyclic": ["model.sharing=cyclic"],
    "complementary": ["search.subnets.together=complementary", "search.subnets.draw=in_budget"],
    "sandwich": [
        "search.subnets.together=sandwich",
        "search.distillation={teacher: largest, weight: 1.0}",
        "search.ema_decay=0.9",
        "sample.weights=ema",
    ],
    "parts": ["search.subnets.parts=2", "search.panel={size: 3, epochs: 1}", "model.sharing=ordinal"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_trained_and_sampled_and_goes_on_bit_by_bit(path, monkeypatch, tmp_path, options) -> None:
    arguments = ["search.epochs=2", "search.warmup_epochs=0", *options]
    whole, stopped = (
        configuration.load(path, [*arguments, f"save_path={tmp_path / name}"]) for name in ("whole", "stopped")
    )
    search(whole, World())
    asked = iter([None] * 4 + ["SIGTERM"])
    with monkeypatch.context() as patched:
        patched.setattr(train, "stop_requested", lambda world: next(asked))
        with pytest.raises(Interrupted):
            search(stopped, World())
    search(stopped, World())
    assert "resumes at step 5 of" in (stopped.folder.log("search", None)).read_text()
    name = "epoch_2_ckpt.pth.tar"
    assert_equal(*(torch.load(c.folder.checkpoints("search") / name, weights_only=True) for c in (whole, stopped)))
    for config in (whole, stopped):
        sample(config, World())
    for name in ("population", "seen", "panel"):
        files = [getattr(config.folder, name) for config in (whole, stopped)]
        assert files[0].exists() == (name != "panel" or "parts=2" in options[0])
        if files[0].exists():
            assert files[0].read_bytes() == files[1].read_bytes()
    assert len(read_found(whole.folder.architectures)) == whole.sample.sample_num


@pytest.mark.parametrize("draw", ["published", "in_budget"])
def test_a_training_does_not_go_on_with_subnets_of_another_budget(path, draw) -> None:
    given = ["search.epochs=1", "search.warmup_epochs=0", f"search.subnets.draw={draw}"]
    search(configuration.load(path, given), World())
    other = configuration.load(path, [*given, "sample.budget.maximum=1_000_000"])
    with pytest.raises(UserError, match=r"was trained with (identity_probability|budget_of_training)"):
        search(other, World())
    # The panel only looks on.
    search(configuration.load(path, [*given, "search.panel={size: 3, epochs: 1}"]), World())


def test_parts_train_each_subnet_on_its_images_alone(path) -> None:
    """The gradient of a step is the mean of those of its parts, each with its own subnet."""
    config = configuration.load(path, ["search.subnets.parts=2", "model.sharing=ordinal"])
    supernet, plan = build_supernet(config, World()), plan_of(config)
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    step = next(s for s in range(50) if len({part[0].patch_size for part in plan.at(s)}) == 2)
    for part, (subnet,) in zip((slice(10), slice(10, 20)), plan.at(step), strict=True):
        loss = torch.nn.functional.cross_entropy(supernet(images[part], subnet), labels[part], label_smoothing=0.1)
        (loss / 2).backward()
    by_hand = {name: p.grad for name, p in supernet.named_parameters() if p.grad is not None}
    recorded = {}

    def record(task, *_):
        task.model.zero_grad()
        for loss in task.losses(images, labels, step):
            loss.backward()
        recorded.update({name: p.grad for name, p in task.model.named_parameters() if p.grad is not None})
        return 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("search.search.train", record)
        patched.setattr(CheckpointFolder, "newest", lambda self: config.folder.root)
        search(config, World())
    assert recorded.keys() == by_hand.keys()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(recorded[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_others_of_a_sandwich_learn_from_the_largest(path) -> None:
    """With a weight of 1 their targets are its probabilities, whatever the labels say."""
    plain = ["search.subnets.together=sandwich", "search.label_smoothing=0"]
    config = configuration.load(path, [*plain, "search.distillation={teacher: largest, weight: 1.0}"])
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []

    def record(task, *_):
        for labels in (torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)):
            found.append([loss.item() for loss in task.losses(images, labels, 0)])
        return 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("search.search.train", record)
        patched.setattr(CheckpointFolder, "newest", lambda self: config.folder.root)
        search(config, World())
    assert found[0][0] != found[1][0]
    assert found[0][1:] == found[1][1:]


def test_the_largest_as_a_teacher_needs_a_sandwich(path) -> None:
    with pytest.raises(UserError, match=r"search\.distillation\.teacher: found 'largest'.*sandwich"):
        configuration.load(path, ["search.distillation={teacher: largest}"])
    with pytest.raises(UserError, match=r"retrain\.distillation\.teacher: found 'largest'"):
        configuration.load(path, ["retrain.distillation={teacher: largest}"])


# The panel


def test_the_panel_is_scored_every_so_many_epochs_and_ends_a_training_that_has_settled(path, monkeypatch) -> None:
    config = configuration.load(
        path, ["search.epochs=9", "search.panel={size: 4, epochs: 2, stop_at: 0.5}", "search.warmup_epochs=0"]
    )
    # A ranking that never changes from the second score on.
    monkeypatch.setattr("scipy.stats.kendalltau", lambda a, b: type("Result", (), {"statistic": 0.6}))
    search(config, World())
    log = config.folder.log("search", None).read_text()
    assert "ends after epoch 6 of 9: the panel's ranking has settled: tau 0.60 and 0.60, stop_at is 0.5" in log
    assert CheckpointFolder(config.folder.checkpoints("search")).epochs()[-1] == 6
    lines = [yaml.safe_load(line) for line in config.folder.panel.read_text().splitlines()]
    assert [line["epoch"] for line in lines[1:]] == [2] * 4 + [4] * 4 + [6] * 4
    assert yaml.safe_load(config.folder.seen.read_text())["steps"] == 6 * 8
    # A stage that has ended does not go on.
    search(config, World())
    assert "6 of 9 epochs are done" in config.folder.log("search", None).read_text()
    assert CheckpointFolder(config.folder.checkpoints("search")).epochs()[-1] == 6


def test_a_panel_without_a_budget_is_refused(make_config) -> None:
    with pytest.raises(UserError, match=r"search\.panel: .*sample"):
        configuration.load(make_config({"sample": None}), ["search.panel={}"])

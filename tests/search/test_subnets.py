"""Which subnets a step of the supernet's training trains, and how they share weights."""

import numpy as np
import pytest
import torch

from search.sample import sample
from search.search import search
from search.subnets import RandomSubnets, subnets_to_train
from tests.test_resume import assert_equal
from vitas import config as configuration
from vitas import train
from vitas.catalog import read_found
from vitas.distributed import World
from vitas.report import Report
from vitas.slurm.signals import Interrupted


def rule_of(config, world: World = World()):
    return subnets_to_train(config, Report("search", config.folder, world), world)


def test_every_rank_trains_the_same_subnet_and_every_step_another(make_config) -> None:
    """Without a word between the ranks: there is no process group here."""
    config = configuration.load(make_config())
    first, second = (rule_of(config, World(rank, 2)) for rank in range(2))
    # Also where a restart begins, in any order.
    assert [first.at(step) for step in range(50)] == [second.at(step) for step in reversed(range(50))][::-1]
    other = rule_of(configuration.load(make_config(), ["seed=1"]))
    assert [first.at(step) for step in range(50)] != [other.at(step) for step in range(50)]


def test_the_subnets_of_different_steps_differ(vitas_spaces) -> None:
    rule = RandomSubnets(vitas_spaces["vitas_a"], 0.3, seed=0)
    assert len({rule.at(step) for step in range(50)}) == 50


def test_identity_probability_is_the_yamls_or_that_of_the_budget(make_config) -> None:
    path = make_config()
    given = configuration.load(path, ["search.identity_probability=0.3"])
    assert rule_of(given).identity_probability == 0.3
    config = configuration.load(path)
    rule = rule_of(config)
    genomes = config.space.sample_genomes(np.random.default_rng(5), 4000, rule.identity_probability)
    assert config.macs_model.predict(genomes).mean() == pytest.approx(config.sample.budget.middle, rel=0.05)
    # The steps draw at that probability.
    blocks = [rule.at(step).depth for step in range(300)]
    assert np.mean(blocks) / config.space.depth == pytest.approx(1 - rule.identity_probability, abs=0.05)


def test_without_a_budget_an_identity_is_as_likely_as_a_head_count(make_config) -> None:
    config = configuration.load(make_config({"sample": None}))
    assert rule_of(config).identity_probability is None


def test_cyclic_sharing_is_trained_and_sampled_and_goes_on_bit_by_bit(path, monkeypatch, tmp_path) -> None:
    arguments = ["model.sharing=cyclic", "search.epochs=1", "search.warmup_epochs=0"]
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
    name = "epoch_1_ckpt.pth.tar"
    assert_equal(*(torch.load(c.folder.checkpoints("search") / name, weights_only=True) for c in (whole, stopped)))
    for config in (whole, stopped):
        sample(config, World())
    assert whole.folder.population.read_bytes() == stopped.folder.population.read_bytes()
    assert len(read_found(whole.folder.architectures)) == whole.sample.sample_num

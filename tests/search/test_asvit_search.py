"""As-ViT's search: what REINFORCE rewards, how networks grow, and that a killed search goes on."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from inference.test import test as measure
from retrain.retrain import retrain
from search.asvit import scoring, topology
from search.asvit.search import larger, search
from search.asvit.topology import Policy, best_of_ranks, reward
from vitas import config as configuration
from vitas.asvit.genotype import Genotype, GenotypeSpace
from vitas.asvit.scores import Scores
from vitas.catalog import read_found
from vitas.distributed import World
from vitas.errors import UserError
from vitas.journal import Journal
from vitas.report import Report
from vitas.slurm import signals
from vitas.slurm.signals import Interrupted

TOPOLOGY = "8,2,3|4,1,2|4,1,4|4,1,6|32"


def small_asvit(digits: Path) -> dict:
    """The section `search` of a small As-ViT search."""
    return {
        "flag": True,
        "method": "asvit",
        "data": {"data_dir": str(digits / "train"), "workers": 0, "crop_fraction": 1.0},
        "steps": 6,
        "repeat": 2,
        "batch_size": 4,
        "points": 3,
        "growth": {"parameters": 300_000, "hidden_dim": 8, "score_width": 1.0},
    }


@pytest.fixture
def asvit(make_config, digits):
    """(overrides of its keys) -> the YAML of a small As-ViT search with retrain and test after it."""

    def make(**overrides):
        section = small_asvit(digits)
        growth = section["growth"] | overrides.pop("growth", {})
        return make_config({"search": section | overrides | {"growth": growth}, "sample": None, "model.space": None})

    return make


@pytest.fixture
def formula(monkeypatch):
    """Scores from a formula in place of networks: wide kernels and small expansions are good. Counts what is asked."""
    asked = []

    def score_once(genotype, image_size, seed, index, *_):
        asked.append((genotype, index))
        kernels = sum(stage.kernel for stage in genotype.stages)
        expansions = sum(stage.expansion for stage in genotype.stages)
        return Scores(kernels + 0.01 * index, 10.0 * expansions - 0.01 * index + 100 / genotype.hidden_dim)

    monkeypatch.setattr(scoring, "score_once", score_once)
    return asked


def found(config):
    return read_found(config.folder.architectures)


# Rewards and ranks


def test_a_reward_is_the_change_of_both_scores_over_their_ranges():
    history = [Scores(1.0, 100.0), Scores(3.0, 300.0), Scores(2.0, 250.0)]
    assert reward(history[:1]) == 0
    assert reward(history[:2]) == pytest.approx(1 - 1)
    assert reward(history) == pytest.approx(-1 / 2 + 50 / 200)
    assert reward([Scores(1.0, 5.0)] * 2) == 0


def test_a_range_is_that_of_the_last_steps_alone():
    history = [Scores(1000.0, 1.0)] + [Scores(float(i % 2), 1.0) for i in range(topology.WINDOW)]
    assert reward(history) == pytest.approx(1.0)


def test_a_condition_number_that_is_not_finite_counts_as_a_whole_range():
    assert reward([Scores(1.0, 5.0), Scores(1.0, math.inf)]) == -1
    assert reward([Scores(1.0, math.inf), Scores(1.0, 5.0)]) == 1
    assert reward([Scores(1.0, math.inf), Scores(1.0, math.inf)]) == 0


def test_the_least_sum_of_ranks_wins_and_ties_go_by_the_score_that_tells_more():
    assert best_of_ranks([Scores(1.0, 9.0), Scores(3.0, 5.0), Scores(2.0, 7.0)]) == 1
    # Both have ranks 0 and 1. Of the first pair condition numbers differ more, of the second distortions.
    assert best_of_ranks([Scores(1.1, 90.0), Scores(1.0, 10.0)]) == 1
    assert best_of_ranks([Scores(9.0, 11.0), Scores(1.0, 10.0)]) == 0
    assert best_of_ranks([Scores(1.0, math.inf), Scores(0.9, 4.0)]) == 0


def test_a_policy_learns_what_is_rewarded():
    policy, rng = Policy([3, 1, 4], lr=0.1), np.random.default_rng(0)
    assert policy.entropy == pytest.approx(math.log(3) + math.log(4), rel=1e-6)
    for _ in range(300):
        genome = policy.sample(rng)
        policy.update(genome, float(genome[0] == 2) + float(genome[2] == 1) - 0.5)
    assert policy.likeliest.tolist() == [2, 0, 1]
    assert policy.entropy < 1.0


def test_a_reward_is_compared_with_the_mean_of_those_so_far(asvit, formula, monkeypatch):
    """Weighted towards the last ones; of the first steps too, though the average starts at 0."""
    told, learnt = [], []
    monkeypatch.setattr(Report, "scalars", lambda self, step, values: told.append(values))
    update = Policy.update
    monkeypatch.setattr(
        Policy, "update", lambda self, genome, advantage: (learnt.append(advantage), update(self, genome, advantage))
    )
    config = configuration.load(asvit(steps=8, repeat=1, baseline_decay=0.5))
    search(config, World())
    told = [{name.removeprefix("asvit/"): value for name, value in values.items()} for values in told[:8]]
    rewards = [values["reward"] for values in told]
    assert rewards[0] == 0
    assert len({round(reward, 6) for reward in rewards}) > 3
    # By hand: the last reward has weight 1, the one before 1/2, then 1/4.
    assert told[1]["baseline"] == pytest.approx(rewards[1] / 1.5)
    assert told[2]["baseline"] == pytest.approx((rewards[2] + rewards[1] / 2) / 1.75)
    for step, values in enumerate(told):
        weights = [0.5 ** (step - i) for i in range(step + 1)]
        assert values["baseline"] == pytest.approx(np.average(rewards[: step + 1], weights=weights), abs=1e-12)
        assert learnt[step] == pytest.approx(rewards[step] - values["baseline"], abs=1e-12)


@pytest.mark.parametrize("algorithm", ["reinforce", "nsga2"])
def test_both_algorithms_find_what_the_scores_call_good(asvit, formula, algorithm):
    """Beside as many random topologies, by the scores' own standard."""
    config = configuration.load(asvit(steps=300, repeat=1, algorithm=algorithm))
    search(config, World())
    best = found(config)["grown_0"]
    rng = np.random.default_rng(1)

    def quality(genotype):
        return sum(stage.kernel - stage.expansion for stage in genotype.stages)

    space = GenotypeSpace()
    drawn = [quality(space.sample(rng)) for _ in range(300)]
    assert quality(best) >= np.quantile(drawn, 0.98)


# Growth


def test_a_step_tries_one_more_block_in_each_stage_with_each_width():
    genotype = replace(Genotype.parse(TOPOLOGY), hidden_dim=100)
    choices = larger(genotype, [0.05, 0.1, 0.15, 0.2])
    assert len(choices) == 16
    assert {choice.hidden_dim for choice in choices} == {105, 110, 115, 120}
    layers = {tuple(stage.layers for stage in choice.stages) for choice in choices}
    assert layers == {(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)}
    assert all(choice.topology == genotype.topology for choice in choices)
    assert {choice.hidden_dim for choice in larger(replace(genotype, hidden_dim=8), [0.05, 0.2])} == {9, 10}


def test_the_series_grows_to_the_budget_and_any_of_it_can_be_named(asvit, formula):
    config = configuration.load(asvit(topology=TOPOLOGY, growth={"parameters": 600_000, "macs": 3_000_000}))
    search(config, World())
    series = found(config)
    names = list(series)
    assert names == [f"grown_{i}" for i in reversed(range(len(names)))]
    assert len(names) > 3
    assert config.architecture("best") == series[names[0]]
    costs = [(g.parameters(32, 10), g.macs(32, 10)) for g in reversed(series.values())]
    assert costs == sorted(costs)
    assert costs[-1][0] <= 600_000
    assert costs[-1][1] <= 3_000_000
    last = series[names[0]]
    bigger = larger(last, config.search.growth.widen)
    assert all(g.parameters(32, 10) > 600_000 or g.macs(32, 10) > 3_000_000 for g in bigger)
    entries = yaml.safe_load(config.folder.architectures.read_text())["architectures"]
    assert {"length_distortion", "ntk_condition", "macs", "parameters"} <= set(entries[0])


def test_networks_grow_and_are_scored_at_a_part_of_the_width(asvit, formula):
    """So that what a step chooses among are as many networks as are scored: at a quarter, 40 and 42 would be one."""
    growth = {"hidden_dim": 32, "score_width": 0.25, "parameters": 8_000_000}
    config = configuration.load(asvit(topology=TOPOLOGY, growth=growth))
    search(config, World())
    series = list(reversed(found(config).values()))
    assert len(series) > 3
    assert series[0].hidden_dim == 32
    wanted = {at_a_quarter(series[0])}
    for before, after in zip(series, [*series[1:], None], strict=True):
        choices = larger(at_a_quarter(before), config.search.growth.widen)
        assert len(set(choices)) == len(choices)
        affordable = {c for c in choices if replace(c, hidden_dim=4 * c.hidden_dim).parameters(32, 10) <= 8_000_000}
        assert after is None or at_a_quarter(after) in affordable
        wanted |= affordable
    assert {genotype for genotype, _ in formula} == wanted


def at_a_quarter(genotype: Genotype) -> Genotype:
    assert genotype.hidden_dim % 4 == 0
    return replace(genotype, hidden_dim=genotype.hidden_dim // 4)


# Going on


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(asvit, formula, monkeypatch, tmp_path):
    path = asvit()
    whole = configuration.load(path, [f"save_path={tmp_path / 'whole'}"])
    search(whole, World())
    count = len(formula)
    stopped = configuration.load(path, [f"save_path={tmp_path / 'stopped'}"])
    with monkeypatch.context() as patched:
        for scored in (5, 14):
            asked = count + scored
            patched.setattr(signals, "stop_code", lambda asked=asked: signal.SIGTERM * (len(formula) >= asked))
            with pytest.raises(Interrupted):
                search(stopped, World())
    search(stopped, World())
    assert len(formula) == 2 * count
    for name in ("topologies", "growth", "architectures"):
        assert getattr(stopped.folder, name).read_bytes() == getattr(whole.folder, name).read_bytes()


def test_scores_of_other_images_are_refused(asvit, formula, digits):
    path = asvit()
    search(configuration.load(path), World())
    other = configuration.load(path, [f"search.data.data_dir={digits / 'val'}"])
    with pytest.raises(UserError, match=r"topologies\.jsonl holds scored initialisations made with another images"):
        search(other, World())
    with pytest.raises(UserError, match="made with another points"):
        search(configuration.load(path, ["search.points=5"]), World())


def test_a_record_says_what_was_scored_and_how(asvit, formula):
    config = configuration.load(asvit())
    search(config, World())
    record = Journal(config.folder.topologies).lines[1]
    assert set(record) == {"architecture", "initialisation", "length_distortion", "ntk_condition"}


def test_what_was_grown_is_retrained_and_measured_by_name(asvit):
    config = configuration.load(
        asvit(topology=TOPOLOGY, repeat=1),
        ["retrain.architecture=grown_0", "retrain.epochs=1", "retrain.warmup_epochs=0"],
    )
    search(config, World())
    retrain(config, World())
    measure(config, World())
    results = json.loads(config.folder.results.read_text())
    assert results["architecture"] == str(found(config)["grown_0"])
    assert results["macs_released"] is None
    assert results["parameters"] == found(config)["grown_0"].parameters(32, 10)


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.method=evolve", "search.method: found 'evolve'; it must be supernet or asvit"),
        ("search.step=3", "search.step: unknown key; did you mean steps?"),
        ("search.epochs=3", "search.epochs: unknown key"),
        ("search.growth.macs_=3", "search.growth.macs_: unknown key; did you mean macs?"),
        ("search.growth.parameters=null", "search.growth: found neither parameters nor macs"),
        ("search.growth.parameters=1000", "search.growth.parameters: found 1,000; the smallest network"),
        ("search.growth.hidden_dim=4", "search.growth.hidden_dim: found 4; scored at 1.0 of it"),
        ("search.growth={parameters: 300_000, hidden_dim: 42}", "search.growth.hidden_dim: found 42"),
        ("search.topology=8,2,3|4,1,2|4,1,4|4,1|32", "search.topology: genotype '8,2,3|4,1,2|4,1,4|4,1|32': stage 4"),
        ("search.topology=8,2,3|4,1,2|4,1,4|4,1,6|33", "heads are 33; they halve from the last stage"),
        ("model.image_size=48", "model.image_size: image size 48 does not fit this space"),
        ("search.batch_size=1", "search.batch_size: found 1"),
        (
            "sample={flag: true, data: {data_dir: x}, budget: {minimum: 1, maximum: 2}}",
            "sample.flag: found true; with search.method asvit there is no supernet",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_scored(asvit, override, message):
    with pytest.raises(UserError) as error:
        configuration.load(asvit(), [override])
    assert message in str(error.value)


def test_a_budget_below_the_topology_that_was_found_is_told(asvit, formula, monkeypatch):
    monkeypatch.setitem(topology.ALGORITHMS, "reinforce", lambda *_: Genotype.parse("8,2,6|4,1,6|4,1,6|4,1,6|64"))
    config = configuration.load(asvit(growth={"parameters": 100_000}))
    with pytest.raises(UserError, match=r"search\.growth: 8,2,6,1\|.* more than the budget"):
        search(config, World())

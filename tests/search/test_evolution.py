import json

import numpy as np
import pytest
import yaml

from search.sample import sample
from search.search import search
from search.subnets import subnets_to_train
from tests.processes import run
from vitas import config as configuration
from vitas.architecture import Architecture
from vitas.budget import Budget, MacsModel, draw_in_budget
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report


@pytest.fixture
def evolved(make_config):
    """A configuration, after `search` and `sample`."""
    config = configuration.load(make_config())
    search(config, World())
    sample(config, World())
    return config


def journal(config) -> list[dict]:
    return [json.loads(line) for line in config.folder.population.read_text().splitlines()][1:]


def test_the_best_is_at_least_the_initial_populations_and_all_lie_in_the_budget(evolved) -> None:
    records = journal(evolved)
    found = yaml.safe_load(evolved.folder.architectures.read_text())["architectures"]
    assert len(found) == evolved.sample.sample_num
    assert [entry["top1"] for entry in found] == sorted((entry["top1"] for entry in found), reverse=True)
    assert found[0]["top1"] == max(record["top1"] for record in records)
    assert found[0]["top1"] >= max(record["top1"] for record in records if record["generation"] == 0)
    budget = evolved.sample.budget.build()
    size = (evolved.model.image_size, evolved.model.num_classes, budget.convention)
    for text in [record["architecture"] for record in records] + [entry["text"] for entry in found]:
        assert Architecture.parse(text).macs(*size) in budget


def test_no_architecture_is_scored_twice(evolved) -> None:
    networks = [Architecture.parse(record["architecture"]).shifted() for record in journal(evolved)]
    assert len(networks) == len(set(networks))
    before = evolved.folder.population.read_bytes()
    sample(evolved, World())
    assert evolved.folder.population.read_bytes() == before


def test_scores_of_another_supernet_are_refused(evolved) -> None:
    lines = evolved.folder.population.read_text().splitlines()
    origin = json.loads(lines[0]) | {"supernet": "another"}
    evolved.folder.population.write_text("\n".join([json.dumps(origin), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="another supernet"):
        sample(evolved, World())


def test_each_entry_names_its_network_in_every_form(evolved) -> None:
    for entry in yaml.safe_load(evolved.folder.architectures.read_text())["architectures"]:
        forms = [
            Architecture.parse(entry["text"]),
            Architecture.from_dict(entry["architecture"]),
            evolved.space.from_net_id(entry["net_id"]),
            evolved.architecture(entry["name"]),
        ]
        assert len(set(forms)) == 1


def test_two_objectives_evolve_too(make_config) -> None:
    config = configuration.load(
        make_config(), ["sample.objectives=[error, macs]", "search.epochs=1", "search.warmup_epochs=0"]
    )
    search(config, World())
    sample(config, World())
    assert config.folder.architectures.exists()


def test_a_space_of_one_shared_block_is_searched(make_config) -> None:
    config = configuration.load(
        make_config(), ["model.space.shared_blocks=true", "search.epochs=1", "search.warmup_epochs=0"]
    )
    search(config, World())
    sample(config, World())
    for entry in yaml.safe_load(config.folder.architectures.read_text())["architectures"]:
        assert len(set(Architecture.parse(entry["text"]).active_blocks)) == 1


def test_a_space_with_few_members_in_the_budget_is_exhausted(make_config) -> None:
    config = configuration.load(make_config(), ["search.epochs=1", "search.warmup_epochs=0"])
    smallest = config.space.decode(config.space.encode(config.space.largest) * 0)
    macs = smallest.macs(config.model.image_size, config.model.num_classes, "released")
    narrow = {"minimum": int(macs * 0.95), "maximum": int(macs * 1.05), "convention": "released"}
    config = configuration.load(
        make_config(), ["search.epochs=1", "search.warmup_epochs=0", f"sample.budget={json.dumps(narrow)}"]
    )
    search(config, World())
    sample(config, World())
    assert len(journal(config)) >= 1
    assert len(yaml.safe_load(config.folder.architectures.read_text())["architectures"]) >= 1


def test_initial_population_is_distinct_and_inside(small_space) -> None:
    costs = MacsModel(small_space, 32, 10)
    all_macs = costs.macs(small_space.sample_genomes(np.random.default_rng(1), 500))
    budget = Budget(int(np.quantile(all_macs, 0.5)), int(np.quantile(all_macs, 0.55)))
    genomes = draw_in_budget(costs, budget, 20, np.random.default_rng(0))
    assert len(np.unique(genomes, axis=0)) == len(genomes) == 20
    assert all(macs in budget for macs in costs.macs(genomes))


def test_identity_probability_is_the_yamls_or_that_of_the_budget(make_config) -> None:
    path = make_config()
    given = configuration.load(path, ["search.identity_probability=0.3"])
    assert subnets_to_train(given, Report("search", given.folder, World()), World()) == 0.3
    config = configuration.load(path)
    probability = subnets_to_train(config, Report("search", config.folder, World()), World())
    genomes = config.space.sample_genomes(np.random.default_rng(5), 4000, probability)
    budget = config.sample.budget
    assert config.costs.macs(genomes).mean() == pytest.approx((budget.minimum + budget.maximum) / 2, rel=0.05)


@pytest.mark.slow
def test_a_trained_supernet_ranks_a_wide_subnet_above_a_random_weight_one(make_config) -> None:
    from search.scoring import SupernetScorer
    from search.search import build_supernet
    from vitas import checkpoint
    from vitas.checkpoint import CheckpointFolder
    from vitas.data.evaluation import EvaluationSet

    config = configuration.load(make_config(), ["search.epochs=12", "search.lr=3e-3", "search.warmup_epochs=1"])
    search(config, World())
    model = config.model
    images = EvaluationSet.load(config.sample.data, model.image_size, model.mean, model.std, World(), True)
    report = Report("sample", config.folder, World())
    wide = config.space.largest
    trained = build_supernet(config, World()).eval()
    checkpoint.load_weights(trained, CheckpointFolder(config.folder.checkpoints("search")).resolve())
    [score] = SupernetScorer(config, trained, images, report, World()).score([wide], 0)
    config.folder.population.unlink()
    random_weights = build_supernet(config, World()).eval()
    [random_score] = SupernetScorer(config, random_weights, images, report, World()).score([wide], 0)
    assert score > random_score + 10


def test_search_and_sample_run_as_a_program(make_config, tmp_path) -> None:
    output = run(
        "search", make_config(), f"save_path={tmp_path / 'program'}", "search.epochs=1", "search.warmup_epochs=0"
    )
    assert "best: p" in output
    assert list((tmp_path / "program" / "search" / "events").glob("events.*.search"))
    assert list((tmp_path / "program" / "search" / "events").glob("events.*.sample"))
    assert "loss" in (tmp_path / "program" / "search" / "log" / "search.log").read_text()

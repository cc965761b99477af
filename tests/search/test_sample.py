"""`sample`: what evolution with a supernet finds, what it writes down, and what it does not do twice."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from search.sample import sample
from search.scoring import SupernetScorer
from search.search import build_supernet, search
from tests.conftest import largest
from tests.processes import run_here
from vitas import config as configuration
from vitas import create_model, loading, zoo
from vitas.architecture import Architecture
from vitas.budget import Budget, MacsModel
from vitas.catalog import read_found
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import UserError
from vitas.in_budget import InBudget
from vitas.journal import Journal
from vitas.report import Report
from vitas.slurm import signals

# Networks of one or two blocks.
SHALLOW = "sample.budget={minimum: 100_000, maximum: 300_000}"


def journal(config) -> list[dict]:
    return Journal(config.folder.population).lines[1:]


def rewrite(path: Path, records: list[dict]) -> None:
    """A journal anew, of other records."""
    path.unlink()
    Journal(path).append(*records)


def found(config) -> list[dict]:
    return yaml.safe_load(config.folder.architectures.read_text())["architectures"]


def test_the_best_is_at_least_the_initial_populations_and_all_lie_in_the_budget(evolved) -> None:
    records, entries = journal(evolved), found(evolved)
    assert len(entries) == evolved.sample.sample_num
    assert [entry["top1"] for entry in entries] == sorted((entry["top1"] for entry in entries), reverse=True)
    assert entries[0]["top1"] == max(record["top1"] for record in records)
    assert entries[0]["top1"] >= max(record["top1"] for record in records if record["generation"] == 0)
    budget = evolved.sample.budget
    size = (evolved.model.image_size, evolved.model.num_classes, budget.convention)
    for text in [record["architecture"] for record in records] + [entry["text"] for entry in entries]:
        assert Architecture.parse(text).macs(*size) in budget


def test_no_architecture_is_scored_twice(evolved) -> None:
    networks = [Architecture.parse(record["architecture"]).shifted() for record in journal(evolved)]
    assert len(networks) == len(set(networks))
    before = evolved.folder.population.read_bytes()
    sample(evolved, World())
    assert evolved.folder.population.read_bytes() == before


def test_scores_hold_under_another_share_of_bad_images(evolved, path) -> None:
    before = evolved.folder.population.read_bytes()
    sample(configuration.load(path, ["sample.data.bad_images=0.5"]), World())
    assert evolved.folder.population.read_bytes() == before


def test_a_damaged_supernet_is_passed_over_for_the_one_before_and_named(path) -> None:
    config = configuration.load(path, ["search.epochs=2"])
    search(config, World())
    damaged = CheckpointFolder(config.folder.checkpoints("search")).epoch_path(2)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    sample(config, World())
    log = config.folder.log("sample", None).read_text()
    assert re.search(r"epoch_2_ckpt\.pth\.tar is damaged .*epoch_1_ckpt\.pth\.tar is taken instead", log)


def test_scores_of_another_supernet_are_refused(evolved) -> None:
    origin, *scores = Journal(evolved.folder.population).lines
    rewrite(evolved.folder.population, [origin | {"supernet": "another"}, *scores])
    with pytest.raises(UserError, match=r"population\.jsonl.*supernet"):
        sample(evolved, World())


def test_scores_on_other_images_are_refused_and_on_moved_ones_kept(evolved, path, tmp_path) -> None:
    moved = shutil.copytree(evolved.sample.data.data_dir, tmp_path / "moved")
    config = configuration.load(path, [f"sample.data.data_dir={moved}"])
    sample(config, World())
    image = next((moved / "3").iterdir())
    image.rename(image.with_name("other.png"))
    with pytest.raises(UserError, match="scores made with another set of images"):
        sample(config, World())


def test_a_journal_of_an_earlier_version_says_nothing_of_its_set_of_images(evolved) -> None:
    origin, *scores = Journal(evolved.folder.population).lines
    del origin["set of images"]
    rewrite(evolved.folder.population, [origin, *scores])
    before = evolved.folder.population.read_bytes()
    sample(evolved, World())
    assert evolved.folder.population.read_bytes() == before


def test_a_journal_of_an_earlier_version_goes_on_without_losses(evolved, path) -> None:
    lines = Journal(evolved.folder.population).lines
    for line in lines:
        line.pop("loss", None)
    rewrite(evolved.folder.population, lines)
    before = found(evolved)
    sample(evolved, World())
    assert found(evolved) == [{key: value for key, value in entry.items() if key != "loss"} for entry in before]
    minimising_loss = configuration.load(path, ["sample.objectives=[loss, macs]"])
    with pytest.raises(UserError, match=r"population\.jsonl.*loss"):
        sample(minimising_loss, World())


def test_each_entry_names_its_network_in_every_form(trained) -> None:
    config = trained(SHALLOW)
    sample(config, World())
    for entry in found(config):
        forms = [
            Architecture.parse(entry["text"]),
            Architecture.from_dict(entry["architecture"]),
            config.architecture(entry["name"]),
            # It has an integer for every position of the space.
            config.space.from_net_id(entry["net_id"]).compact(),
        ]
        assert len(set(forms)) == 1


def test_what_is_found_has_no_identities_and_its_last_block_the_full_stochastic_depth(trained) -> None:
    config = trained(SHALLOW, "sample.sample_num=20")
    sample(config, World())
    architectures = list(read_found(config.folder.architectures).values())
    assert any(architecture.depth < config.space.depth for architecture in architectures)
    for architecture in architectures:
        assert architecture.blocks == architecture.active_blocks
        rates = drop_path_rates(architecture, config.model.image_size)
        assert rates == pytest.approx(np.linspace(0, 0.3, architecture.depth) if architecture.depth > 1 else [0])
    # Scores keep the positions: a journal is of the space, and one of an earlier version goes on.
    recorded = [Architecture.parse(record["architecture"]) for record in journal(config)]
    assert all(len(architecture.blocks) == config.space.depth for architecture in recorded)


@pytest.mark.parametrize("name", ["vitas_a", "vitas_b"])
def test_a_published_networks_stochastic_depth_grows_over_its_positions(name) -> None:
    """Its identities are counted where they stand, as the released code counts them."""
    architecture = zoo()[name]
    positions = [i for i, block in enumerate(architecture.blocks) if not block.is_identity]
    assert len(positions) < len(architecture.blocks)
    assert drop_path_rates(architecture, 224) == pytest.approx([0.3 * i / 15 for i in positions])


def drop_path_rates(architecture: Architecture, image_size: int) -> list[float]:
    """Of each block of the network, at a rate of 0.3."""
    network = create_model(architecture, 10, image_size, drop_path_rate=0.3)
    return [block.drop_path.drop_prob for block in network.blocks]


def test_a_space_of_one_shared_block_is_searched(path) -> None:
    config = configuration.load(path, ["model.space.shared_blocks=true", "search.epochs=1", "search.warmup_epochs=0"])
    search(config, World())
    sample(config, World())
    for entry in found(config):
        assert len(set(Architecture.parse(entry["text"]).active_blocks)) == 1


def test_a_space_with_few_members_in_the_budget_is_exhausted(trained) -> None:
    config = trained()
    smallest = config.space.decode(config.space.gene_counts * 0)
    macs = smallest.macs(config.model.image_size, config.model.num_classes, "released")
    narrow = {"minimum": int(macs * 0.95), "maximum": int(macs * 1.05), "convention": "released"}
    config = trained(f"sample.budget={json.dumps(narrow)}")
    sample(config, World())
    assert len(journal(config)) >= 1
    assert len(found(config)) >= 1


def test_initial_population_is_distinct_and_inside(small_space) -> None:
    model = MacsModel(small_space, 32, 10)
    all_macs = model.predict(small_space.sample_genomes(np.random.default_rng(1), 500))
    budget = Budget(int(np.quantile(all_macs, 0.5)), int(np.quantile(all_macs, 0.55)))
    genomes = InBudget(model, budget).draw_different(np.random.default_rng(0), 20)
    assert len(np.unique(genomes, axis=0)) == len(genomes) == 20
    assert all(macs in budget for macs in model.predict(genomes))


def test_a_trained_supernet_ranks_a_wide_subnet_above_a_random_weight_one(make_config) -> None:
    # Few tokens and blocks: it learns within seconds.
    space = ["model.space.patch_sizes=[8]", "model.space.depth=2", "sample.budget.minimum=100_000"]
    recipe = ["search.epochs=9", "search.lr=5e-3", "search.batch_size=32"]
    subnets = ["search.subnets.draw=published", "search.identity_probability=0.0"]
    config = configuration.load(make_config(), [*space, *recipe, *subnets])
    search(config, World())
    model = config.model
    images = EvaluationSet.load(config.sample.data, model.image_size, model.mean, model.std, World(), True)
    report = Report("sample", config.folder, World())
    wide = largest(config.space)
    trained = build_supernet(config, World()).eval()
    loading.load_weights(trained, CheckpointFolder(config.folder.checkpoints("search")).resolve())
    [score] = SupernetScorer(config, trained, images, report, World()).score([wide], 0)
    config.folder.population.unlink()
    random_weights = build_supernet(config, World()).eval()
    [random_score] = SupernetScorer(config, random_weights, images, report, World()).score([wide], 0)
    assert score.top1 > random_score.top1 + 10
    assert score.loss < random_score.loss


def test_a_budget_of_shares_is_that_budget_in_numbers(trained) -> None:
    relative = trained("sample.budget={minimum: 20%, maximum: 40%}")
    low, high = relative.budget.low, relative.budget.high
    assert 2 * low == pytest.approx(high, abs=2)
    sample(relative, World())
    assert all(low <= record["macs_released"] <= high for record in journal(relative))
    ours = [(entry["text"], entry["top1"]) for entry in found(relative)]
    relative.folder.population.unlink()
    in_numbers = trained(f"sample.budget={{minimum: {low}, maximum: {high}}}")
    sample(in_numbers, World())
    assert [(entry["text"], entry["top1"]) for entry in found(in_numbers)] == ours


def test_search_and_sample_run_as_a_program(path, tmp_path, monkeypatch) -> None:
    output = run_here("search", path, f"save_path={tmp_path / 'program'}", "search.epochs=1", "search.warmup_epochs=0")
    assert "best: p" in output
    folder = tmp_path / "program" / "search"
    assert list((folder / "events").glob("events.*.search"))
    assert list((folder / "events").glob("events.*.sample"))
    assert "loss" in (folder / "log" / "search.log").read_text()
    assert not list(folder.glob("*.lock"))
    # Nor does the process take the lock again, which it looked after every few seconds.
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    signals.stop_code()
    assert not list(folder.glob("*.lock"))

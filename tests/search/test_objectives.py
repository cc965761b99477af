"""What a search may minimise: each objective by itself, and searches with several."""

import json

import numpy as np
import pytest
import yaml

from search.objectives import OBJECTIVES
from search.sample import sample
from vitas import config as configuration
from vitas.distributed import World
from vitas.errors import UserError

# Of two candidates, the second is better by every quantity.
QUANTITIES = {
    "top1": np.array([40.0, 75.0]),
    "loss": np.array([1.5, 0.7]),
    "macs": np.array([9_000, 4_000]),
    "parameters": np.array([800, 700]),
    "latency": np.array([0.3, 0.2]),
    "images_per_second": np.array([50.0, 90.0]),
}


@pytest.mark.parametrize(
    ("name", "minimised"),
    [
        ("error", [60, 25]),
        ("latency", [0.3, 0.2]),
        ("loss", [1.5, 0.7]),
        ("macs", [9_000, 4_000]),
        ("parameters", [800, 700]),
        ("images_per_second", [-50, -90]),
    ],
)
def test_an_objective_is_less_where_a_candidate_is_better(name, minimised):
    assert OBJECTIVES[name].minimised(QUANTITIES).tolist() == minimised


def test_every_objective_has_an_example_here_and_scores_are_told_from_costs():
    assert {objective.quantity for objective in OBJECTIVES.values()} == set(QUANTITIES)
    assert {name for name, objective in OBJECTIVES.items() if objective.is_score} == {"error", "loss"}


def journal(config) -> list[dict]:
    return [json.loads(line) for line in config.folder.population.read_text().splitlines()[1:]]


def found(config) -> list[dict]:
    return yaml.safe_load(config.folder.architectures.read_text())["architectures"]


def test_the_first_score_among_the_objectives_ranks_what_is_found(trained):
    config = trained("sample.objectives=[loss, parameters]")
    sample(config, World())
    records, entries = journal(config), found(config)
    losses = [entry["loss"] for entry in entries]
    assert losses == sorted(losses)
    assert losses[0] == min(record["loss"] for record in records)
    for entry in entries:
        assert entry["parameters"] == config.architecture(entry["name"]).parameters(32, 10)


@pytest.mark.parametrize("objectives", [["error", "macs"], ["loss", "parameters", "macs"]])
def test_of_several_objectives_the_front_is_found(trained, objectives):
    """What is not listed has a better one beside it, what is listed has none; `front.yaml` says by what."""
    config = trained(f"sample.objectives={objectives}", "sample.initial_population=40", "sample.population=8")
    sample(config, World())
    front = yaml.safe_load(config.folder.front.read_text())
    assert front["objectives"] == objectives
    assert [row["name"] for row in front["front"]] == [entry["name"] for entry in found(config)]
    keys = {"error": "top1", "macs": "macs_released"}

    def values(record: dict) -> np.ndarray:
        of = [record[keys.get(name, name)] for name in objectives]
        return np.array([-value if name == "error" else value for name, value in zip(objectives, of, strict=True)])

    listed = [values(row) for row in front["front"]]
    everything = [values(record) for record in journal(config)]

    def is_dominated(point: np.ndarray) -> bool:
        return any((other <= point).all() and (other < point).any() for other in everything)

    assert not any(map(is_dominated, listed))
    of_front = {tuple(point) for point in everything if not is_dominated(point)}
    assert of_front == set(map(tuple, listed))
    assert 1 < len(listed) < len(everything)


def test_another_objective_evolves_other_children(trained):
    """From the same first population, which no objective has a part in."""
    runs = {}
    for objectives in ("[error]", "[error, macs]", "[loss, parameters]"):
        config = trained(f"sample.objectives={objectives}")
        sample(config, World())
        runs[objectives] = journal(config)
        config.folder.population.unlink()
    first = {objectives: [r for r in records if r["generation"] == 0] for objectives, records in runs.items()}
    assert first["[error]"] == first["[error, macs]"] == first["[loss, parameters]"]
    assert len({json.dumps(records) for records in runs.values()}) == 3


@pytest.mark.parametrize("objectives", ["[macs]", "[parameters, images_per_second]", "[]", "[error, accuracy]"])
def test_objectives_without_a_score_and_unknown_ones_are_refused(make_config, objectives):
    with pytest.raises(UserError, match=r"sample\.objectives"):
        configuration.load(make_config(), [f"sample.objectives={objectives}"])

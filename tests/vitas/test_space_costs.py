"""`vitas space`: what a space holds, and what a search takes."""

import json
import re

import numpy as np
import pytest

from vitas import config
from vitas.budget import Budget, MacsModel
from vitas.run import MEASURE_COST, load
from vitas.space_costs import BINS, Histogram, costs_of_space, draw, parameters_of


def test_parameters_of_a_population_are_those_of_its_members(tiny_space, all_genomes):
    genomes = all_genomes(tiny_space)[:500]
    genomes = genomes[tiny_space.columns(genomes).active.any(axis=1)]
    found = parameters_of(MacsModel(tiny_space, 16, 10), genomes)
    assert found.tolist() == [tiny_space.decode(genome).parameters(16, 10) for genome in genomes]


def test_a_histogram_counts_every_architecture_once_and_what_is_in_the_budget():
    values = np.arange(100)
    found = Histogram.of("MACs", values, None, Budget(10, 29))
    assert sum(found.counts) == 100
    assert len(found.counts) == BINS == len(found.edges) - 1
    share, low, high = found.inside
    assert share == 0.2
    assert low < 0.2 < high


def test_all_equal_is_a_histogram_too():
    assert sum(Histogram.of("MACs", np.full(7, 5)).counts) == 7


def test_the_space_of_a_run_is_described_with_its_budget_as_shares(vitas, make_config):
    path = make_config()
    code, out, err = vitas("space", path, "sample.budget.maximum=50%", "--draws", 500, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    loaded = config.load(path, ["sample.budget.maximum=50%"])
    low, high = loaded.macs_model.reach()
    assert found["size"] == loaded.space.size
    macs, parameters = found["histograms"]
    assert (macs["low"], macs["high"]) == (low, high)
    assert macs["budget"] == [400_000, int(high / 2)]
    assert found["shares"] == pytest.approx([400_000 / high, 0.5], abs=1e-5)
    inside = loaded.budget.distance(loaded.macs_model.predict(draw(loaded, 500))) == 0
    assert macs["inside"][0] == inside.mean()
    assert sum(parameters["counts"]) == 500
    assert found["plan"] == {"epochs": 2, "steps": 2 * (1078 // 64), "scores": 6 + 2 * 4}


def test_as_text_the_bars_of_the_budget_are_marked(vitas, make_config):
    _, out, _ = vitas("space", make_config())
    assert re.search(r"^2,336 architectures at 32 px with 10 classes$", out, re.MULTILINE)
    bars = [line for line in out.splitlines() if " to " in line and "%" in line and line.startswith("  ")]
    assert any("◂ budget" in line for line in bars)
    assert not all("◂ budget" in line for line in bars)
    assert "in the budget: " in out
    assert "search: 2 epochs, 32 steps\n" in out


def test_topologies_of_asvit_are_described_too(vitas):
    code, out, _ = vitas("space", "AsViT", "--draws", 50, "--json")
    found = json.loads(out)
    assert (code, found["drawn"], found["plan"]) == (0, 50, {"initialisations": 2500})
    assert found["budget"].startswith("grows up to ")


def test_a_run_without_a_space_is_refused(vitas, make_config):
    code, _, err = vitas("space", make_config({"model.space": None, "search": None, "sample": None}))
    assert code == 2
    assert "model.space: is missing" in err


@pytest.fixture
def short_measurements(monkeypatch):
    """What is measured is looked at for a moment: how long a network takes is not the question here."""
    monkeypatch.setattr("search.cost.SECONDS", 0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("search.mixup=0.8", "model.sharing=ordinal", "sample.race={}"),
        ("sample.budget={minimum: 10, maximum: 1000000, convention: images_per_second, batch_size: 2}",),
    ],
)
def test_what_a_search_takes_is_measured_by_its_own_steps(make_config, tmp_path, overrides, short_measurements):
    loaded = config.load(make_config(), overrides)
    told = []
    found = load(MEASURE_COST)(loaded, 50, told.append)
    assert len(found["speeds"]) == 50
    assert (found["speeds"] > 0).all()
    steps = 2 * (1078 // 64)
    assert found["seconds_of_search"] == pytest.approx(found["seconds_per_step"] * steps)
    assert found["seconds_of_sample"] == pytest.approx(found["seconds_per_score"] * 14)
    assert len(told) == 3
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_all_that_a_search_does_is_in_its_time(make_config, short_measurements):
    """The panel in training; races, adaptation and finalists in sampling: each score is of parts of the val images."""
    overrides = [
        "search.panel={size: 40, epochs: 1}",
        "sample.race={images: 0.5, keep: 0.5}",
        "sample.adapt={steps: 20, keep: 0.5, batch_size: 16}",
        "sample.finalists={count: 10, images: 0.2}",
    ]
    found = load(MEASURE_COST)(config.load(make_config(), overrides), 50, lambda what: None)
    one, adapting = found["seconds_per_pass"], found["seconds_per_adaptation"]
    assert one > 0 < adapting
    # Two epochs, and 40 subnets in each.
    assert found["seconds_of_search"] == pytest.approx(found["seconds_per_step"] * 2 * (1078 // 64) + 80 * one)
    # On four fifths of the images: half of them in the race, which half win; a half of these are adapted.
    scored = 0.8 * one
    assert found["seconds_per_score"] == pytest.approx(0.5 * scored + 0.5 * scored + 0.25 * (adapting + scored))
    last = 10 * (adapting + 0.2 * one)
    assert found["seconds_of_sample"] == pytest.approx(14 * found["seconds_per_score"] + last)


def test_costs_do_not_depend_on_the_call(make_config):
    loaded = config.load(make_config())
    assert costs_of_space(loaded, 100) == costs_of_space(loaded, 100)

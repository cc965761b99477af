"""What `search` and `sample` report as numbers: by which names, and the same where a restart replays a search."""

from __future__ import annotations

import csv
import shutil
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from search.sample import _front_figure, sample
from search.search import search
from vitas import config as configuration
from vitas.config import RunConfig
from vitas.distributed import World


def rows(config: RunConfig, stage: str) -> list[dict[str, str]]:
    with open(config.folder.metrics(stage), newline="") as file:
        return list(csv.DictReader(file))


def test_training_and_evolution_have_names_that_are_alike_in_all_stages(evolved) -> None:
    assert {row["name"] for row in rows(evolved, "sample")} == {
        "evolution/best_top1", "evolution/mean_top1", "evolution/scored",
    }  # fmt: skip
    names = {row["name"] for row in rows(evolved, "search")}
    assert {"train/loss", "train/lr", "train/images_per_second"} <= names
    assert all(name.startswith(("train/", "train/subnets/")) for name in names)


def test_the_panel_is_reported_at_the_step_of_its_epoch(path) -> None:
    config = configuration.load(
        path, ["search.panel={size: 2, epochs: 1}", "search.epochs=2", "search.warmup_epochs=0"]
    )
    search(config, World())
    found = [row for row in rows(config, "search") if row["name"] == "panel/top1"]
    assert [(row["step"], float(row["epoch"])) for row in found] == [("8", 1.0), ("16", 2.0)]
    # A finished stage that is started again adds nothing.
    before = config.folder.metrics("search").read_bytes()
    search(config, World())
    assert config.folder.metrics("search").read_bytes() == before


@pytest.mark.parametrize("lines", [3, 8, 13])
def test_a_search_that_is_replayed_reports_what_it_did_then(evolved, lines) -> None:
    wanted = [{**row, "seconds": ""} for row in rows(evolved, "sample")]
    assert next(row["value"] for row in wanted if row["name"] == "evolution/scored") == "6.0"
    for kept in (evolved.folder.population, evolved.folder.metrics("sample")):
        content = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join(content[:lines]))
    times = [row["seconds"] for row in rows(evolved, "sample")]
    sample(evolved, World())
    now = rows(evolved, "sample")
    assert [{**row, "seconds": ""} for row in now] == wanted
    assert [row["seconds"] for row in now][: len(times)] == times


def test_another_search_over_known_scores_reports_its_own_course(evolved, path) -> None:
    sample(configuration.load(path, ["seed=5", "sample.generations=1"]), World())
    found = [row for row in rows(evolved, "sample") if row["name"] == "evolution/scored"]
    assert [row["step"] for row in found] == ["0", "1"]
    assert found[0]["value"] == "6.0"


def test_several_objectives_have_a_hypervolume_that_never_falls(trained) -> None:
    config = trained("sample.objectives=[loss, macs]", "sample.generations=3")
    sample(config, World())
    values = [float(row["value"]) for row in rows(config, "sample") if row["name"] == "evolution/hypervolume"]
    assert len(values) == 4
    assert values == sorted(values)
    assert 0 <= values[0] <= 1


def test_the_front_is_drawn_as_it_grows_and_of_a_replay_its_end(trained) -> None:
    pytest.importorskip("vl_convert")
    config = trained("sample.objectives=[loss, macs]", "sample.generations=2")
    sample(config, World())

    def drawn() -> list[int]:
        events = EventAccumulator(str(config.folder.events("sample")), size_guidance={"images": 0})
        events.Reload()
        return [event.step for event in events.Images("evolution/front")]

    assert drawn() == [0, 1, 2]
    time.sleep(1.1)
    sample(config, World())
    assert drawn() == [2]


def test_a_front_is_drawn_in_the_units_of_its_quantities() -> None:
    spec = _front_figure(np.array([[10.0, 300.0], [20.0, 100.0]]), ["error", "macs"])
    assert spec["data"]["values"] == [{"top1": 90.0, "macs": 300.0}, {"top1": 80.0, "macs": 100.0}]


def test_a_run_of_before_is_resumed_without_its_numbers(evolved) -> None:
    shutil.rmtree(evolved.folder.metrics("sample").parent)
    sample(evolved, World())
    assert len(rows(evolved, "sample")) == 9

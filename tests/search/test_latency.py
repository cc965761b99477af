"""Latency from a table: what is measured, how often, and how it adds up."""

import json

import numpy as np
import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search import latency
from search.latency import LatencyTable, parts_of
from search.sample import sample
from tests.conftest import largest
from vitas import Architecture
from vitas import config as configuration
from vitas.catalog import read_found
from vitas.distributed import World
from vitas.errors import UserError
from vitas.evaluate import seconds_per_pass
from vitas.models import VisionTransformer
from vitas.report import Report

TEXT = "p8-e32-token-h2q96m64-h4q48m32-h2q96m64-h4q48m32"


def table_of(config) -> LatencyTable:
    return LatencyTable(config, Report("sample", config.folder, World()), World())


@pytest.fixture
def clock(monkeypatch) -> list:
    """Measuring takes no time: a part takes as long as it has weights. Returns what was measured."""
    measured = []

    def seconds(module: torch.nn.Module, inputs: torch.Tensor, _: float) -> float:
        # The shapes must fit.
        with torch.inference_mode():
            module(inputs[:1])
        measured.append(module)
        return 1e-6 * len(inputs) * sum(p.numel() for p in module.parameters())

    monkeypatch.setattr(latency, "seconds_per_pass", seconds)
    monkeypatch.setattr(
        latency, "images_per_second", lambda network, *_: 1e6 / sum(p.numel() for p in network.parameters())
    )
    return measured


def test_the_parts_of_a_network_make_up_all_of_it(make_config, clock):
    """By weights, which the clock counts: the sum over the parts is the network's own number."""
    config = configuration.load(make_config())
    architectures = [Architecture.parse(TEXT), largest(config.space)]
    expected = [1e-3 * sum(p.numel() for p in VisionTransformer(a, 10, 32).parameters()) for a in architectures]
    assert table_of(config).predict(architectures) == pytest.approx(expected)


@pytest.mark.parametrize("classifier", ["token", "mean"])
def test_the_parts_compute_all_that_a_network_computes_and_no_more(make_config, monkeypatch, classifier):
    """By multiply-adds, which this clock counts."""

    def products(module: torch.nn.Module, inputs: torch.Tensor, _: float) -> float:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(inputs)
        return 1e-3 * counter.get_total_flops()

    monkeypatch.setattr(latency, "seconds_per_pass", products)
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    config = configuration.load(make_config(), [f"model.space.classifier={classifier}", "sample.budget.batch_size=1"])
    architectures = [Architecture.parse(TEXT.replace("token", classifier)), largest(config.space)]
    whole = [products(VisionTransformer(a, 10, 32), torch.zeros(1, 3, 32, 32), 0) for a in architectures]
    assert table_of(config).predict(architectures) == pytest.approx([1e3 * each for each in whole])


def test_every_kind_of_part_is_measured_once_also_over_restarts(make_config, clock):
    config = configuration.load(make_config())
    architecture = Architecture.parse(TEXT)
    assert len(parts_of(architecture, 32)) == 9
    first = table_of(config).predict([architecture])
    # The last block's are kinds of their own: there the class token alone is read.
    assert len(clock) == 7
    assert np.array_equal(table_of(config).predict([architecture]), first)
    assert len(clock) == 7
    lines = [json.loads(line) for line in config.folder.latency.read_text().splitlines()]
    assert lines[0]["device"] == "cpu"
    assert [line["part"] for line in lines[1:]].count(["attention", 17, 32, 2, 32]) == 1
    assert [line["part"] for line in lines[1:]].count(["class attention", 17, 32, 4, 16]) == 1


def test_the_table_is_checked_against_whole_networks_and_the_log_says_so(make_config, clock):
    config = configuration.load(make_config())
    table_of(config).predict([Architecture.parse(TEXT), largest(config.space)])
    assert "of 2 whole networks" in config.folder.log("sample", None).read_text()
    assert "off by +0%, and by 0% relative" in config.folder.log("sample", None).read_text()


def test_a_search_finds_the_front_of_loss_and_latency(trained, clock):
    config = trained("sample.objectives=[loss, latency]")
    sample(config, World())
    table = table_of(config)
    rows = [json.loads(line) for line in config.folder.population.read_text().splitlines()[1:]]
    best = next(iter(read_found(config.folder.architectures).values()))
    assert str(best) == min(rows, key=lambda r: r["loss"])["architecture"].split("-id")[0]
    front = yaml.safe_load(config.folder.front.read_text())["front"]
    latencies = [row["latency"] for row in front]
    assert latencies == sorted(latencies, reverse=True)
    assert latencies[0] == pytest.approx(table.predict([best])[0])


def test_with_the_real_clock_every_kind_gets_a_time_and_the_check_is_logged(make_config, monkeypatch):
    """How good the times are depends on what else this machine does; the log says it of every run."""
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    config = configuration.load(make_config(), ["sample.budget.batch_size=2"])
    predicted = table_of(config).predict([largest(config.space), Architecture.parse(TEXT)])
    kinds = [json.loads(line) for line in config.folder.latency.read_text().splitlines()[1:]]
    assert min(kind["milliseconds"] for kind in kinds) > 0
    assert np.all(predicted > min(kind["milliseconds"] for kind in kinds))
    assert "of 2 whole networks" in config.folder.log("sample", None).read_text()


def test_what_does_not_fit_in_memory_is_told(monkeypatch):
    class TooLarge(torch.nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"speed cannot be measured here: a batch of 3 .*sample\.budget\.batch_size"):
        seconds_per_pass(TooLarge(), torch.zeros(3, 2), 0.1)

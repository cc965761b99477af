"""Journals from strangers: every line is read or refused by its number, and nothing that is not finite is a score."""

from __future__ import annotations

import json
import math
from functools import partial
from unittest.mock import Mock

import pytest
from hypothesis import given

from search import latency, measured_speed, panel, scoring
from search.asvit import scoring as asvit_scoring
from search.asvit.scoring import Scores
from search.scoring import MeasurementJournal, SubnetScore
from tests.faults.fuzz import bounded, fuzzed, json_lines_like, read_or_refused
from vitas import Genotype, zoo
from vitas.distributed import World
from vitas.errors import UserError
from vitas.journal import MAX_LINE, Journal

ORIGIN = {"seed": 0, "images": 160}
NETWORK = str(zoo()["vitas_c"])
SCORE = {"architecture": NETWORK, "top1": 71.5, "loss": 1.25, "generation": 0, "net_id": None}
KINDS = {
    "scores": (partial(scoring.read_record, objectives=["error"]), SCORE, {**SCORE, "rung": "race"}),
    "scores by loss": (partial(scoring.read_record, objectives=["loss"]), SCORE, {**SCORE, "loss": None}),
    "panel": (panel.read_record, {"epoch": 10, "architecture": NETWORK, "top1": 71.5, "loss": 1.25}),
    "speeds": (measured_speed.read_record, {"architecture": NETWORK, "images_per_second": 812.5}),
    "latencies": (
        latency.read_record,
        {"part": ["attention", 197, 230, 3, 144], "milliseconds": 0.25},
        {"part": ["ends", 16, 230], "milliseconds": 0.5},
    ),
    "initialisations": (
        asvit_scoring.read_record,
        {
            "architecture": str(zoo()["asvit_small"]),
            "initialisation": 0,
            "length_distortion": 5.5,
            "ntk_condition": None,
        },
    ),
}


def read(path, kind: str) -> MeasurementJournal:
    return MeasurementJournal(path, ORIGIN, KINDS[kind][0], Mock(), kind, Mock(), World())


def numbers(value: object) -> list[float]:
    return [value] if isinstance(value, int | float) else [n for part in vars(value).values() for n in numbers(part)]


@pytest.mark.parametrize("kind", KINDS)
def test_any_journal_is_read_or_refused(tmp_path_factory, kind):
    path = tmp_path_factory.getbasetemp() / "journal.jsonl"

    @fuzzed(0.5)
    @given(content=json_lines_like(ORIGIN, *KINDS[kind][1:]))
    def check(content):
        path.write_bytes(content)
        journal = read_or_refused(lambda: read(path, kind))
        if journal is not None:
            with bounded():
                for candidate, value in journal.known.items():
                    assert hash(candidate) is not None
                    # Not finite is the worst there is, never the best.
                    assert all(math.isfinite(n) or math.isnan(n) or kind == "initialisations" for n in numbers(value))

    check()


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", '"90"', "null", "true", "[]", "101", "-1"])
def test_a_top1_that_is_no_percentage_is_refused_by_file_and_line(tmp_path, number):
    path = tmp_path / "population.jsonl"
    good = json.dumps(SCORE)
    path.write_text("\n".join([json.dumps(ORIGIN), good, good.replace("71.5", number), ""]))
    with pytest.raises(
        UserError, match=r"population\.jsonl: line 3: top1 is .*; it must be a finite number from 0 to 100"
    ):
        read(path, "scores")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("scores", "architecture", 3),
        ("scores", "architecture", "p16-e230-token-h3q432m720x100000000"),
        ("scores", "loss", math.inf),
        ("scores", "rung", ["race"]),
        ("panel", "epoch", "10"),
        ("panel", "top1", math.nan),
        ("speeds", "images_per_second", 0),
        ("speeds", "images_per_second", math.inf),
        ("latencies", "part", ["attention", 197]),
        ("latencies", "part", [[], 1, 2]),
        ("latencies", "milliseconds", -1),
        ("initialisations", "length_distortion", math.inf),
        ("initialisations", "ntk_condition", "best"),
        ("initialisations", "initialisation", None),
    ],
)
def test_a_wrong_record_is_refused_by_file_line_and_key(tmp_path, kind, key, value):
    path = tmp_path / "journal.jsonl"
    for record in ({**KINDS[kind][1], key: value}, {k: v for k, v in KINDS[kind][1].items() if k != key}):
        # Journals of earlier versions lack these.
        if key in ("loss", "rung") and key not in record:
            continue
        path.write_text("\n".join([json.dumps(ORIGIN), json.dumps(record), ""]))
        with pytest.raises(UserError, match=rf"journal\.jsonl: line 2: .*({key}|architecture|blocks)"):
            read(path, kind)


@pytest.mark.parametrize("line", ["[]", "null", "3", '"x"', "[" * 100_000, "9" * 5000, "{" + " " * MAX_LINE + "}"])
def test_a_line_that_is_no_mapping_or_too_long_is_refused_by_number(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    path.write_text(f"{{}}\n{line}\n{{}}\n")
    with bounded(), pytest.raises(UserError, match=r"journal\.jsonl: line 2 ") as error:
        Journal(path)
    assert len(str(error.value)) < 3000


def test_a_journal_is_written_with_finite_numbers_alone_and_read_again(tmp_path):
    """Weights that diverged have no finite loss: the search goes on, and so does its restart."""
    path = tmp_path / "population.jsonl"
    network = zoo()["vitas_c"]
    for loss in (math.nan, math.inf, 1.5):
        record = {"architecture": NETWORK, **SubnetScore(10.0, loss).record}
        path.unlink(missing_ok=True)
        Journal(path).append(ORIGIN, record)
        assert "NaN" not in path.read_text()
        assert "Infinity" not in path.read_text()
        known = read(path, "scores by loss").known[network, "supernet"]
        assert known.top1 == 10.0
        assert known.loss == loss or math.isnan(known.loss)
    genotype = Genotype.parse(KINDS["initialisations"][1]["architecture"])
    path.unlink()
    Journal(path).append(ORIGIN, asvit_scoring._record((genotype, 0), Scores(math.nan, math.inf)))
    known = read(path, "initialisations").known[genotype, 0]
    assert math.isnan(known.length_distortion)
    assert known.ntk_condition == math.inf


def test_a_journal_of_an_earlier_version_is_read(tmp_path):
    """They had no loss, and wrote NaN for one that was not finite."""
    path = tmp_path / "population.jsonl"
    old = [{"architecture": NETWORK, "top1": 10.0}, {**SCORE, "loss": math.nan}]
    for record in old:
        path.write_text("\n".join([json.dumps(ORIGIN), json.dumps(record), ""]))
        assert math.isnan(next(iter(read(path, "scores").known.values())).loss)
    path.write_text("\n".join([json.dumps(ORIGIN), json.dumps(old[0]), ""]))
    with pytest.raises(UserError, match=r"line 2: the score has no loss"):
        read(path, "scores by loss")

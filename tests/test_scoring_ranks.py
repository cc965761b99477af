"""Scoring on several ranks: one queue, one copy of the images a node, and the results of one rank."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import run_module
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.distributed import World

BAD = (3, 4, 11, 19)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> tuple[int, Path, Path, list[dict]]:
    """How many there are, the images, where they wrote, and what each saw."""
    images, output = (tmp_path_factory.mktemp(name) for name in ("images", "output"))
    rng = np.random.default_rng(0)
    for index in range(20):
        path = images / "ab"[index // 10] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
        if index in BAD:
            path.write_bytes(path.read_bytes()[:-60])
    run_module("tests.scoring_ranks", images, output, processes=request.param)
    return (
        request.param,
        images,
        output,
        [json.loads((output / f"rank_{rank}.json").read_text()) for rank in range(request.param)],
    )


def records(path: Path) -> list[dict]:
    return [{name: line[name] for name in "ab"} for line in map(json.loads, path.read_text().splitlines()[1:])]


def test_values_and_the_journal_are_those_of_one_rank(ranks) -> None:
    _, _, output, seen = ranks
    expected = [sum((candidate + 1) / (index + 3) for index in range(3)) for candidate in range(8)]
    assert all(rank["values"] == expected for rank in seen)
    # In the order of candidates, though the first ended last.
    assert records(output / "scores.jsonl") == [{"a": a, "b": b} for a, b in enumerate(expected)]
    assert sum(rank["pieces"] for rank in seen) == 8 * 3


def test_where_one_rank_may_measure_no_other_does(ranks) -> None:
    assert all(rank["alone"] == [0] * 4 for rank in ranks[3])


def test_a_stop_of_one_rank_ends_all_and_what_was_measured_is_saved(ranks) -> None:
    _, _, output, seen = ranks
    assert all(rank["stopped"] for rank in seen)
    saved = [record["a"] for record in records(output / "stopped.jsonl")]
    assert saved == list(range(len(saved)))
    assert len(saved) < 200


def test_images_are_those_of_one_rank_on_one_node_on_two_and_without_shared_memory(ranks) -> None:
    _, images, _, seen = ranks
    settings = EvaluationData(data_dir=str(images), workers=0, crop_fraction=1.0, bad_images=0.2)
    alone = EvaluationSet.load(settings, 32, [0.5] * 3, [0.5] * 3, World(), True)
    digest = hashlib.sha256(alone.images.numpy().tobytes()).hexdigest()
    assert (alone.total, alone.left_out) == (16, 4)
    for rank in seen:
        assert rank["seen"]["private"] == digest
        for name in ("one", "two"):
            found = rank["seen"][name]
            assert (found["digest"], found["labels"]) == (digest, alone.labels.tolist())
            assert (found["total"], found["left_out"]) == (16, 4)


def test_ranks_of_a_node_have_one_copy_and_other_nodes_another(ranks) -> None:
    size, _, _, seen = ranks
    assert [rank["seen"]["one"]["changed"] for rank in seen] == [True] * size
    assert [rank["seen"]["two"]["changed"] for rank in seen] == [number % 2 == 0 for number in range(size)]

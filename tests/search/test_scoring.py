"""How candidates are scored: sides, races, brief adaptation, finalists; and that a restart scores nothing twice."""

import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
import yaml

from search import scoring
from search.adaptation import Adaptation
from search.predictor import ChoiceLosses
from search.sample import sample
from search.scoring import SupernetScorer, score_subnet
from search.search import build_supernet
from vitas import Architecture, checkpoint, loading, watchdog
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import UserError
from vitas.evaluate import evaluate
from vitas.report import Report
from vitas.run import RunFolder

ADAPT = "sample.adapt={steps: 3, batch_size: 20, lr: 0.002}"


def records(config) -> list[dict]:
    return [json.loads(line) for line in config.folder.population.read_text().splitlines()[1:]]


def found(config) -> list[dict]:
    return yaml.safe_load(config.folder.architectures.read_text())["architectures"]


def supernet_and_images(config):
    supernet = build_supernet(config, World()).eval()
    loading.load_weights(supernet, CheckpointFolder(config.folder.checkpoints("search")).resolve())
    model = config.model
    return supernet, EvaluationSet.load(config.sample.data, model.image_size, model.mean, model.std, World(), True)


def scorer_of(config) -> SupernetScorer:
    return SupernetScorer(config, *supernet_and_images(config), Report("sample", config.folder, World()), World())


def members(config, count: int) -> list:
    return [config.space.decode(g).shifted() for g in config.space.sample_genomes(np.random.default_rng(0), count, 0.2)]


# Sides


def test_sides_are_scored_by_the_mean_of_their_scores_or_by_the_sum_of_their_logits(trained) -> None:
    config = trained("sample.sides=mean")
    supernet, images = supernet_and_images(config)
    (subnet,) = members(config, 1)
    of_sides = [evaluate(lambda x, s=side: supernet(x, subnet, s), images, 64) for side in ("left", "right")]
    mean = score_subnet(supernet, subnet, images, config.sample)
    assert mean.loss == pytest.approx(np.mean([s.loss for s in of_sides]))
    assert mean.top1 == pytest.approx(np.mean([s.top1 for s in of_sides]))
    summed = evaluate(lambda x: supernet(x, subnet, "left") + supernet(x, subnet, "right"), images, 64)
    score = score_subnet(supernet, subnet, images, trained("sample.sides=sum").sample)
    assert (score.top1, score.loss) == pytest.approx((summed.top1, summed.loss))
    assert score.loss != pytest.approx(mean.loss, abs=1e-4)


# Races


def test_in_a_race_all_are_scored_on_a_part_and_the_best_on_all(trained) -> None:
    config = trained("sample.race={images: 0.25, keep: 0.5}", "sample.objectives=[loss]")
    scorer = scorer_of(config)
    subnets = members(config, 8)
    scores = scorer.score(subnets, 0)
    of_rung = {
        rung: {r["architecture"]: r for r in records(config) if r["rung"] == rung} for rung in ("race", "supernet")
    }
    assert set(of_rung["race"]) == set(map(str, subnets))
    best = sorted(of_rung["race"].values(), key=lambda r: r["loss"])[: len(of_rung["race"]) // 2]
    assert set(of_rung["supernet"]) == {r["architecture"] for r in best}
    assert set(map(str, scorer.known)) == set(of_rung["supernet"])
    for subnet, score in zip(subnets, scores, strict=True):
        last = of_rung["supernet"].get(str(subnet)) or of_rung["race"][str(subnet)]
        assert score.loss == last["loss"]


def test_a_part_of_the_images_is_random_and_the_same_every_time(trained) -> None:
    _, images = supernet_and_images(trained())
    part, rest = images.split(0.25, 3)
    assert (part.total, rest.total) == (40, 120)
    assert len(part.images) == len(part.labels) == 40
    again, _ = images.split(0.25, 3)
    assert torch.equal(part.images, again.images)
    assert not torch.equal(part.images, images.split(0.25, 4)[0].images)

    # Nothing is lost, nothing comes twice, labels stay with their images.
    def contents(images: EvaluationSet) -> Counter:
        return Counter(zip(map(bytes, images.images.numpy()), images.labels.tolist(), strict=True))

    assert contents(part) + contents(rest) == contents(images)
    assert len(set(part.labels.tolist())) > 5


# Adaptation


def test_adaptation_trains_a_copy_and_leaves_the_supernet_alone(trained) -> None:
    config = trained(ADAPT)
    supernet, _ = supernet_and_images(config)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    adaptation = Adaptation(config, supernet, World())
    (subnet,) = members(config, 1)
    networks = adaptation.adapt(subnet)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert len(networks) == 2
    for network, side in zip(networks, ("left", "right"), strict=True):
        assert not network.training
        unadapted = supernet.extract(subnet, side)
        assert all(not torch.equal(a, b) for a, b in zip(network.parameters(), unadapted.parameters(), strict=True))
    # The same batches for every candidate, and at every time.
    again = Adaptation(config, supernet, World()).adapt(subnet)
    for network, other in zip(networks, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_adapted_candidates_have_a_lower_loss(trained) -> None:
    config = trained(
        "sample.adapt={steps: 40, batch_size: 20, lr: 0.005}", "sample.objectives=[loss]", "sample.sides=sum"
    )
    scorer_of(config).score(members(config, 4), 0)
    losses = {
        rung: {r["architecture"]: r["loss"] for r in records(config) if r["rung"] == rung}
        for rung in ("supernet", "adapted")
    }
    assert losses["supernet"].keys() == losses["adapted"].keys()
    assert np.mean(list(losses["adapted"].values())) < np.mean(list(losses["supernet"].values()))


def test_only_the_best_share_is_adapted_and_found(trained) -> None:
    config = trained(ADAPT.replace("}", ", keep: 0.34}"), "sample.objectives=[loss]")
    sample(config, World())
    by_generation = Counter((r["generation"], r["rung"]) for r in records(config))
    assert by_generation[0, "supernet"] == 6
    assert by_generation[0, "adapted"] == 3
    adapted = {r["architecture"]: r["loss"] for r in records(config) if r["rung"] == "adapted"}
    assert min(adapted.values()) == found(config)[0]["loss"]


def test_adaptation_without_a_training_section_is_refused(make_config) -> None:
    with pytest.raises(UserError, match=r"sample\.adapt: .*section search"):
        configuration.load(make_config({"search": None}), [ADAPT])


# Finalists


def test_finalists_are_ranked_on_all_images_and_reported_on_unseen_ones(trained) -> None:
    config = trained("sample.finalists={count: 5, images: 0.25}", "sample.objectives=[loss]", "sample.sample_num=5")
    sample(config, World())
    seen = {r["architecture"]: r["loss"] for r in records(config) if r.get("rung") != "unseen"}
    unseen = {r["architecture"]: r["loss"] for r in records(config) if r.get("rung") == "unseen"}
    assert set(unseen) == set(sorted(seen, key=seen.get)[:5])
    entries = found(config)
    assert len(entries) == 5
    by_text = {str(config.architecture(entry["name"])): entry for entry in entries}
    pooled = {}
    for text, loss in unseen.items():
        compact = "-".join(part for part in text.split("-") if not part.startswith("id"))
        assert by_text[compact]["loss"] == loss
        pooled[compact] = 0.75 * seen[text] + 0.25 * loss
    assert [str(config.architecture(e["name"])) for e in entries] == sorted(pooled, key=pooled.get)


# Prior


def test_the_prior_chooses_the_best_of_each_group_by_the_losses_in_training(trained, monkeypatch) -> None:
    proposed = {}
    for prior in (1, 5):
        config = trained(f"sample.prior={prior}", "sample.initial_population=10", "sample.generations=0")
        sample(config, World())
        proposed[prior] = {r["architecture"] for r in records(config)}
        config.folder.population.unlink()
    state = checkpoint.read(CheckpointFolder(config.folder.checkpoints("search")).resolve())
    losses = ChoiceLosses.recorded(config.space, state["choice_losses"])

    def worth(texts: set[str]) -> float:
        return losses.predict(np.array([config.space.encode(Architecture.parse(t)) for t in texts])).mean()

    assert len(proposed[1]) == len(proposed[5]) == 10
    assert worth(proposed[5]) < worth(proposed[1])


def test_where_the_budget_holds_few_the_prior_makes_no_population_smaller(trained) -> None:
    # Fewer than the 10,000 that are asked for.
    narrow = "sample.budget={minimum: 400_000, maximum: 410_000}"
    config = trained(narrow, "sample.prior=1000", "sample.initial_population=10", "sample.generations=0")
    sample(config, World())
    assert len(records(config)) == 10


def test_a_supernet_without_losses_of_choices_has_no_prior(trained) -> None:
    config = trained("sample.prior=3")
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve()
    state = torch.load(path, weights_only=True)
    del state["choice_losses"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"sample\.prior: .*does not hold the losses of choices"):
        sample(config, World())


# Prescreen


def test_a_prescreen_chooses_children_by_what_was_learnt(trained, monkeypatch) -> None:
    """It proposes other children than evolution alone, once it knows enough, and none twice."""
    given = ["sample.initial_population=12", "sample.population=4", "sample.generations=3", "sample.objectives=[loss]"]
    journals = []
    for prescreen in ("null", "{oversample: 3, scored: 12}"):
        config = trained(f"sample.prescreen={prescreen}", *given)
        sample(config, World())
        journals.append(records(config))
        config.folder.population.unlink()
    first = [[r for r in journal if r["generation"] == 0] for journal in journals]
    assert first[0] == first[1]
    assert len(journals[1]) == len({r["architecture"] for r in journals[1]}) == 12 + 3 * 4
    later = [{r["architecture"] for r in journal if r["generation"]} for journal in journals]
    assert later[0] != later[1]


# All together


@pytest.mark.parametrize(
    "options",
    [
        ["sample.race={}", ADAPT, "sample.finalists={count: 3}"],
        ["sample.prior=2", "sample.prescreen={oversample: 2, scored: 10}", "sample.initial_population=10"],
    ],
    ids=["rungs", "models"],
)
def test_a_search_that_was_killed_goes_on_with_every_option(trained, monkeypatch, options) -> None:
    given = [*options, "sample.objectives=[loss]"]
    config = trained(*given)
    sample(config, World())
    whole = [path.read_bytes() for path in (config.folder.population, config.folder.architectures)]
    lines = whole[0].splitlines(keepends=True)
    scored = []
    measure = scoring.MeasurementJournal.measure

    def count(self, candidates, *rest):
        scored.extend(c for c in candidates if c not in self.known)
        return measure(self, candidates, *rest)

    monkeypatch.setattr(scoring.MeasurementJournal, "measure", count)
    # Killed in the middle of a line, at several places.
    for place in (len(lines) // 3, len(lines) - 2):
        scored.clear()
        config.folder.population.write_bytes(b"".join(lines[:place]) + lines[place][:7])
        config.folder.architectures.unlink()
        sample(config, World())
        assert len(scored) == len(lines) - place
        assert [path.read_bytes() for path in (config.folder.population, config.folder.architectures)] == whole


def test_scores_made_in_another_way_are_refused(trained) -> None:
    sample(trained(), World())
    for options, differing in ((["sample.sides=mean"], "sides"), (["sample.race={}"], "race")):
        with pytest.raises(UserError, match=f"scores made with another {differing}"):
            sample(trained(*options), World())


def test_each_score_is_a_step_by_which_a_stalled_rank_is_noticed(tmp_path, monkeypatch) -> None:
    said, steps = [], []
    journal = scoring.MeasurementJournal(
        tmp_path / "scores.jsonl", {}, lambda line: (line["a"], line["b"]), lambda a, b: {"a": a, "b": b}, "scores",
        Report("sample", RunFolder(tmp_path), World()), World(),
    )  # fmt: skip
    beat = watchdog.beat
    monkeypatch.setattr(watchdog, "beat", lambda step: steps.append(step) or beat(step))

    def measure(candidate: int) -> int:
        # The third hangs, until it is noticed.
        while candidate == 2 and not said:
            time.sleep(0.05)
        return candidate

    def end(message: str, report: bool) -> None:
        said.append(message)
        watchdog._watchdog._stopped.set()

    watchdog.start(tmp_path / "stall-0", 0, ["here", "there"], 0.5, end)
    try:
        assert journal.measure([0, 1, 2, 3], measure, 1) == [0, 1, 2, 3]
    finally:
        watchdog.stop()
    # Also before the first: a rank that hangs in it is noticed.
    assert steps == [0, 1, 2, 3, 4]
    assert said[0].startswith("error: no step of scores for ")

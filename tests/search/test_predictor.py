"""What choices are worth: features, the model of scores, and the losses of choices in training."""

import numpy as np
import pytest
import torch

from search.predictor import ChoiceLosses, Choices, Predictor
from tests.search.test_operators import PER_BLOCK, SHARED


def genomes_of(space, count: int, seed: int = 0) -> np.ndarray:
    return space.sample_genomes(np.random.default_rng(seed), count, 0.4)


@pytest.mark.parametrize("space", [PER_BLOCK, SHARED], ids=["per block", "shared"])
def test_networks_have_equal_features_if_and_only_if_they_are_equal(space):
    genomes = np.unique(genomes_of(space, 3000), axis=0)
    features = Choices(space).features(genomes)
    assert len(np.unique(features, axis=0)) == len(genomes) > 100
    # Patch size, depth and embedding dim; and three choices a block.
    depths = space.columns(genomes).active.sum(1)
    assert np.array_equal(features.sum(1), 3 + 3 * depths)


def test_a_predictor_learns_what_is_a_sum_over_choices_and_ignores_noise():
    space, rng = PER_BLOCK, np.random.default_rng(0)
    genomes = genomes_of(space, 400)
    worth = rng.normal(size=Choices(space).count)
    true = Choices(space).features(genomes) @ worth
    predictor = Predictor(space)
    predictor.fit(genomes[:250], true[:250] + 0.1 * rng.normal(size=250))
    assert np.corrcoef(predictor.predict(genomes[250:]), true[250:])[0, 1] > 0.98
    # Of noise alone it predicts the mean, nearly.
    noise = 5 + rng.normal(size=250)
    predictor.fit(genomes[:250], noise)
    assert predictor.predict(genomes[250:]) == pytest.approx(np.full(150, noise.mean()), abs=0.5)


def test_leave_one_out_errors_choose_the_strength():
    """The formula against fitting once for each that is left out."""
    space, rng = PER_BLOCK, np.random.default_rng(1)
    genomes = genomes_of(space, 40)
    scores = Choices(space).features(genomes) @ rng.normal(size=Choices(space).count) + rng.normal(size=40)
    errors = []
    for strength in Predictor.STRENGTHS:
        fixed = type("Fixed", (Predictor,), {"STRENGTHS": np.array([strength])})(space)
        left_out = []
        for i in range(40):
            rest = np.arange(40) != i
            fixed.fit(genomes[rest], scores[rest])
            left_out.append(fixed.predict(genomes[i : i + 1])[0] - scores[i])
        errors.append(np.mean(np.square(left_out)))
    chosen, best = Predictor(space), type("Best", (Predictor,), {"STRENGTHS": Predictor.STRENGTHS[[np.argmin(errors)]]})
    best = best(space)
    for predictor in (chosen, best):
        predictor.fit(genomes, scores)
    assert chosen.predict(genomes) == pytest.approx(best.predict(genomes))


@pytest.mark.parametrize("space", [PER_BLOCK, SHARED], ids=["per block", "shared"])
def test_losses_of_choices_rank_networks_though_training_lowers_all_losses(space):
    rng = np.random.default_rng(0)
    worth = rng.normal(size=Choices(space).count)
    losses = ChoiceLosses(space, 2000)
    genomes = genomes_of(space, 4000)
    true = Choices(space).features(genomes) @ worth
    for i, genome in enumerate(genomes):
        losses.add(genome, torch.tensor(true[i] + rng.normal() + 300 / (i + 10)))
    assert np.corrcoef(losses.predict(genomes), true)[0, 1] > 0.75


def test_a_choice_that_was_never_trained_is_neither_good_nor_bad():
    losses = ChoiceLosses(PER_BLOCK, 100)
    assert not losses.predict(genomes_of(PER_BLOCK, 5)).any()


def test_losses_of_choices_go_on_from_their_state():
    whole, first, second = (ChoiceLosses(PER_BLOCK, 50) for _ in range(3))
    genomes = genomes_of(PER_BLOCK, 20)
    for i, genome in enumerate(genomes):
        whole.add(genome, torch.tensor(float(i % 7)))
        (first if i < 9 else second).add(genome, torch.tensor(float(i % 7)))
        if i == 8:
            second.load_state_dict(first.state_dict())
    assert np.array_equal(whole.predict(genomes), second.predict(genomes))

"""As-ViT's scores: those of the released network, against their definitions, and what they depend on."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.vitas.conftest import REFERENCE, UNEVEN, random_images
from vitas import Genotype, StagedTransformer
from vitas.asvit.scores import (
    Scores,
    circle_basis,
    length_distortion,
    mean_scores,
    ntk_condition_number,
    ntk_eigenvalues,
    ntk_gram,
    score_once,
)
from vitas.errors import UserError


def test_scores_of_the_released_network_are_the_released_ones(released_asvit, asvit_images, asvit_arrays):
    expected, images = asvit_arrays, asvit_images
    basis, thetas = (torch.from_numpy(expected[name]).float() for name in ("basis", "theta"))
    assert length_distortion(released_asvit, basis, thetas) == pytest.approx(
        expected["length_distortion"].item(), rel=1e-3
    )
    np.testing.assert_allclose(ntk_eigenvalues(released_asvit, images), expected["ntk_eigenvalues"], rtol=1e-3)
    assert ntk_condition_number(released_asvit, images) == pytest.approx(expected["ntk_condition"].item(), rel=1e-3)


def without_norms(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    return network


def test_length_distortion_is_the_sum_of_speeds_that_a_backward_pass_per_feature_gives(uneven):
    """In float64, at weights whose attention is far from even and far from one-hot: nothing is left to rounding."""
    thetas, basis = torch.tensor([0.0, 0.3, 2.0, 5.5], dtype=torch.float64), random_images(2, 32).double()
    uneven.double()
    with torch.no_grad():
        for parameter in uneven.parameters():
            parameter.mul_(0.5)
    along = thetas.clone().requires_grad_()
    curve = torch.stack([along.cos(), along.sin()], dim=1) @ basis.flatten(1)
    features = without_norms(uneven).eval().forward_features(curve.unflatten(1, (3, 32, 32)))
    speeds = [torch.autograd.grad(column.sum(), along, retain_graph=True)[0] for column in features.unbind(1)]
    expected = torch.stack(speeds).norm(dim=0).sum().item()
    assert length_distortion(uneven, basis, thetas) == pytest.approx(expected, rel=1e-9)
    assert length_distortion(uneven, basis.flatten(1), thetas) == pytest.approx(expected, rel=1e-9)


def test_the_ntk_is_of_the_gradients_that_a_backward_pass_per_image_gives(uneven):
    images = random_images(4, 32)
    rows = []
    for feature in uneven.eval().forward_features(images).sum(dim=1):
        uneven.zero_grad()
        feature.backward(retain_graph=True)
        weights = [p.grad for name, p in uneven.named_parameters() if "weight" in name and p.grad is not None]
        rows.append(torch.cat([gradient.flatten() for gradient in weights]).double())
    rows = torch.stack(rows)
    torch.testing.assert_close(ntk_gram(uneven, images), rows @ rows.T, rtol=1e-4, atol=0)
    eigenvalues = ntk_eigenvalues(uneven, images)
    assert torch.equal(eigenvalues, eigenvalues.sort().values)
    assert ntk_condition_number(uneven, images) == (eigenvalues[-1] / eigenvalues[0]).item()


def test_scoring_leaves_the_network_as_it_is(uneven):
    state = {name: value.clone() for name, value in uneven.state_dict().items()}
    uneven.train()
    described = repr(uneven)
    length_distortion(uneven, random_images(2, 32), torch.linspace(0, 6, 3))
    ntk_gram(uneven, random_images(2, 32))
    assert all(torch.equal(value, state[name]) for name, value in uneven.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in uneven.parameters())
    assert repr(uneven) == described
    assert all(module.training and not module._forward_hooks for module in uneven.modules())


def test_stochastic_depth_takes_no_part_in_scores(uneven):
    dropping = StagedTransformer(UNEVEN, 5, 32, drop_path_rate=0.9).train()
    dropping.load_state_dict(uneven.state_dict())
    images, thetas = random_images(2, 32), torch.linspace(0, 6, 3)
    assert length_distortion(dropping, images, thetas) == length_distortion(uneven, images, thetas)
    assert torch.equal(ntk_gram(dropping, images), ntk_gram(uneven, images))


def test_the_condition_number_of_equal_images_is_infinite_or_enormous(uneven):
    assert ntk_condition_number(uneven, random_images(1, 32).repeat(3, 1, 1, 1)) > 1e10


def test_a_layer_without_a_known_rule_is_refused_and_not_left_out(uneven):
    uneven.layers[0].blocks[0].norm1 = nn.RMSNorm(9)
    with pytest.raises(TypeError, match="RMSNorm"):
        ntk_gram(uneven, random_images(2, 32))


def test_the_circle_lies_in_a_random_plane_of_orthonormal_images():
    basis = circle_basis(32, 7).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-5, rtol=0)
    assert torch.equal(circle_basis(32, 7).flatten(1), basis)
    assert not torch.equal(circle_basis(32, 8).flatten(1), basis)


def test_scores_are_a_function_of_genotype_seed_and_index():
    first = score_once(UNEVEN, 32, seed=3, index=1, batch_size=4, points=3)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert score_once(UNEVEN, 32, seed=3, index=1, batch_size=4, points=3) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    for other in ({"seed": 4}, {"index": 2}):
        changed = score_once(UNEVEN, 32, **({"seed": 3, "index": 1} | other), batch_size=4, points=3)
        assert changed.length_distortion != first.length_distortion
        assert changed.ntk_condition != first.ntk_condition
    # On given images, the weights alone can make the difference.
    given = [score_once(UNEVEN, 32, index=i, images=random_images(4, 32), points=3).ntk_condition for i in range(2)]
    assert given[0] != given[1]


def test_mean_scores_are_the_mean_of_each_score():
    mean = mean_scores([Scores(1.0, 30.0), Scores(2.0, 60.0), Scores(6.0, 90.0)])
    assert mean == Scores(pytest.approx(3.0), pytest.approx(60.0))
    assert mean_scores([Scores(1.0, 30.0), Scores(2.0, math.inf)]).ntk_condition == math.inf


def test_given_images_are_those_of_the_ntk():
    images = random_images(4, 32)
    drawn, given = score_once(UNEVEN, 32, batch_size=4), score_once(UNEVEN, 32, images=images)
    assert drawn.length_distortion == given.length_distortion
    assert drawn.ntk_condition != given.ntk_condition
    assert score_once(UNEVEN, 32, images=images, batch_size=1) == given


def test_default_scores_of_a_small_network_are_finite():
    found = score_once(Genotype.parse(REFERENCE), 32)
    assert 0 < found.length_distortion < math.inf
    assert 1 < found.ntk_condition < math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 0}, "points: found 0; a circle needs at least 1"),
        ({"batch_size": 1}, "batch_size: found 1; a condition number needs at least 2 images"),
        ({"images": torch.zeros(1, 3, 32, 32)}, "batch_size: found 1"),
        ({"images": torch.zeros(4, 3, 64, 64)}, r"images: found \[4, 3, 64, 64\]; they must be \[images, 3, 32, 32\]"),
        ({"image_size": 50}, r"image size 50 does not fit .* 32 and 64"),
    ],
)
def test_settings_that_give_no_score_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        score_once(UNEVEN, **({"image_size": 32} | settings))

"""The `data` sections of the YAML: which recipes of auto-augment are refused, without loading timm."""

import pytest
from timm.data import create_transform

from vitas.data.folders import is_recipe


@pytest.mark.parametrize(
    "recipe",
    [
        "rand-m9-mstd0.5-inc1", "rand-m9", "rand", "rand-n3-p0.7-mmax20", "rand-mstd101-inc0", "rand-m5-tweights",
        "rand-t3a", "augmix", "augmix-m5-w4-d2", "augmix-mstd0.5-a0.8-b1", "original", "original-mstd0.5", "originalr",
        "v0", "v0r", "v0r-mstd1", "3a", "3a-mstd0.5",
    ],
)  # fmt: skip
def test_a_recipe_that_timm_takes_is_one(recipe):
    create_transform(32, is_training=True, auto_augment=recipe)
    assert is_recipe(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        "rnd", "random-m9", "RAND-m9", "rand-q3", "rand-m9.5", "rand-n2x", "rand-m9-w3", "rand_m9", "augmix-n3",
        "augmix-w2.5", "augmixx", "original-m9", "original-inc1", "v1", "v0-n2", "3a-m5", "3b", "mstd0.5",
    ],
)  # fmt: skip
def test_a_recipe_that_timm_refuses_is_none(recipe):
    with pytest.raises((AssertionError, ValueError)):
        create_transform(32, is_training=True, auto_augment=recipe)
    assert not is_recipe(recipe)

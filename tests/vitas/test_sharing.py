"""Weight sharing: which channels each scheme uses, and that a shared subnet is the network of those channels."""

from itertools import chain

import pytest
import torch
from torch import Tensor

from tests.conftest import largest
from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, SearchSpace, SuperNet, VisionTransformer
from vitas.errors import UserError
from vitas.sharing import SCHEMES, Channels, SharingScheme, Side

MAXIMA = (1, 2, 5, 12)
# Steps of a training at which channels wrap round in no dim, in some and in all of those below.
STEPS = (0, 5, 27, 60)


def used(channels: Channels) -> list[int]:
    """The channels of some ranges, in the order in which they are used."""
    return list(chain.from_iterable(range(*pair) for pair in channels))


def sides_of(scheme: SharingScheme, steps=STEPS) -> list[Side]:
    """The sides that a scheme scores and trains with, each once."""
    return list(
        dict.fromkeys([*scheme.scoring_sides, *(side for step in steps for side in scheme.training_sides(step))])
    )


# Channels


@pytest.mark.parametrize("name", SCHEMES)
def test_a_width_uses_that_many_different_channels_inside_the_maximum(name):
    scheme = SCHEMES[name]
    for maximum in MAXIMA:
        for side in sides_of(scheme, range(2 * maximum + 1)):
            for width in range(1, maximum + 1):
                channels = used(scheme.channels(width, maximum, side))
                assert len(channels) == len(set(channels)) == width
                assert set(channels) <= set(range(maximum))


def uses_over_all_widths(scheme: SharingScheme, maximum: int) -> list[int]:
    """How often each channel is used by all widths with all scoring sides."""
    counts = [0] * maximum
    for side in scheme.scoring_sides:
        for width in range(1, maximum + 1):
            for channel in used(scheme.channels(width, maximum, side)):
                counts[channel] += 1
    return counts


@pytest.mark.parametrize("maximum", MAXIMA)
def test_bilateral_sharing_uses_every_channel_equally_often_over_all_widths_and_both_sides(maximum):
    assert SCHEMES["bilateral"].scoring_sides == ("left", "right")
    assert uses_over_all_widths(SCHEMES["bilateral"], maximum) == [maximum + 1] * maximum


@pytest.mark.parametrize("maximum", MAXIMA)
def test_ordinal_sharing_uses_the_first_channels_most(maximum):
    assert uses_over_all_widths(SCHEMES["ordinal"], maximum) == list(range(maximum, 0, -1))


@pytest.mark.parametrize("maximum", MAXIMA)
@pytest.mark.parametrize("first_step", [0, 7])
def test_cyclic_sharing_uses_every_channel_equally_often_over_as_many_steps_as_there_are(maximum, first_step):
    scheme = SCHEMES["cyclic"]
    for width in range(1, maximum + 1):
        counts = [0] * maximum
        for step in range(first_step, first_step + maximum):
            for side in scheme.training_sides(step):
                for channel in used(scheme.channels(width, maximum, side)):
                    counts[channel] += 1
        assert counts == [width] * maximum


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [
        ("ordinal", "left", [0, 1, 2]),
        ("bilateral", "left", [0, 1, 2]),
        ("bilateral", "right", [5, 6, 7]),
        ("cyclic", 0, [0, 1, 2]),
        ("cyclic", 5, [5, 6, 7]),
        ("cyclic", 6, [6, 7, 0]),
        ("cyclic", 15, [7, 0, 1]),
    ],
)
def test_a_side_means_these_channels_in_this_order(name, side, channels):
    assert used(SCHEMES[name].channels(3, 8, side)) == channels


@pytest.mark.parametrize(
    ("name", "side", "told"),
    [
        ("ordinal", "right", ["left"]),
        ("ordinal", 0, ["left"]),
        ("bilateral", "middle", ["left", "right"]),
        ("bilateral", 1, ["left", "right"]),
        ("cyclic", "left", ["step", "integer"]),
    ],
)
def test_a_side_that_a_scheme_does_not_have_is_refused_with_those_it_has(name, side, told):
    with pytest.raises(UserError, match=f"side {side!r}: {name} sharing") as error:
        SCHEMES[name].channels(3, 8, side)
    assert all(word in str(error.value).partition(": ")[2] for word in told)


def test_schemes_are_listed_by_their_own_names_and_score_with_sides_that_they_have():
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert scheme.scoring_sides
        for side in scheme.scoring_sides:
            scheme.channels(1, 2, side)


# The supernet

SPACE = SearchSpace((4, 8), 32, 2, (2, 4), 96, 64, (0.5, 0.75, 1.0))
UNEQUAL_BLOCKS = "p8-e24-token-h4q48m48-h2q96m32"
MEMBERS = [
    largest(SPACE),
    *map(Architecture.parse, ("p8-e16-token-h2q48m32x2", UNEQUAL_BLOCKS, "p4-e16-token-id-h4q72m64")),
]


@pytest.fixture(params=SCHEMES)
def supernet(request) -> SuperNet:
    return randomise(SuperNet(SPACE, 10, 16, request.param))


@torch.inference_mode()
def test_an_extracted_subnet_gives_the_supernets_logits_with_every_side_that_is_trained(supernet):
    images = random_images(2, 16)
    for side in sides_of(supernet.scheme):
        for architecture in MEMBERS:
            dense = supernet.extract(architecture, side)
            torch.testing.assert_close(dense(images), supernet(images, architecture, side), atol=1e-5, rtol=1e-5)


def dense_gradients(network: VisionTransformer) -> dict[str, Tensor]:
    """The gradients by the names of the supernet's parts, which have q, k and v apart."""
    found = {}
    for name, parameter in network.named_parameters():
        if ".qkv." in name:
            for part, gradient in zip("qkv", parameter.grad.chunk(3), strict=True):
                found[name.replace("qkv", part)] = gradient
        else:
            found[name] = parameter.grad
    return found


def test_the_supernets_gradients_are_those_of_the_extracted_network_at_its_channels(supernet):
    # In float64, so that sums in another order are the same to all digits that are compared.
    supernet, images = supernet.double(), random_images(2, 16).double()
    for side in sides_of(supernet.scheme):
        for architecture in MEMBERS:
            supernet.zero_grad()
            supernet(images, architecture, side).square().sum().backward()
            dense = supernet.extract(architecture, side).double()
            dense(images).square().sum().backward()
            gradients, parts = dense_gradients(dense), supernet.parts(architecture, side)
            assert set(gradients) == set(parts)
            expected = {id(part.parameter): torch.zeros_like(part.parameter) for part in parts.values()}
            for name, part in parts.items():
                whole = part.parameter.shape
                places = [
                    torch.arange(whole[dim]) if channels is None else torch.tensor(used(channels))
                    for dim, channels in enumerate(part.channels)
                ]
                expected[id(part.parameter)][torch.meshgrid(*places, indexing="ij")] = gradients[name]
            for name, parameter in supernet.named_parameters():
                if id(parameter) in expected:
                    torch.testing.assert_close(parameter.grad, expected[id(parameter)], atol=1e-9, rtol=1e-9)
                else:
                    assert parameter.grad is None or not parameter.grad.any(), name


def test_parts_are_views_of_the_supernets_weights_unless_their_channels_wrap_round(supernet):
    wrapped = 0
    for side in sides_of(supernet.scheme):
        for architecture in MEMBERS:
            for part in supernet.parts(architecture, side).values():
                is_view = part.weights.untyped_storage().data_ptr() == part.parameter.untyped_storage().data_ptr()
                wraps = any(channels is not None and len(channels) > 1 for channels in part.channels)
                assert is_view != wraps
                wrapped += wraps
    assert bool(wrapped) == (supernet.scheme.name == "cyclic")

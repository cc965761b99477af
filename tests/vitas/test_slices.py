"""The slices of the supernet's weights that a step trains."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import largest
from tests.vitas.conftest import random_images, randomise
from vitas import SuperNet
from vitas.models.slices import Slice, around, disjoint, size

ENDS = st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def places(box) -> set[tuple[int, ...]]:
    return set(product(*(range(*ends) for ends in box)))


@given(st.integers(1, 3).flatmap(lambda dims: st.frozensets(st.tuples(*[ENDS] * dims), min_size=1, max_size=5)))
def test_disjoint_boxes_hold_each_place_of_some_boxes_once(boxes):
    found = disjoint(boxes)
    wanted = set().union(*map(places, boxes))
    held = [place for box in found for place in places(box)]
    assert sum(map(size, found)) == len(held) == len(set(held))
    assert set(held) >= wanted
    if found != (around(boxes),):
        assert set(held) == wanted


def test_very_many_pieces_become_the_box_around_them():
    steps = frozenset(((i, i + 2), (20 - i, 22 - i)) for i in range(0, 20, 2))
    assert disjoint(steps) == (((0, 20), (2, 22)),)


@pytest.mark.parametrize(("sharing", "step"), [("bilateral", 0), ("ordinal", 0), ("cyclic", 0), ("cyclic", 27)])
def test_slices_in_use_are_what_a_step_trains_and_no_more(supernet_space, sharing, step):
    supernet = randomise(SuperNet(supernet_space, 10, 16, sharing))
    architecture = supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0])
    sides = supernet.scheme.training_sides(step)
    sum(supernet(random_images(2, 16), architecture, side) for side in sides).square().sum().backward()
    for side in sides:
        slices = supernet.slices_in_use([architecture], (side,))
        assert sum(each.numel() for each in slices) == architecture.parameters(16, 10)
    slices = supernet.slices_in_use([architecture], sides)
    assert all(each.numel() == each.gradient().numel() for each in slices)
    used = {parameter for side in sides for parameter in supernet.parameters_in_use(architecture, side)}
    assert {each.parameter for each in slices} == used
    for each in slices:
        each.gradient().zero_()
    assert all(p.grad is None or not p.grad.any() for p in supernet.parameters())


@pytest.mark.parametrize("sharing", ["bilateral", "cyclic"])
def test_where_sides_and_subnets_overlap_each_place_is_listed_once(supernet_space, sharing):
    supernet = SuperNet(supernet_space, 10, 16, sharing)
    subnets = [largest(supernet_space), supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0])]
    for used in (subnets[:1], subnets[1:], subnets):
        slices = supernet.slices_in_use(used, supernet.scheme.training_sides(3))
        for each in slices:
            each.gradient().add_(1)
        listed = [p.grad for p in supernet.parameters() if p.grad is not None]
        assert all(grad.max() == 1 for grad in listed)
        assert sum(int(grad.sum()) for grad in listed) == sum(each.numel() for each in slices)
        supernet.zero_grad()
    widest = supernet.slices_in_use(subnets[:1], supernet.scheme.training_sides(0))
    assert len(widest) == len(supernet.parts(subnets[0])), "both sides of the widest are all of it"


def test_slices_come_in_the_order_in_which_a_backward_pass_reaches_them(supernet_space):
    supernet = SuperNet(supernet_space, 10, 16, "ordinal")
    architecture = largest(supernet_space)
    reached = []
    for parameter in supernet.parameters():
        parameter.register_post_accumulate_grad_hook(reached.append)
    supernet(random_images(2, 16), architecture).sum().backward()
    listed = [id(each.parameter) for each in supernet.slices_in_use([architecture], ("left",))]
    assert set(listed[:2]) == {id(supernet.head.bias), id(supernet.head.weight)}
    # But for the parts of a layer.
    far = [abs(listed.index(id(parameter)) - place) for place, parameter in enumerate(reached)]
    assert max(far) < 8


def test_gradients_that_another_rank_trained_are_zeros_here(supernet_space):
    supernet = SuperNet(supernet_space, 10, 16, "ordinal")
    slices = supernet.slices_in_use([largest(supernet_space)], ("left",))
    assert sum(each.numel() for each in slices) == largest(supernet_space).parameters(16, 10)
    assert not any(each.gradient().any() for each in slices)


def test_a_slice_may_be_cut_in_its_first_dimensions_alone():
    parameter = torch.nn.Parameter(torch.zeros(4, 3, 2, 2))
    each = Slice(parameter, ((1, 3),))
    assert each.numel() == 24
    each.gradient().fill_(1)
    assert parameter.grad.any(dim=(1, 2, 3)).tolist() == [False, True, True, False]

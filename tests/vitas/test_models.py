"""The dense networks against the released ones, the supernet against the dense networks, and names."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from tests.conftest import largest
from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, SearchSpace, SuperNet, VisionTransformer, create_model, load_weights, released, zoo
from vitas.errors import UserError
from vitas.models.supernet import QKV_MODES
from vitas.sharing import Side

# Of cyclic sharing, steps at which nothing, something and everything wraps round.
SIDES = [
    ("bilateral", "left"),
    ("bilateral", "right"),
    ("ordinal", "left"),
    *(("cyclic", step) for step in (0, 17, 60)),
]
# Private to each head count, by qkv mode.
PRIVATE = {0: set(), 1: {"v"}, 2: {"q", "k"}}

SPACE_OF_14 = SearchSpace((14, 16), 32, 1, (2,), 96, 64, (1.0,))
SPACE_OF_QUARTERS = SearchSpace((14,), 32, 1, (2,), 96, 64, (0.25, 0.5, 0.75, 1.0), identity=False)


# Dense networks


def test_a_released_checkpoint_gives_the_released_logits(reference):
    expected = json.loads((reference / "vitas_tiny.json").read_text())
    arrays = np.load(reference / "vitas_tiny.npz")
    architecture, num_classes = released.read_model(expected["model"])
    assert architecture.macs(224, num_classes, "released") == expected["macs_released"]
    assert architecture.parameters(224, num_classes) == expected["parameters"]
    network = VisionTransformer(architecture, num_classes).eval()
    load_weights(network, reference / "vitas_tiny.pth")
    with torch.inference_mode():
        logits = network(torch.from_numpy(arrays["image"]).float())
    torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), atol=1e-4, rtol=0)


def test_a_released_model_section_without_net_id_holds_the_dims_themselves():
    backbone = {
        "init_stem": [1, 3, [16], [], 230, [], [], False, ["Patch_init"]],
        "Block": [12, 230, [3], 432, 230, 720, 230, False, ["Block"]],
        "Norm": [1, 230, [], [], [], [], [], "token", ["Norm"]],
        "FC": [1, 230, [], [], 1000, [], [], False, ["FC"]],
    }
    assert released.read_model({"backbone": backbone}) == (zoo()["vitas_c"], 1000)


def test_a_key_that_no_released_file_has_is_refused_by_name():
    with pytest.raises(UserError, match=r"module\.net\.backbone_surprise"):
        released.rename_keys({"module.net.backbone_surprise": torch.zeros(1)})


@pytest.mark.parametrize("classifier", ["token", "mean"])
@pytest.mark.parametrize(("num_classes", "image_size"), [(1, 32), (7, 48), (10, 8)])
def test_the_classifier_reads_the_class_token_or_the_mean_of_the_patches(classifier, num_classes, image_size):
    architecture = Architecture.parse(f"p8-e20-{classifier}-h2q18m30-id-h3q36m10")
    network = randomise(VisionTransformer(architecture, num_classes, image_size))
    images = random_images(3, image_size)
    with torch.inference_mode():
        logits = network(images)
        tokens = network.forward_features(images)
        assert tokens.shape == (3, 1 + (image_size // 8) ** 2, 20)
        expected = network.head(tokens[:, 0] if classifier == "token" else tokens[:, 1:].mean(dim=1))
    assert logits.shape == (3, num_classes)
    # Of the class token alone the last block multiplies other shapes, which rounds otherwise.
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if classifier == "token" else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(logits, expected, **tolerance)


def test_an_architecture_without_blocks_is_a_network():
    logits = create_model("p8-e20-token-idx3", num_classes=4, image_size=16)(random_images(2, 16))
    assert logits.shape == (2, 4)


def test_attention_is_scaled_by_the_whole_embedding_dims_of_a_head():
    """ViTAS-C's 230 dims for 3 heads are 76 each, whatever the attention dim."""
    for qkv_dim in (9, 72):
        assert create_model(f"p8-e230-token-h3q{qkv_dim}m8", 4, 16).blocks[0].attn.scale == 76**-0.5


def test_stochastic_depth_grows_over_positions_identities_counted():
    architecture = Architecture.parse("p8-e20-token-h2q18m30-id-h2q18m30-id-h2q18m30")
    network = VisionTransformer(architecture, 10, 32, drop_path_rate=0.4)
    assert [block.drop_path.drop_prob for block in network.blocks] == pytest.approx([0.0, 0.2, 0.4])


def test_stochastic_depth_acts_in_training_only():
    network = randomise(VisionTransformer(Architecture.parse("p8-e20-token-h2q18m30x4"), 10, 16, drop_path_rate=0.9))
    images = random_images(8, 16)
    with torch.no_grad():
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))


def test_no_weight_decay_names_the_parameters_that_are_no_matrices(small_space):
    for network in (VisionTransformer(largest(small_space), 10, 32), SuperNet(small_space, 10, 32)):
        exempt = network.no_weight_decay()
        assert exempt == {name for name, p in network.named_parameters() if p.ndim == 3}


@pytest.mark.parametrize("build", [VisionTransformer, lambda a, c, s: SuperNet(SPACE_OF_14, c, s)])
def test_patches_that_do_not_tile_the_image_are_refused(build):
    with pytest.raises(UserError, match="patch size 14 does not divide the image size 32"):
        build(largest(SPACE_OF_14), 10, 32)


# Made by name


@pytest.mark.parametrize("what", ["vitas_c", str(zoo()["vitas_c"]), zoo()["vitas_c"]])
def test_create_model_takes_a_name_a_text_or_an_architecture(what):
    network = create_model(what, num_classes=5, image_size=32, drop_path_rate=0.1)
    assert (network.architecture, network.num_classes, network.image_size) == (zoo()["vitas_c"], 5, 32)
    assert network.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vitas_d", "did you mean vitas_"), ("deit_tny", "did you mean deit_tiny"), ("resnet", "vitas_a, ")],
)
def test_an_unknown_name_is_refused_with_near_ones_or_all(name, hint):
    with pytest.raises(UserError, match=f"'{name}'.*{hint}"):
        create_model(name)


# The supernet


@pytest.fixture(scope="module")
def members(supernet_space, all_architectures):
    """All 144 networks of one patch size."""
    return all_architectures(replace(supernet_space, patch_sizes=(8,)))


@pytest.fixture(params=[(*scheme, mode) for scheme in SIDES for mode in QKV_MODES], ids=str)
def shared_network(request, supernet_space) -> tuple[SuperNet, Side]:
    """A random supernet of each scheme and mode, and one of its sides."""
    sharing, side, mode = request.param
    return randomise(SuperNet(supernet_space, 10, 16, sharing, mode)), side


@torch.inference_mode()
def test_every_extracted_subnet_gives_the_supernets_own_logits(shared_network, members):
    supernet, side = shared_network
    images = random_images(2, 16)
    for architecture in members:
        dense = supernet.extract(architecture, side)
        torch.testing.assert_close(dense(images), supernet(images, architecture, side), atol=1e-5, rtol=1e-5)


def channels(gradient: torch.Tensor, dim: int) -> list[int]:
    """The indices along a dimension at which a gradient is not all zero."""
    return gradient.abs().movedim(dim, 0).flatten(1).sum(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("sharing", "side", "half_of_32", "half_of_64"),
    [
        ("ordinal", "left", range(16), range(32)),
        ("bilateral", "left", range(16), range(32)),
        ("bilateral", "right", range(16, 32), range(32, 64)),
        ("cyclic", 24, [*range(8), *range(24, 32)], range(24, 56)),
    ],
)
def test_a_subnet_trains_the_channels_of_its_side_in_every_layer(supernet_space, sharing, side, half_of_32, half_of_64):
    supernet = randomise(SuperNet(supernet_space, 10, 16, sharing))
    # Half of the widest embedding (32), attention (32) and MLP (64).
    supernet(random_images(2, 16), Architecture.parse("p8-e16-token-h2q48m32-id"), side).square().sum().backward()
    embed = attention = list(half_of_32)
    mlp = list(half_of_64)
    stem, block = supernet.stems["8"], supernet.blocks[0]
    expected = [
        (stem.patch_embed.weight, {0: embed}),
        (stem.cls_token, {2: embed}),
        (stem.pos_embed, {2: embed}),
        (block.norm1.weight, {0: embed}),
        (block.q["2"].weight, {0: attention, 1: embed}),
        (block.k["2"].weight, {0: attention, 1: embed}),
        (block.v["shared"].weight, {0: attention, 1: embed}),
        (block.proj.weight, {0: embed, 1: attention}),
        (block.norm2.weight, {0: embed}),
        (block.fc1.weight, {0: mlp, 1: embed}),
        (block.fc2.weight, {0: embed, 1: mlp}),
        (supernet.norm.weight, {0: embed}),
        (supernet.head.weight, {0: list(range(10)), 1: embed}),
    ]
    for parameter, used in expected:
        assert {dim: channels(parameter.grad.unsqueeze(-1), dim) for dim in used} == used


def test_a_subnets_gradients_touch_its_parts_alone(shared_network, supernet_space):
    supernet, side = shared_network
    architecture = supernet_space.decode([1, 1, 2, 0, 0, 1, 0, 0])
    supernet(random_images(2, 16), architecture, side).square().sum().backward()
    for each in supernet.slices_in_use([architecture], (side,)):
        each.gradient().zero_()
    assert all(p.grad is None or not p.grad.any() for p in supernet.parameters())


@pytest.mark.parametrize(("sharing", "equal"), [("bilateral", True), ("ordinal", False)])
@pytest.mark.parametrize("name", ["norm.weight", "blocks.0.attn.q.bias", "blocks.0.mlp.fc1.bias"])
def test_all_widths_use_every_weight_and_those_of_bilateral_sharing_equally_often(sharing, equal, name):
    supernet = SuperNet(SPACE_OF_QUARTERS, 10, 28, sharing)
    uses = torch.zeros_like(supernet.parts(largest(SPACE_OF_QUARTERS))[name].parameter)
    for width, side in product(range(4), supernet.scheme.scoring_sides):
        part = supernet.parts(SPACE_OF_QUARTERS.decode([0, 0, width, width, width]), side)[name]
        for start, stop in part.channels[0]:
            uses[start:stop] += 1
    assert (uses > 0).all()
    assert (uses == uses[0]).all() == equal


@pytest.mark.parametrize("mode", QKV_MODES)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_the_qkv_mode_decides_what_is_private_to_a_head_count(supernet_space, mode, kind):
    supernet = SuperNet(supernet_space, 10, 16, qkv_mode=mode)
    two, four = (supernet.parts(supernet_space.decode([0, choice, choice, 1, 1, 1, 1, 1])) for choice in (0, 1))
    differing = {name for name in two if two[name].parameter is not four[name].parameter and name.endswith(kind)}
    assert differing == {f"blocks.{i}.attn.{part}.{kind}" for i in (0, 1) for part in PRIVATE[mode]}


def test_class_token_positions_and_projection_are_private_to_a_patch_size(supernet_space):
    supernet = SuperNet(supernet_space, 10, 16)
    four, eight = (supernet.parts(supernet_space.decode([patch, 0, 0, 1, 1, 1, 1, 1])) for patch in (0, 1))
    differing = {name for name in four if four[name].parameter is not eight[name].parameter}
    assert differing == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


@torch.inference_mode()
def test_identities_anywhere_give_the_logits_of_identities_last(small_space):
    supernet, images = randomise(SuperNet(small_space, 10, 32)), random_images(2, 32)
    for patch, order in product((4, 8), ("id-{0}-{1}", "{0}-id-{1}", "{0}-{1}-id")):
        architecture = Architecture.parse(f"p{patch}-e16-token-" + order.format("h2q96m32", "h4q48m64"))
        for side in supernet.scheme.scoring_sides:
            shifted = supernet(images, architecture.shifted(), side)
            assert torch.equal(supernet(images, architecture, side), shifted)
            dense = supernet.extract(architecture, side)
            assert dense.architecture == architecture
            torch.testing.assert_close(dense(images), shifted, atol=1e-5, rtol=1e-5)


def test_the_sides_of_bilateral_sharing_differ_but_for_the_widest_subnet(supernet_space):
    supernet, images = randomise(SuperNet(supernet_space, 10, 16, "bilateral")), random_images(2, 16)
    narrow = supernet_space.decode([0, 0, 0, 0, 0, 0, 0, 0])
    with torch.inference_mode():
        widest = [supernet(images, largest(supernet_space), side) for side in supernet.scheme.scoring_sides]
        assert torch.equal(*widest)
        assert not torch.allclose(*(supernet(images, narrow, side) for side in supernet.scheme.scoring_sides))


@pytest.mark.parametrize("training", [True, False])
def test_an_extracted_network_is_in_the_supernets_mode(supernet_space, training):
    supernet = SuperNet(supernet_space, 10, 16).train(training)
    assert supernet.extract(largest(supernet_space)).training == training


def test_an_extracted_network_owns_its_weights(supernet_space):
    supernet = randomise(SuperNet(supernet_space, 10, 16))
    dense = supernet.extract(largest(supernet_space))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    for parameter in dense.parameters():
        parameter.data.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [({"sharing": "both"}, "sharing: found 'both'"), ({"qkv_mode": 3}, "qkv_mode: found 3; it must be 0, 1 or 2")],
)
def test_an_unknown_scheme_or_mode_is_refused(supernet_space, arguments, fragment):
    with pytest.raises(UserError, match=fragment):
        SuperNet(supernet_space, 10, 16, **arguments)


@pytest.mark.parametrize(
    ("sharing", "text", "side", "fragment"),
    [
        ("ordinal", "p8-e16-token-h2q48m32x2", "right", "side 'right': ordinal sharing has left"),
        ("bilateral", "p8-e16-token-h2q48m32x2", "middle", "side 'middle': bilateral sharing has left and right"),
        ("cyclic", "p8-e16-token-h2q48m32x2", "left", "side 'left': cyclic sharing"),
        ("bilateral", "p8-e24-token-h2q48m32x2", "left", "embedding dim 24"),
        ("bilateral", "p8-e16-token-h2q48m32x3", "left", "3 positions"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "parts", "extract"])
def test_a_side_or_architecture_that_the_supernet_lacks_is_refused(
    supernet_space, sharing, text, side, fragment, method
):
    supernet = SuperNet(supernet_space, 10, 16, sharing)
    arguments = [random_images(1, 16)] if method == "forward" else []
    with pytest.raises(UserError, match=fragment):
        getattr(supernet, method)(*arguments, Architecture.parse(text), side)


@pytest.fixture
def encoded(monkeypatch) -> list[Architecture]:
    """What spaces are asked to encode from now on."""
    asked, encode = [], SearchSpace.encode

    def count(space, architecture):
        asked.append(architecture)
        return encode(space, architecture)

    monkeypatch.setattr(SearchSpace, "encode", count)
    return asked


def test_an_architecture_is_checked_against_its_space_once_however_many_passes_it_makes(encoded):
    # A space that no other test has: the supernet remembers what it checked.
    space = SearchSpace((8,), 34, 2, (2,), 12, 8, (0.5, 1.0))
    supernet, images = SuperNet(space, 3, 16), random_images(1, 16)
    one, other = (Architecture.parse(f"p8-e34-token-h2q12m{dim}x2") for dim in (4, 8))
    for architecture in (one, other):
        for side in supernet.scheme.training_sides(0):
            supernet(images, architecture, side).sum().backward()
        supernet.slices_in_use([architecture], supernet.scheme.training_sides(0))
        supernet.extract(architecture)
    assert encoded == [one, other]


def test_an_architecture_outside_the_space_is_refused_every_time(encoded):
    supernet = SuperNet(SPACE_OF_QUARTERS, 3, 28)
    for _ in range(2):
        with pytest.raises(UserError, match="embedding dim 20"):
            supernet.parts(Architecture.parse("p14-e20-token-h2q96m64"))

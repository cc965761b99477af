"""Reading networks that are good already, their order of importance, and pruning."""

import copy

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, SuperNet, VisionTransformer
from vitas.elastic_space import SCORES, ElasticSpace, Shares
from vitas.errors import UserError
from vitas.importance import _RULES, Importances, fit_classifier, order_blocks, reordered, score_parts
from vitas.pretrained import Images, fold_normalisation, from_timm, load_pretrained, native_images, refusal
from vitas.pruning import cut, prune, pruned_architecture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORK = Architecture.parse("vit8-e32-token-h4q96m64-h2q48m48-h4q96m64")


def images(size: int = 32, num_classes: int = 10, mean=MEAN, std=STD) -> Images:
    return Images(size, num_classes, mean, std)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """To 1e-5 of the largest logit."""
    return bool(((first - second).abs().max() / second.abs().max()) < 1e-5)


def timm_network(name: str, **keys) -> nn.Module:
    """A model of timm with weights that all matter. None is downloaded."""
    network = timm.create_model(name, pretrained=False, **keys).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    return randomise(VisionTransformer(NETWORK, 10, 32))


@pytest.fixture(scope="module")
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    return random_images(48, 32), torch.arange(48) % 10


# timm's networks


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_patch16_224", {}),
        # Layer scale, and no position of the class token.
        ("deit3_small_patch16_224", {}),
        # The mean of the patches, no class token, no biases of q, k and v.
        ("vit_medium_patch16_gap_240", {}),
        ("vit_small_patch32_224", {"img_size": 96}),
    ],
)
@torch.no_grad()
def test_the_widest_subnet_of_a_timm_network_gives_its_own_logits(name, keys):
    theirs = timm_network(name, num_classes=7, **keys)
    size = theirs.patch_embed.img_size[0]
    ours, has_classifier = from_timm(theirs, images(size, 7))
    batch = random_images(2, size)
    assert has_classifier
    assert close(ours.eval()(batch), theirs(batch))
    space = ElasticSpace(ours.architecture, tuple(range(len(ours.blocks))))
    supernet = SuperNet(space, 7, size).eval()
    supernet.adopt(ours)
    assert close(supernet(batch, ours.architecture), theirs(batch))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", "distillation token"),
        ("vit_medium_patch16_reg4_gap_256", "register tokens"),
        ("vit_tiny_r_s16_p8_224", "stem is more than one projection"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_xsmall_patch16_clip_224", "norm before its blocks"),
        ("vit_base_patch16_siglip_224", "pools by attention"),
        ("vit_base_patch16_rpn_224", "last norm comes after the pooling"),
        ("vit_small_patch16_rope_224", "timm's Eva"),
        ("resnet10t", "timm's ResNet"),
    ],
)
def test_what_is_no_plain_vision_transformer_is_refused_with_the_reason(name, reason):
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    assert reason in refusal(network)
    with pytest.raises(UserError, match=reason):
        from_timm(network, images(224))


def test_options_of_a_plain_network_that_do_not_fit_are_refused():
    def reason(**keys) -> str:
        return refusal(timm.create_model("vit_tiny_patch16_224", pretrained=False, **keys)) or ""

    assert "last norm comes after the pooling" in reason(global_pool="avg")
    assert "mean of its patches beside a class token" in reason(global_pool="avg", fc_norm=False)
    assert "norm inside" in reason(qk_norm=True)
    assert "activation" in reason(act_layer="relu")
    assert "eps" in reason(norm_layer=lambda dim, **keys: nn.LayerNorm(dim, eps=1e-5, **keys))
    assert "position embeddings" in reason(pos_embed="none")


@torch.no_grad()
def test_another_normalisation_is_folded_into_the_weights():
    theirs = timm_network("vit_tiny_patch16_224", img_size=32, num_classes=10)
    file_state = theirs.state_dict()
    pixels = torch.rand(3, 3, 32, 32)
    # timm's ViT takes images of mean and deviation 0.5.
    expected = theirs((pixels - 0.5) / 0.5)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    ours, _ = from_timm(theirs, images())
    fold_normalisation(ours, [0.5] * 3, [0.5] * 3, images())
    assert close(ours.eval()((pixels - mean) / std), expected)
    assert all(torch.equal(value, file_state[name]) for name, value in theirs.state_dict().items())


@torch.no_grad()
def test_a_model_of_timm_is_read_by_its_name_in_its_own_normalisation(monkeypatch):
    """Its weights would be downloaded; here they are put in the place of the download."""
    theirs, asked = timm_network("vit_tiny_patch16_224", img_size=32, num_classes=10), []
    build = timm.create_model

    def create(name: str, pretrained: bool = False, **keys: object) -> nn.Module:
        asked.append((name, pretrained, keys))
        return theirs if pretrained else build(name, **keys)

    monkeypatch.setattr(timm, "create_model", create)
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    found = load_pretrained(name, images())
    assert asked[-1] == (name, True, {"img_size": 32})
    pixels = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    # timm's ViT takes images of mean and deviation 0.5.
    assert close(found.network((pixels - mean) / std), theirs((pixels - 0.5) / 0.5))
    assert native_images(name) == Images(224, 1000, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="it has a distillation token"):
        load_pretrained("deit_tiny_distilled_patch16_224.fb_in1k", images())
    assert not asked[-1][1], "refused before its weights are downloaded"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pth", "safetensors", "model"])
def test_a_file_of_timm_weights_is_read_by_its_models_name(kind, tmp_path):
    theirs = timm_network("deit_tiny_patch16_224", img_size=32, num_classes=10)
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    state = theirs.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if kind == "model" else state, path)
    found = load_pretrained(f"deit_tiny_patch16_224:{path}", images())
    batch = random_images(2, 32)
    assert found.has_classifier
    assert close(found.network(batch), theirs(batch))
    assert native_images(f"deit_tiny_patch16_224:{path}") == Images(224, 10, MEAN, STD)


@torch.no_grad()
def test_another_image_size_and_other_classes_are_adapted_to(tmp_path):
    theirs = timm_network("deit_tiny_patch16_224", img_size=32, num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    found = load_pretrained(f"deit_tiny_patch16_224:{tmp_path / 'weights.pth'}", images(64, 5))
    assert not found.has_classifier
    assert found.network(random_images(1, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("deit_tyni_patch16_224", "neither a file nor a model of timm; did you mean deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224:gone.pth", "gone.pth: no such file"),
        ("asdfghjkl", "it must be a model of timm"),
    ],
)
def test_a_source_that_is_not_there_is_named(source, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(source, images())


def test_a_file_of_another_network_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm_network("vit_tiny_patch16_224", img_size=32, depth=2).state_dict(), path)
    with pytest.raises(UserError, match="does not hold the weights of deit_tiny_patch16_224"):
        load_pretrained(f"deit_tiny_patch16_224:{path}", images())
    with pytest.raises(UserError, match="does not say its architecture; of timm's weights"):
        load_pretrained(str(path), images())


# Our files


@torch.no_grad()
@pytest.mark.parametrize(
    "text", [str(NETWORK), "p8-e30-token-h4q96m64-h2q48m48-id-h3q36m64", "vit8-e32-mean-h4q96m64x2"]
)
def test_a_checkpoint_of_ours_gives_its_own_logits(text, tmp_path):
    network = randomise(VisionTransformer(Architecture.parse(text), 10, 32))
    path = tmp_path / "epoch_1_ckpt.pth.tar"
    state = {"model": network.state_dict(), "architecture": text, "num_classes": 10, "image_size": 32}
    torch.save(state | {"mean": [0.5] * 3, "std": [0.5] * 3}, path)
    found = load_pretrained(str(path), images(mean=[0.5] * 3, std=[0.5] * 3))
    batch = random_images(3, 32)
    assert found.network.architecture.family == "vit"
    assert close(found.network(batch), network(batch))
    assert native_images(str(path)).size == 32
    # In the run's own normalisation, the same pixels give the same.
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    again = load_pretrained(str(path), images())
    assert close(again.network(((batch * 0.5 + 0.5) - mean) / std), network(batch))


def test_a_network_of_ours_that_is_no_plain_one_is_refused(tmp_path):
    text = "p8-e32-mean-h4q96m64x2"
    network = VisionTransformer(Architecture.parse(text), 10, 32)
    torch.save({"model": network.state_dict(), "architecture": text}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="beside a class token"):
        load_pretrained(str(tmp_path / "a.pth"), images())


# Importance


@torch.no_grad()
@pytest.mark.parametrize("score", SCORES)
def test_the_reordered_network_gives_the_same_logits(network, labelled, score):
    scores = score_parts(network, *labelled, score)
    result = reordered(network, scores)
    assert close(result(labelled[0]), network(labelled[0]))
    again = score_parts(result, *labelled, score)
    for values in (again.embed, *again.heads, *again.mlp):
        assert (values.diff() <= 1e-6 * values.max()).all(), "descending"


@pytest.mark.parametrize("score", SCORES)
def test_a_part_that_does_nothing_is_the_least_important(network, labelled, score):
    dead = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in dead.named_parameters():
            if name.endswith("mlp.fc1.weight") or name.endswith("mlp.fc1.bias"):
                parameter[5] = 0
            if name.endswith("mlp.fc2.weight"):
                parameter[:, 5] = 0
        # The second head of the first block.
        block = dead.blocks[0]
        block.attn.proj.weight[:, 8:16] = 0
        rows = block.attn.qkv.weight.view(3, 4, 8, 32)
        rows[:, 1] = 0
        block.attn.qkv.bias.view(3, 4, 8)[:, 1] = 0
    scores = score_parts(dead, *labelled, score)
    assert scores.heads[0].argmin() == 1
    assert [values.argmin().item() for values in scores.mlp] == [5, 5, 5]


def test_taylor_says_what_the_loss_would_change_to_first_order(network):
    """Of one image: the score of a unit is the derivative of the loss by a factor before it."""
    image, label = random_images(1, 32), torch.tensor([3])
    scores = score_parts(network, image, label, "taylor")
    units = torch.ones(64, requires_grad=True)
    handle = network.blocks[2].mlp.fc2.register_forward_pre_hook(lambda layer, args: (args[0] * units,))
    try:
        nn.functional.cross_entropy(network(image), label).backward()
    finally:
        handle.remove()
        network.zero_grad(set_to_none=True)
    assert torch.allclose(scores.mlp[2].float(), units.grad.abs(), rtol=1e-4, atol=1e-7)


def test_activations_are_of_all_tokens_in_the_last_block_too(network, labelled):
    """Not of the class token alone, though nothing else is read: heads and units are compared over all blocks."""
    seen = []
    handle = network.blocks[2].mlp.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.forward_features(labelled[0])
    handle.remove()
    scores = score_parts(network, *labelled, "activation")
    torch.testing.assert_close(scores.mlp[2].float(), seen[0].abs().sum(dim=(0, 1)))


def test_every_score_that_the_configuration_offers_has_its_rule():
    assert set(SCORES) == set(_RULES)


def test_an_unknown_score_is_refused(network, labelled):
    with pytest.raises(UserError, match="score: found 'size'; it must be taylor or activation or magnitude"):
        score_parts(network, *labelled, "size")


@torch.no_grad()
def test_blocks_are_ordered_by_what_the_network_loses_without_them(network, labelled):
    lazy = copy.deepcopy(network)
    for layer in (lazy.blocks[1].attn.proj, lazy.blocks[1].mlp.fc2):
        layer.weight.mul_(0.01)
        layer.bias.mul_(0.01)
    order = order_blocks(lazy, labelled[0])
    assert order[-1] == 1
    assert sorted(order) == [0, 1, 2]
    assert len(lazy.blocks) == 3


def test_a_fitted_classifier_knows_its_images(network, labelled):
    fresh = copy.deepcopy(network)
    nn.init.zeros_(fresh.head.weight)
    top1 = fit_classifier(fresh, [labelled], decay=1e-6)
    with torch.no_grad():
        measured = 100 * (fresh(labelled[0]).argmax(1) == labelled[1]).double().mean().item()
    assert top1 == pytest.approx(measured)
    assert top1 > 60


# Pruning


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_pruned_network_meets_the_budget_and_spends_it(network, labelled, share):
    budget = int(share * NETWORK.macs(32, 10))
    pruned = prune(network, score_parts(network, *labelled), budget)
    assert 0.9 * budget < pruned.architecture.macs(32, 10) <= budget
    with torch.no_grad():
        assert pruned(labelled[0]).shape == (48, 10)


def test_pruning_keeps_the_most_important_units_over_all_blocks():
    scores = Importances(
        torch.arange(32.0),
        [torch.arange(heads) + 10.0 * i for i, heads in enumerate((4, 2, 4))],
        [torch.arange(units) + 100.0 * i for i, units in enumerate((64, 48, 64))],
    )
    left = pruned_architecture(NETWORK, scores, NETWORK.macs(32, 10) // 2, 32, 10)
    # The last block's are all more important than the first one's.
    assert left.blocks[2].heads == 4
    assert left.blocks[2].mlp_dim == 64
    assert left.blocks[0].mlp_dim < left.blocks[1].mlp_dim


@torch.no_grad()
def test_what_is_cut_is_the_beginning_of_every_dimension(network):
    wanted = Architecture.parse("vit8-e16-token-h2q48m32-h1q24m48-h4q96m8")
    result = cut(network, wanted)
    assert torch.equal(result.head.weight, network.head.weight[:, :16])
    rows, whole = (each.blocks[0].attn.qkv.weight for each in (result, network))
    assert torch.equal(rows.view(3, 16, 16), whole.view(3, 32, 32)[:, :16, :16])
    assert torch.equal(result.blocks[2].mlp.fc1.weight, network.blocks[2].mlp.fc1.weight[:8, :16])


@pytest.mark.parametrize(("macs", "message"), [(10**9, "the budget must be less"), (1000, "at least")])
def test_a_budget_that_cannot_be_met_is_refused(network, labelled, macs, message):
    with pytest.raises(UserError, match=message):
        prune(network, score_parts(network, *labelled), macs)


def test_a_supernet_adopts_its_own_network_alone(network):
    supernet = SuperNet(ElasticSpace(NETWORK, (0, 1, 2), Shares()), 10, 32)
    with pytest.raises(UserError, match="not the network that this supernet's space is of"):
        supernet.adopt(VisionTransformer(Architecture.parse("vit8-e32-token-h4q96m64x3"), 10, 32))
    with pytest.raises(UserError, match="cut the heads"):
        SuperNet(ElasticSpace(NETWORK, (0, 1, 2), Shares()), 10, 32, "cyclic")


@torch.no_grad()
@pytest.mark.parametrize("sharing", ["ordinal", "bilateral"])
def test_every_member_of_the_supernet_is_a_dense_network_with_its_logits(network, sharing):
    space = ElasticSpace(NETWORK, (2, 0, 1), Shares((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.3, 0.6, 1.0)))
    supernet = SuperNet(space, 10, 32, sharing).eval()
    supernet.adopt(network)
    batch = random_images(2, 32)
    for member in {space.decode(genome) for genome in space.sample_genomes(np.random.default_rng(0), 30)}:
        for side in supernet.scheme.scoring_sides:
            assert close(supernet.extract(member, side)(batch), supernet(batch, member, side))

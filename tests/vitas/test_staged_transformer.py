"""The staged transformer: its weights and outputs against the released one, its costs, and how it is made."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vitas.conftest import REFERENCE, UNEVEN, random_images
from vitas import Genotype, GenotypeSpace, StagedTransformer, create_model
from vitas.errors import UserError


@torch.inference_mode()
def test_released_weights_give_the_released_features_and_logits(released_asvit, asvit_images, asvit_arrays):
    network = released_asvit
    for outputs, name in ((network.forward_features(asvit_images), "features"), (network(asvit_images), "logits")):
        expected = torch.from_numpy(asvit_arrays[name])
        torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_counted_parameters_are_those_of_the_built_network():
    rng = np.random.default_rng(0)
    space = GenotypeSpace()
    for _ in range(20):
        grown = space.sample(rng).to_dict() | {"hidden_dim": int(rng.integers(8, 40))}
        grown["stages"] = [stage | {"layers": int(rng.integers(1, 4))} for stage in grown["stages"]]
        genotype, num_classes = Genotype.from_dict(grown), int(rng.integers(1, 50))
        with torch.device("meta"):
            network = StagedTransformer(genotype, num_classes, 64)
        assert genotype.parameters(64, num_classes) == sum(p.numel() for p in network.parameters())


def test_counted_parameters_know_the_limit_of_the_width():
    genotype = Genotype.parse("8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180")
    with torch.device("meta"):
        network = create_model(genotype)
    assert network.norm.weight.numel() == 1024
    assert genotype.parameters() == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("image_size", [32, 64, 96])
@pytest.mark.parametrize("genotype", [REFERENCE, str(UNEVEN), "8,8,3|4,4,2|4,2,4|4,1,6|32"])
def test_counted_macs_are_torchs(genotype, image_size):
    """torch counts products of matrices and convolutions, at two FLOPs a MAC; like `macs`, no norm, GELU or softmax."""
    genotype = Genotype.parse(genotype)
    network = create_model(genotype, 7, image_size).eval()
    # Fused attention is not counted on every device; its mathematical form is two matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(random_images(1, image_size))
    assert genotype.macs(image_size, 7) == counter.get_total_flops() / 2


def test_windows_keep_to_themselves(uneven):
    """A pixel reaches no token of another window in the first stage, and every token of its own."""
    genotype = Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16")
    network = StagedTransformer(genotype, 5, 32).eval()
    tokens = []
    network.layers[0].downsample.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0]))
    images = random_images(1, 32)
    changed = images.clone()
    changed[..., 17, 3] += 1  # In the lower left window: rows 16 to 31, columns 0 to 15.
    with torch.inference_mode():
        network(images), network(changed)
    differs = (tokens[0] != tokens[1]).any(dim=-1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :4] = True
    assert torch.equal(differs, expected)


def test_one_set_of_weights_serves_every_image_size_that_fits(uneven):
    other = StagedTransformer(UNEVEN, 5, 64)
    other.load_state_dict(uneven.state_dict())
    images = random_images(2, 64)
    with torch.inference_mode():
        assert torch.equal(other.eval()(images), uneven.eval()(images))


def test_stochastic_depth_grows_over_all_blocks_and_acts_on_whole_images():
    network = StagedTransformer(UNEVEN, 5, 32, drop_path_rate=0.8)
    rates = [block.drop_path.drop_prob for stage in network.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    block = network.layers[1].blocks[1]
    tokens = torch.randn(64, 4, 4, 18)
    with torch.no_grad():
        moved = (block(tokens) != tokens).flatten(2).any(dim=2)
        assert torch.equal(moved.any(dim=1), moved.all(dim=1))
        assert 0 < moved.any(dim=1).sum() < 64
        block.eval()
        assert torch.equal(block(tokens), block(tokens))


def test_weights_begin_as_released():
    torch.manual_seed(0)
    network = StagedTransformer(Genotype.parse(REFERENCE), 10, 64)
    for name, parameter in network.named_parameters():
        if name.startswith("patch_embed.proj"):
            # The convolution's own default: uniform up to 1 / sqrt(3 * 4 * 4).
            assert 0.1 < parameter.abs().max() <= 48**-0.5
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2)
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
    assert network.no_weight_decay() == set()


@pytest.mark.parametrize("what", [REFERENCE, Genotype.parse(REFERENCE)])
def test_create_model_takes_a_genotype_or_its_text(what):
    network = create_model(what, num_classes=5, image_size=32, drop_path_rate=0.1)
    assert isinstance(network, StagedTransformer)
    assert (network.architecture, network.num_classes, network.image_size) == (Genotype.parse(REFERENCE), 5, 32)
    assert network.layers[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


def test_an_image_size_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"image size 50 does not fit .* 32 and 64"):
        create_model(REFERENCE, image_size=50)

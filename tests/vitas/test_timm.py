"""The networks in timm: registered by `import vitas.timm`, and with the attributes and methods of timm's own."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader, create_transform
from timm.data import resolve_model_data_config as data_config_of
from timm.optim import param_groups_layer_decay
from timm.utils import AverageMeter, accuracy
from torch import nn

import vitas
from tests.processes import ENVIRONMENT, REPOSITORY
from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, VisionTransformer, released, zoo
from vitas.catalog import Found, write_found
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.distributed import World
from vitas.errors import UserError
from vitas.evaluate import evaluate
from vitas.models import vision_transformer
from vitas.timm import TimmVisionTransformer

PUBLISHED = ["vitas_a", "vitas_b", "vitas_c", "vitas_e", "vitas_f"]
# Identities at the front, between blocks and at the end.
TEXT = "p8-e20-token-id-h2q18m30-id-h3q36m10-h1q18m12-id"


def small(text: str = TEXT, seed: int = 0, **kwargs) -> TimmVisionTransformer:
    """A network made by timm, with weights that all matter."""
    network = timm.create_model("vitas", architecture=text, **({"img_size": 32, "num_classes": 10} | kwargs))
    return randomise(network, seed)


# Registration


def run_python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_vitas_alone_loads_neither_timm_nor_torch():
    run_python("import sys, vitas\nvitas.zoo()\nassert not {'timm', 'torch'} & set(sys.modules)\n")


def test_whatever_is_imported_first_timm_knows_the_networks():
    """Each order in a process of its own, forked where torch is loaded already."""
    orders = {
        "timm first": "import timm, vitas.timm",
        "vitas.timm first, and both again": (
            "import vitas.timm, timm, importlib; importlib.reload(timm); importlib.reload(vitas.timm)"
        ),
        "the networks of vitas first": "import vitas; vitas.VisionTransformer; import vitas.timm, timm",
        "registering first": f"import vitas; vitas.register('vitas_mine', {TEXT!r}); import timm",
    }
    out = run_python(
        "import json, os, sys, traceback, warnings\n"
        "import torch, torchvision\n"
        "children = []\n"
        f"for name, order in {orders!r}.items():\n"
        "    children.append(os.fork())\n"
        "    if children[-1]:\n"
        "        continue\n"
        "    try:\n"
        "        warnings.simplefilter('error', UserWarning)\n"
        "        exec(order)\n"
        "        timm = sys.modules['timm']\n"
        "        models = timm.list_models('vitas*')\n"
        "        network = timm.create_model('vitas', architecture='p8-e20-token-h2q18m30', img_size=16)\n"
        # One write: with PYTHONUNBUFFERED, print writes the line's end by itself, and the children's lines mix.
        "        os.write(1, json.dumps([name, models, type(network).__name__]).encode() + b'\\n')\n"
        "    except BaseException:\n"
        "        traceback.print_exc()\n"
        "    os._exit(0)\n"
        "for child in children:\n"
        "    os.waitpid(child, 0)\n"
    )
    seen = {name: (models, kind) for name, models, kind in map(json.loads, out.splitlines())}
    assert set(seen) == set(orders), out
    for name, (models, kind) in seen.items():
        mine = ["vitas_mine"] if name == "registering first" else []
        assert models == ["vitas", *PUBLISHED, *mine], name
        assert kind == "TimmVisionTransformer"


def test_timm_lists_the_published_networks_but_those_that_are_its_own():
    assert set(PUBLISHED) == {name for name in zoo() if name.startswith("vitas")}
    assert set(PUBLISHED) <= set(timm.list_models("vitas*"))
    assert not timm.is_model("deit_tiny")
    assert timm.list_models("vitas*", pretrained=True) == []
    for name in PUBLISHED:
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.architecture, cfg.num_classes, cfg.input_size) == (name, 1000, (3, 224, 224))
        assert (cfg.interpolation, cfg.crop_pct, cfg.fixed_input_size) == ("bicubic", 0.875, True)
        assert (cfg.mean, cfg.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        assert (cfg.first_conv, cfg.classifier) == ("patch_embed.proj", "head")
        assert (cfg.paper_ids, cfg.license, cfg.has_weights) == ("arXiv:2106.13700", "mit", None)


def test_the_names_of_models_are_no_names_of_the_module():
    namespace = {}
    exec("from vitas.timm import *", namespace)
    assert {"TimmVisionTransformer", "register"} <= set(namespace)
    assert not {"vitas", *PUBLISHED} & set(namespace)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_in_timm_is_the_network_of_that_name(name, monkeypatch):
    # Layers keep the weights that torch gives them, which takes less long.
    monkeypatch.setattr(vision_transformer, "init_weights", lambda network: None)
    network = timm.create_model(name, num_classes=10, img_size=32, drop_path_rate=0.1)
    ours = VisionTransformer(zoo()[name], 10, 32, drop_path_rate=0.1)
    assert type(network) is TimmVisionTransformer
    assert network.architecture == zoo()[name]
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert [b.drop_path.drop_prob for b in network.blocks] == [b.drop_path.drop_prob for b in ours.blocks]
    ours.load_state_dict(network.state_dict())
    images = random_images(3, 32)
    with torch.inference_mode():
        # To rounding: ours computes the class token alone in the last block, timm's users see all tokens there.
        torch.testing.assert_close(network.eval()(images), ours.eval()(images))


def test_a_network_says_of_itself_what_timms_do():
    network = timm.create_model("vitas_c")
    assert network.pretrained_cfg is network.default_cfg
    assert (network.pretrained_cfg["architecture"], network.pretrained_cfg["input_size"]) == ("vitas_c", (3, 224, 224))
    assert (network.num_classes, network.num_prefix_tokens, network.global_pool) == (1000, 1, "token")
    assert network.num_features == network.head_hidden_size == network.embed_dim == 230
    assert network.get_classifier() is network.head
    assert network.feature_info[-1] == {"module": "blocks.11", "num_chs": 230, "reduction": 16}
    assert dict(network.named_modules()).keys() >= {entry["module"] for entry in network.feature_info}


@pytest.mark.parametrize("what", [TEXT, Architecture.parse(TEXT), "vitas_a"])
def test_the_generic_entry_point_takes_any_architecture(what):
    network = timm.create_model("vitas", architecture=what, num_classes=4, img_size=32, in_chans=1, drop_rate=0.2)
    assert network.architecture == (zoo()["vitas_a"] if what == "vitas_a" else Architecture.parse(TEXT))
    assert (network.image_size, network.in_chans, network.head_drop.p) == (32, 1, 0.2)
    assert network(random_images(2, 32, 1)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "arguments", "fragment"),
    [
        ("vitas", {}, r"vitas: say which network, as architecture="),
        ("vitas", {"architecture": "resnet"}, "no architecture is named 'resnet'"),
        ("vitas", {"architecture": "asvit_small"}, "vitas: found the genotype 8,2,3,3"),
        ("vitas", {"architecture": "p30-e20-token-h2q18m30"}, "patch size 30 does not divide the image size 224"),
        ("vitas_c", {"pretrained": True}, "vitas_c: pretrained=True, but there are no weights.*checkpoint_path="),
        ("vitas_c", {"global_pool": "max"}, "global_pool: found 'max'; it must be token, avg or ''"),
        ("vitas_c", {"img_size": (224, 192)}, r"img_size: found \(224, 192\)"),
    ],
)
def test_what_cannot_be_made_is_refused_in_our_words(name, arguments, fragment):
    with pytest.raises(UserError, match=fragment):
        timm.create_model(name, **arguments)


def test_an_architecture_is_registered_from_itself_its_text_or_a_searchs_file(tmp_path):
    path = tmp_path / "architectures.yaml"
    other = Architecture.parse("p8-e20-mean-h2q18m30")
    write_found(path, [Found("subnet_1", other, {}), Found("subnet_2", Architecture.parse(TEXT), {})])
    for what in (TEXT, Architecture.parse(TEXT), f"{path}:subnet_2"):
        vitas.register("vitas_of_a_file", what)
    assert timm.create_model("vitas_of_a_file", img_size=16).architecture == Architecture.parse(TEXT)
    assert timm.get_pretrained_cfg("vitas_of_a_file").license is None
    with pytest.raises(UserError, match=r"architectures\.yaml holds subnet_1, subnet_2; name one of them"):
        vitas.register("vitas_of_several", str(path))
    with pytest.raises(UserError, match="vitas_of_a_genotype: found the genotype"):
        vitas.register("vitas_of_a_genotype", "asvit_small")
    assert not {"vitas_of_several", "vitas_of_a_genotype"} & set(timm.list_models())


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("resnet50", "name: found 'resnet50', which timm has already for another network"),
        ("vitas_c", "name: found 'vitas_c', which timm has already for p16-e230-token-h3q432m720x12"),
        ("vitas", "name: found 'vitas', which timm has already"),
        ("vitas.mine", "name: found 'vitas.mine'; a name in timm is a word"),
        ("my net", "name: found 'my net'"),
        ("", "name: found ''"),
    ],
)
def test_a_name_that_is_taken_or_no_word_is_refused(name, fragment):
    resnet = timm.model_entrypoint("resnet50")
    with pytest.raises(UserError, match=fragment):
        vitas.register(name, TEXT)
    assert timm.model_entrypoint("resnet50") is resnet


# What timm's tools ask of a network


@pytest.mark.parametrize("classifier", ["token", "mean"])
def test_the_head_reads_the_features(classifier):
    network = small(TEXT.replace("token", classifier))
    images = random_images(3, 32)
    with torch.inference_mode():
        tokens = network.forward_features(images)
        read = network.forward_head(tokens, pre_logits=True)
        assert tokens.shape == (3, 17, 20)
        assert torch.equal(read, tokens[:, 0] if classifier == "token" else tokens[:, 1:].mean(dim=1))
        assert torch.equal(network.forward_head(tokens), network.head(read))
        assert torch.equal(network(images), network.head(read))


@pytest.mark.parametrize("classifier", ["token", "mean"])
@torch.inference_mode()
def test_a_plain_network_has_a_class_token_only_where_it_is_read(classifier):
    text = f"vit8-e20-{classifier}-h2q24m30x3"
    network, images = small(text), random_images(3, 32)
    prefix = 1 if classifier == "token" else 0
    again = VisionTransformer(Architecture.parse(text), 10, 32).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(images), again(images), atol=1e-5, rtol=1e-5)
    assert network.num_prefix_tokens == prefix
    assert network.forward_features(images).shape == (3, 16 + prefix, 20)
    patches, class_token = network.forward_intermediates(images, 1, return_prefix_tokens=True)[1][0]
    assert (patches.shape, class_token.shape) == ((3, 20, 4, 4), (3, prefix, 20))
    network.set_token_reduction(2)
    assert network.forward_features(images).shape == (3, 4 + prefix, 20)
    # Another pooling would be another network: no architecture says a class token that is not read.
    network.reset_classifier(5, "avg")
    assert network.architecture == (None if prefix else Architecture.parse(text))


@torch.inference_mode()
def test_a_reset_classifier_is_fresh_and_the_architecture_stays_true():
    network = small().double()
    images = random_images(3, 32).double()
    tokens = network.forward_features(images)
    network.reset_classifier(7, "avg")
    assert network.architecture == Architecture.parse(TEXT.replace("token", "mean"))
    assert (network.num_classes, network.head.weight.shape, network.head.weight.dtype) == (7, (7, 20), torch.float64)
    assert not network.head.bias.any()
    assert 0.01 < network.head.weight.std() < 0.03
    assert torch.equal(network(images), network.head(tokens[:, 1:].mean(dim=1)))
    again = VisionTransformer(network.architecture, 7, 32).double().eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(network(images), again(images))

    network.reset_classifier(0)
    assert (network.num_classes, network.architecture.classifier) == (0, "mean")
    assert torch.equal(network(images), tokens[:, 1:].mean(dim=1))
    network.reset_classifier(5, "")
    assert network.architecture is None
    assert torch.equal(network(images), network.head(tokens))
    network.reset_classifier(5, "token")
    assert network.architecture == Architecture.parse(TEXT)
    with pytest.raises(UserError, match="global_pool: found 'mean'"):
        network.reset_classifier(5, "mean")


@torch.inference_mode()
def test_what_pools_nothing_takes_coarser_tokens_too():
    network = small()
    network.set_token_reduction(2)
    tokens = network.forward_features(random_images(3, 32))
    network.reset_classifier(5, "")
    assert torch.equal(network.forward_features(random_images(3, 32)), tokens)


@pytest.mark.filterwarnings("error")
def test_global_pool_and_no_classes_can_be_asked_for_at_once():
    network = small(global_pool="avg", num_classes=0)
    assert (network.architecture.classifier, network.num_classes) == ("mean", 0)
    assert "head.weight" not in network.state_dict()
    assert network(random_images(3, 32)).shape == (3, 20)


def block_outputs(network: TimmVisionTransformer, images: torch.Tensor) -> list[torch.Tensor]:
    seen = []
    hooks = [block.register_forward_hook(lambda m, i, out: seen.append(out)) for block in network.blocks]
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2]), (2, [1, 2]), ([0], [0]), ((-1, 0), [0, 2]), (1, [2])]
)
@torch.inference_mode()
def test_intermediates_are_the_outputs_of_blocks(indices, taken):
    network, images = small(), random_images(3, 32)
    outputs = [block_outputs(network, images)[i] for i in taken]
    last, grids = network.forward_intermediates(images, indices)
    assert torch.equal(last, network.forward_features(images))
    for grid, output in zip(grids, outputs, strict=True):
        assert grid.shape == (3, 20, 4, 4)
        # Patch 6 is the third of the second row.
        assert torch.equal(grid[:, :, 1, 2], output[:, 1 + 6])
    for norm in (False, True):
        pairs = network.forward_intermediates(
            images, indices, return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
        )
        for (patches, class_token), output in zip(pairs, outputs, strict=True):
            assert torch.equal(torch.cat([class_token, patches], dim=1), network.norm(output) if norm else output)
    for tokens, output in zip(network.get_intermediate_layers(images, taken), outputs, strict=True):
        assert torch.equal(tokens, output[:, 1:])


@torch.inference_mode()
def test_stopping_early_runs_no_later_block():
    network, images = small(), random_images(3, 32)
    network.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 ran"))
    last, (grid,) = network.forward_intermediates(images, [1], stop_early=True)
    tokens = grid.flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.norm(tokens), last[:, 1:], atol=0, rtol=0)


@pytest.mark.parametrize("indices", [[3], [-4], 4, 0, []])
def test_a_block_that_there_is_not_is_refused(indices):
    with pytest.raises(UserError, match=r"indices: found .*; this network has 3 blocks"):
        small().forward_intermediates(random_images(3, 32), indices)


@pytest.mark.parametrize("out_indices", [None, (0, 2), [-2], 1])
@torch.inference_mode()
def test_features_only_gives_the_grids_of_blocks(out_indices):
    network, images = small(), random_images(3, 32)
    features = small(features_only=True, out_indices=out_indices)
    features.model.load_state_dict(network.state_dict(), strict=False)
    expected = network.forward_intermediates(images, 3 if out_indices is None else out_indices, intermediates_only=True)
    found = features(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert features.feature_info.channels() == [20] * len(expected)
    assert features.feature_info.reduction() == [8] * len(expected)
    assert features.model.architecture is None
    assert len(features.model.blocks) == (2 if out_indices == [-2] else 3)
    assert data_config_of(features)["input_size"] == (3, 32, 32)


@torch.inference_mode()
def test_a_pruned_network_is_that_of_its_architecture():
    network, images = small(), random_images(3, 32)
    tokens = block_outputs(network, images)[1]
    assert network.prune_intermediate_layers([0, -2], prune_head=False) == [0, 1]
    assert str(network.architecture) == "p8-e20-token-id-h2q18m30-id-h3q36m10"
    again = VisionTransformer(network.architecture, 10, 32).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(images), network(images), atol=1e-5, rtol=1e-5)
    assert torch.equal(network(images), network.head(network.norm(tokens)[:, 0]))
    network.prune_intermediate_layers(prune_norm=True, prune_head=False)
    assert network.architecture is None
    assert torch.equal(network(images), network.head(tokens[:, 0]))


def test_gradient_checkpointing_computes_blocks_again_and_changes_no_gradient():
    runs = {}
    for enable in (False, True):
        network = small(drop_path_rate=0.5).train()
        network.set_grad_checkpointing(enable)
        calls = []
        network.blocks[1].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        network(random_images(8, 32)).square().sum().backward()
        runs[enable] = (len(calls), [p.grad for p in network.parameters()])
    assert (runs[False][0], runs[True][0]) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(runs[False][1], runs[True][1], strict=True))


def test_layer_decay_goes_by_depth():
    network = small()
    groups = param_groups_layer_decay(
        network, weight_decay=0.05, no_weight_decay_list=network.no_weight_decay(), layer_decay=0.5
    )
    of = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    found = {name: of[id(p)] for name, p in network.named_parameters()}
    scales = {"cls_token": 1 / 16, "pos_embed": 1 / 16, "patch_embed": 1 / 16, "norm": 1 / 2, "head": 1}
    scales |= {f"blocks.{i}": 2.0 ** (i - 3) for i in range(3)}
    for name, (scale, decay) in found.items():
        (expected,) = (s for start, s in scales.items() if name == start or name.startswith(f"{start}."))
        assert scale == expected, name
        assert decay == (0.05 if name.endswith("weight") and "norm" not in name else 0), name


def test_a_network_made_by_timm_can_be_exported_with_any_batch():
    network = small()
    network.reset_classifier(4, "avg")
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (random_images(3, 32),), dynamic_shapes=({0: batch},))
    images = random_images(5, 32)
    torch.testing.assert_close(program.module()(images), network(images))


# Weights


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run, and the network that it holds."""
    network = small(seed=7)
    folder = CheckpointFolder(tmp_path)
    folder.save_epoch({"epoch": 1, "step": 3, "model": network.state_dict(), "ema": None, "optimizer": {}})
    return folder.epoch_path(1), network


@pytest.mark.parametrize("kind", ["run", "plain", "DistributedDataParallel"])
def test_a_checkpoint_gives_its_logits(checkpoint, kind, tmp_path):
    path, network = checkpoint
    if kind != "run":
        prefix = "" if kind == "plain" else "module."
        path = tmp_path / "weights.pth"
        torch.save({prefix + name: value for name, value in network.state_dict().items()}, path)
    found = timm.create_model("vitas", architecture=TEXT, img_size=32, num_classes=10, checkpoint_path=path).eval()
    overlay = {"file": str(path), "num_classes": 10}
    other = timm.create_model("vitas", True, architecture=TEXT, img_size=32, pretrained_cfg_overlay=overlay).eval()
    images = random_images(3, 32)
    with torch.inference_mode():
        assert torch.equal(found(images), network(images))
        assert torch.equal(other(images), network(images))


@pytest.mark.parametrize("how", ["checkpoint_path", "file", "a copy"])
def test_a_released_file_gives_the_released_logits(reference, how):
    path = str(reference / "vitas_tiny.pth")
    architecture, num_classes = released.read_model(json.loads((reference / "vitas_tiny.json").read_text())["model"])
    arguments = {"architecture": str(architecture), "num_classes": num_classes}
    if how == "checkpoint_path":
        network = timm.create_model("vitas", checkpoint_path=path, **arguments)
    elif how == "file":
        overlay = {"file": path, "num_classes": num_classes}
        network = timm.create_model("vitas", True, pretrained_cfg_overlay=overlay, **arguments)
    else:
        # As in timm's ModelEma, and wrapped.
        network = copy.deepcopy(timm.create_model("vitas", **arguments))
        network = pickle.loads(pickle.dumps(network))
        weights = torch.load(path, weights_only=True)["model"]
        nn.Sequential(network).load_state_dict({f"0.{key}": value for key, value in weights.items()})
    arrays = np.load(reference / "vitas_tiny.npz")
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(arrays["image"]).float())
    torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), atol=1e-4, rtol=0)


def test_weights_go_to_another_size_other_channels_and_other_classes(checkpoint):
    path, network = checkpoint
    overlay = {"file": str(path), "num_classes": 10, "input_size": (3, 32, 32)}
    arguments = {"architecture": TEXT, "pretrained_cfg_overlay": overlay}
    larger = timm.create_model("vitas", True, img_size=64, **arguments)
    assert larger.pos_embed.shape == (1, 65, 20)
    assert torch.equal(larger.pos_embed[:, 0], network.pos_embed[:, 0])
    grid = F.interpolate(
        network.pos_embed[:, 1:].transpose(1, 2).unflatten(-1, (4, 4)), size=8, mode="bicubic", antialias=True
    )
    torch.testing.assert_close(larger.pos_embed[:, 1:], grid.flatten(2).transpose(1, 2))
    assert data_config_of(larger)["input_size"] == (3, 64, 64)
    assert larger.eval()(random_images(2, 64)).shape == (2, 10)

    grey = timm.create_model("vitas", True, in_chans=1, num_classes=4, **arguments)
    torch.testing.assert_close(grey.patch_embed.proj.weight, network.patch_embed.proj.weight.sum(1, keepdim=True))
    assert torch.equal(grey.norm.weight, network.norm.weight)
    assert grey.eval()(random_images(2, 32, 1)).shape == (2, 4)


class Code:
    def __reduce__(self):
        return (exec, ("import sys; sys.modules['code_of_a_file_ran'] = sys",))


def test_code_in_a_file_never_runs(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": small().state_dict(), "more": Code()}, path)
    for arguments in (
        {"checkpoint_path": str(path)},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}},
    ):
        with pytest.raises(RuntimeError, match="weights_only=True blocked"):
            timm.create_model("vitas", architecture=TEXT, img_size=32, num_classes=10, **arguments)
    assert "code_of_a_file_ran" not in sys.modules


def test_weights_of_another_network_are_refused(checkpoint):
    path, _ = checkpoint
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks\.0"):
        timm.create_model(
            "vitas", architecture=TEXT.replace("q18", "q24"), img_size=32, num_classes=10, checkpoint_path=path
        )


def test_timms_own_export_is_read_back(tmp_path):
    from timm.models import save_for_hf

    text = TEXT.replace("token", "mean")
    network = small(text)
    # timm before 1.0.31 does not remember the arguments that a network was made with.
    arguments = {"architecture": text, "img_size": 32}
    save_for_hf(network, tmp_path / "folder", model_args=arguments, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(again(random_images(3, 32)), network(random_images(3, 32)))


# timm's data and evaluation


def test_the_transform_of_a_network_is_of_its_size():
    config = data_config_of(timm.create_model("vitas_a"))
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bicubic")
    network = small(img_size=48)
    image = create_transform(**data_config_of(network))(_grey_image(100, 60))
    assert network(image[None]).shape == (1, 10)


def _grey_image(width: int, height: int):
    from PIL import Image

    return Image.new("RGB", (width, height), (128, 128, 128))


MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.25]


@pytest.fixture(scope="module")
def trained(digits) -> VisionTransformer:
    """A registered network, trained on the digits for a second or two."""
    vitas.register("vitas_digits", "p8-e32-mean-h2q96m64-id-h4q48m64")
    torch.manual_seed(0)
    network = timm.create_model("vitas_digits", num_classes=10, img_size=32)
    settings = EvaluationData(data_dir=str(digits / "train"), workers=0, crop_fraction=1.0)
    train = EvaluationSet.load(settings, 32, MEAN, STD, World(), everything=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3)
    for _ in range(8):
        for part in torch.randperm(len(train.images)).split(64):
            images = (train.images[part].float() / 255 - train.mean) / train.std
            optimizer.zero_grad()
            F.cross_entropy(network(images), train.labels[part]).backward()
            optimizer.step()
    return network.eval()


def test_timms_evaluation_agrees_with_ours(trained, digits):
    """As timm's validate.py does it: its data set, its loader, its meters."""
    overrides = {"crop_pct": 1.0, "mean": MEAN, "std": STD}
    config = data_config_of(trained, overrides)
    dataset = create_dataset("", root=str(digits / "test"))
    # validate.py without a GPU: no prefetcher, so the transform normalises.
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=50,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        persistent_workers=False,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=torch.device("cpu"),
    )
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for images, labels in loader:
            logits = trained(images)
            acc1, acc5 = accuracy(logits, labels, topk=(1, 5))
            losses.update(F.cross_entropy(logits, labels).item(), len(images))
            top1.update(acc1.item(), len(images))
            top5.update(acc5.item(), len(images))
    settings = EvaluationData(data_dir=str(digits / "test"), workers=0, crop_fraction=1.0)
    ours = evaluate(trained, EvaluationSet.load(settings, 32, MEAN, STD, World(), everything=True), batch_size=64)
    assert 50 < ours.top1 < 100
    assert (top1.avg, top5.avg) == pytest.approx((ours.top1, ours.top5), abs=1e-4)
    assert losses.avg == pytest.approx(ours.loss, rel=1e-5)

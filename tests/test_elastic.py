"""From a pretrained network to a file of the budget, as users do it: each step, what is refused, the page."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

import vitas
import vitas.timm
from inference.supernet import export_supernet, inherited_network, trained_supernet
from tests.conftest import small_run
from tests.processes import kill_when, run_here, run_module
from tests.test_docs import fenced
from vitas import Architecture, config, load_supernet
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.elastic import pretrained_network
from vitas.errors import UserError
from vitas.evaluate import evaluate
from vitas.pretrained import Images, load_pretrained

NETWORK = "vit8-e32-token-h4q96m64x3"
SPACE = {"embed": [0.5, 0.75], "heads": [0.5], "mlp": [0.5], "depth": [0.67]}
BUDGET = {"minimum": 150_000, "maximum": 450_000, "convention": "true"}


def elastic_run(save_path: Path, digits: Path, source: object) -> dict:
    """The configuration of all four stages, from a pretrained network."""
    run = small_run(save_path, digits)
    run["model"] = {"image_size": 32, "num_classes": 10, "from_pretrained": str(source), "space": SPACE}
    run["model"]["importance"] = {"images": 64}
    run["search"]["distillation"] = {"teacher": "pretrained", "weight": 1.0}
    run["sample"]["budget"] = BUDGET
    run["retrain"] |= {"from_supernet": True, "distillation": {"teacher": "pretrained"}}
    run["test"]["from_supernet"] = True
    return run


def write(path: Path, run: dict) -> Path:
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def source(folder, digits) -> Path:
    """A network that was trained for a few epochs: there is none to download."""
    run = small_run(folder / "source", digits)
    run["model"] = {"image_size": 32, "num_classes": 10}
    run["retrain"] |= {"architecture": NETWORK, "epochs": 8}
    del run["search"], run["sample"]
    run_here("retrain", write(folder / "source.yaml", run))
    return folder / "source" / "retrain" / "checkpoint" / "epoch_8_ckpt.pth.tar"


@pytest.fixture(scope="module")
def path(folder, source, digits) -> Path:
    """The YAML of a run whose supernet is trained and sampled."""
    file = write(folder / "elastic.yaml", elastic_run(folder / "run", digits, source))
    (folder / "log.txt").write_text(run_here("search", file))
    return file


@pytest.fixture(scope="module")
def run(path) -> RunConfig:
    return config.load(path)


def top1_on_val(network: torch.nn.Module, run: RunConfig) -> float:
    model = run.model
    images = EvaluationSet.load(run.sample.data, model.image_size, model.mean, model.std, World(), everything=True)
    return evaluate(network, images, 64).top1


# The supernet


def test_the_prepared_network_is_the_source_in_another_order(run, source, folder):
    about = yaml.safe_load(run.folder.pretrained.read_text())
    assert about["architecture"] == NETWORK
    assert sorted(about["block_order"]) == [0, 1, 2]
    images = torch.randn(4, 3, 32, 32)
    model = run.model
    theirs = load_pretrained(str(source), Images(32, 10, model.mean, model.std)).network
    with torch.no_grad():
        assert torch.allclose(pretrained_network(run)(images), theirs(images), atol=1e-5)
    log = (folder / "log.txt").read_text()
    assert f"starts from {source}: {NETWORK}" in log
    assert "ordered by taylor on 64 train images" in log


def test_the_supernet_begins_as_the_network_and_learns(run, path, tmp_path):
    """One step at next to no rate leaves the widest subnet as it was."""
    run_here(
        "search", path, f"save_path={tmp_path}", "sample.flag=false", "search.epochs=1", "search.warmup_epochs=0",
        "search.lr=1e-12", "search.min_lr=0.0", "search.weight_decay=0.0", "search.batch_size=1000",
    )  # fmt: skip
    begun = config.load(path, [f"save_path={tmp_path}"])
    supernet, _ = trained_supernet(begun, "model")
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        whole = supernet(images, Architecture.parse(NETWORK))
        assert torch.allclose(whole, pretrained_network(begun)(images), atol=1e-5)
        trained, _ = trained_supernet(run, "model")
        assert not torch.allclose(trained(images, Architecture.parse(NETWORK)), whole, atol=1e-2)


def test_what_was_found_is_in_the_space_and_the_budget(run):
    found = yaml.safe_load(run.folder.architectures.read_text())["architectures"]
    for entry in found:
        architecture = Architecture.parse(entry["text"])
        assert architecture.family == "vit"
        run.space.encode(architecture)
        assert BUDGET["minimum"] <= architecture.macs(32, 10) <= BUDGET["maximum"]
        assert "net_id" not in entry


def test_a_budget_may_be_shares_of_the_pretrained_network(path, run, tmp_path, request):
    """Of itself, the widest member; known when it has been read."""
    vitas_command = request.getfixturevalue("vitas")
    whole = Architecture.parse(NETWORK).macs(32, 10, run.sample.budget.convention)
    shares = "sample.budget.minimum=40%", "sample.budget.maximum=70%"
    before = config.load(path, [f"save_path={tmp_path}", *shares], ("search", "sample"))
    with pytest.raises(UserError, match=r"pretrained\.yaml"):
        _ = before.budget
    after = config.load(path, shares, ("search", "sample"))
    assert (after.budget.low, after.budget.high) == (int(0.4 * whole), int(0.7 * whole))
    assert "of the widest network" in vitas_command("space", path, *shares)[1]
    code, _, err = vitas_command("space", path, f"save_path={tmp_path}", *shares)
    assert (code, "is known when `search` has read it" in err) == (2, True)


@pytest.mark.slow
def test_a_killed_search_goes_on_bit_by_bit(path, run, tmp_path):
    killed = tmp_path / "killed"
    arguments = (path, f"save_path={killed}", "search.checkpoint_steps=3")
    kill_when((killed / "search" / "pretrained.yaml").exists, "search", *arguments)
    kill_when((killed / "search" / "checkpoint" / "recent_ckpt.pth.tar").exists, "search", *arguments)
    run_here("search", *arguments)
    ours, theirs = (
        torch.load(each / "search" / "checkpoint" / "epoch_2_ckpt.pth.tar", weights_only=True)["model"]
        for each in (killed, run.folder.root)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    journals = [(each / "search" / "population.jsonl").read_text() for each in (killed, run.folder.root)]
    assert journals[0] == journals[1]


def test_another_importance_than_that_of_the_files_is_refused(path, tmp_path):
    run_here("search", path, f"save_path={tmp_path}", "sample.flag=false", "search.epochs=1", "search.warmup_epochs=0")
    with pytest.raises(SystemExit) as ended:
        run_here("search", path, f"save_path={tmp_path}", "model.importance.score=magnitude")
    assert ended.value.code == 2


def test_a_network_of_other_classes_gets_a_classifier_that_is_fitted(source, digits, tmp_path):
    state = torch.load(source, weights_only=True)
    weights = state["model"] | {"head.weight": torch.randn(4, 32), "head.bias": torch.zeros(4)}
    torch.save(state | {"model": weights, "num_classes": 4}, tmp_path / "four.pth")
    file = write(tmp_path / "four.yaml", elastic_run(tmp_path / "run", digits, tmp_path / "four.pth"))
    printed = run_here("search", file, "sample.flag=false", "search.epochs=1", "search.warmup_epochs=0")
    match = re.search(r"one is fitted to 320 train images \(top-1 ([\d.]+)%", printed)
    assert match
    assert float(match[1]) > 20


# The end without retraining


def test_a_subnet_is_tested_with_the_weights_that_it_has(path, run):
    """On the val images, `test` finds what `sample` scored."""
    val = f"test.data.data_dir={run.sample.data.data_dir}"
    for name in ("best", "subnet_2"):
        printed = run_here("inference", path, val, f"test.architecture={name}")
        results = json.loads(run.folder.results.read_text())
        entries = yaml.safe_load(run.folder.architectures.read_text())["architectures"]
        entry = entries[0 if name == "best" else 1]
        assert results["top1"] == pytest.approx(entry["top1"])
        assert results["architecture"] == entry["text"]
        assert results["from_supernet"] is True
        assert f"{entry['text']} with the weights of" in printed


def test_the_widest_and_other_subnets_can_be_given_as_text(path, run):
    run_here("inference", path, f"test.architecture={NETWORK}")
    assert json.loads(run.folder.results.read_text())["architecture"] == NETWORK


@pytest.mark.parametrize("format_name", ["onnx", "safetensors", "hf"])
def test_a_subnet_is_exported_with_the_weights_that_it_has(path, run, tmp_path, format_name):
    output = tmp_path / "out"
    run_module("inference", "export", path, "--format", format_name, "--output", output)
    network = inherited_network(run)[0]
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    if format_name == "hf":
        found = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
        assert torch.allclose(found(images), expected, atol=1e-6)
    elif format_name == "safetensors":
        again = vitas.create_model(str(network.architecture), 10, 32).eval()
        vitas.load_weights(again, output)
        assert torch.equal(again(images), expected)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(output)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert np.allclose(logits, expected.numpy(), atol=1e-4)


def test_an_exported_supernet_gives_networks_of_any_budget(path, run, tmp_path):
    printed = run_module("inference", "export", path, "--supernet", "--output", tmp_path / "supernet")
    released = load_supernet(tmp_path / "supernet")
    front = released.front
    assert f"{len(front)} networks on the front" in printed
    assert [m.macs for m in front] == sorted({m.macs for m in front})
    assert [m.top1 for m in front] == sorted({m.top1 for m in front})
    for member in front:
        network = released.best(macs=member.macs)
        assert network.architecture == member.architecture
        assert top1_on_val(network, run) == pytest.approx(member.top1)
        assert network.architecture.macs(32, 10) == member.macs
    assert released.member() == front[-1]
    assert released.member(macs=10**12, parameters=front[0].parameters) == front[0]
    assert released.class_names == tuple("0123456789")
    assert released.subnet(NETWORK)(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match=r"macs: found 1; the smallest network of this supernet's front has"):
        released.best(macs=1)
    with pytest.raises(UserError, match="embedding dim 8 is not in this space"):
        released.subnet("vit8-e8-token-h4q96m64x3")


def test_a_front_of_other_weights_is_not_exported(path, run, tmp_path):
    shutil.copytree(run.folder.root, tmp_path / "run")
    file = tmp_path / "run" / "search" / "checkpoint" / "epoch_2_ckpt.pth.tar"
    state = torch.load(file, weights_only=True)
    state["model"]["norm.bias"] += 1
    torch.save(state, file)
    other = config.load(path, [f"save_path={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="holds scores of other weights than these"):
        export_supernet(other)
    assert not other.folder.exports.joinpath("supernet").exists()


def test_a_supernet_from_scratch_is_exported_too(digits, tmp_path):
    scratch = small_run(tmp_path / "run", digits)
    scratch["model"]["sharing"] = "ordinal"
    scratch["search"] |= {"epochs": 1, "warmup_epochs": 0}
    file = write(tmp_path / "scratch.yaml", scratch)
    run_here("search", file)
    run_here("inference", file, "test.from_supernet=true")
    run_module("inference", "export", file, "--supernet")
    assert load_supernet(tmp_path / "run" / "export" / "supernet").front


def test_a_folder_that_is_no_supernet_is_refused(path, tmp_path):
    with pytest.raises(UserError, match=r"has no supernet.json; it must be a folder"):
        load_supernet(tmp_path)
    run_module("inference", "export", path, "--supernet", "--output", tmp_path / "supernet")
    (tmp_path / "supernet" / "supernet.json").write_text("{}")
    with pytest.raises(UserError, match="is not what `export --supernet` writes"):
        load_supernet(tmp_path / "supernet")


def test_fine_tuning_says_what_it_gained(path, run, tmp_path):
    printed = run_here("retrain", path, "retrain.data.workers=0")
    match = re.search(r"top-1 is ([\d.]+)%, and ([\d.]+)% with the supernet's weights: .* gained ([+-][\d.]+)", printed)
    assert match
    after, before, gain = map(float, match.groups())
    assert gain == pytest.approx(after - before, abs=0.011)
    best = yaml.safe_load(run.folder.architectures.read_text())["architectures"][0]
    assert before == pytest.approx(best["top1"], abs=0.01)
    path_of = CheckpointFolder(run.folder.checkpoints("retrain")).resolve()
    network = vitas.create_model(torch.load(path_of, weights_only=True)["architecture"], 10, 32)
    vitas.load_weights(network, path_of)
    assert after == pytest.approx(top1_on_val(network.eval(), run), abs=0.01)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.from_pretrained=null"], "model.from_pretrained: is missing; model.space says shares"),
        (["model.from_pretrained=gone.pth"], "model.from_pretrained: found 'gone.pth', which is neither a file nor"),
        (["model.from_pretrained=deit_tiny_distilled_patch16_224"], "it has a distillation token"),
        (["model.sharing=cyclic"], "model.sharing: found 'cyclic', which would cut the heads"),
        (["model.space.embed=[0.5,2]"], "model.space.embed"),
        (["model.space.keep=[blocks.7]"], "model.space.keep: found blocks.7; the network's blocks are 0 to 2"),
        (["model.space.embd=[0.5]"], "model.space.embd: unknown key; did you mean embed?"),
        (
            ["model.space={patch_sizes: [8], embed_dim: 8, depth: 1, heads: [1], qkv_dim: 3, mlp_dim: 8, widths: [1]}"],
            "beside model.from_pretrained it says shares",
        ),
        (["model.importance.score=size"], "model.importance.score: found 'size'; it must be"),
        (["search.subnets.draw=published"], "search.subnets.draw: found 'published', which is of ViTAS's spaces"),
        (["sample.budget={minimum: 1, maximum: 2, convention: 'true'}"], "sample.budget: no architecture of the space"),
        (["search.flag=false"], "`search` writes it; run it first"),
        (["model.image_size=30"], "patch size 8 does not divide the image size 30"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(source, digits, tmp_path, capsys, overrides, message):
    file = write(tmp_path / "a.yaml", elastic_run(tmp_path / "run", digits, source))
    with pytest.raises(SystemExit) as ended:
        run_here("search", file, *overrides)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "search" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["test.architecture=vit8-e8-token-h4q96m64x3"], "test.from_supernet: embedding dim 8 is not in this space"),
        (["test.load_name=a.pth"], "test.load_name: found 'a.pth' beside from_supernet"),
        (["model.sharing=bilateral"], "a subnet is several networks whose logits are summed"),
    ],
)
def test_a_subnet_that_cannot_be_tested_is_refused(path, capsys, overrides, message):
    with pytest.raises(SystemExit) as ended:
        run_here("inference", path, *overrides)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_teacher_that_is_not_there_is_refused(make_config, capsys):
    with pytest.raises(SystemExit):
        run_here("retrain", make_config(), "retrain.distillation={teacher: pretrained}")
    assert "found 'pretrained', but model.from_pretrained is missing" in capsys.readouterr().err


# Pruning


@pytest.fixture
def prune(vitas):
    """(arguments) -> (exit code, stdout, stderr) of `vitas prune`."""
    return partial(vitas, "prune")


def test_a_pruned_network_is_fine_tuned_from_its_file(prune, source, digits, folder, tmp_path):
    output = tmp_path / "pruned.pth"
    code, out, _ = prune(source, "--relative", "0.5", "--data", digits / "train", "--output", output, "--images", 64)
    assert code == 0
    state = torch.load(output, weights_only=True)
    macs, whole = (Architecture.parse(text).macs(32, 10) for text in (state["architecture"], NETWORK))
    assert macs <= whole / 2
    assert f"{macs:,} of {whole:,} MACs" in out
    run_here(
        "retrain", folder / "source.yaml", f"save_path={tmp_path / 'tuned'}", "retrain.architecture=null",
        f"retrain.from_checkpoint={output}", f"retrain.distillation={{teacher: {source}}}", "retrain.epochs=2",
    )  # fmt: skip
    run_here("inference", folder / "source.yaml", f"save_path={tmp_path / 'tuned'}")
    assert json.loads((tmp_path / "tuned" / "retrain" / "results.json").read_text())["macs"] == macs


def test_a_whole_network_is_written_with_a_classifier_for_other_classes(prune, source, digits, tmp_path):
    state = torch.load(source, weights_only=True)
    weights = state["model"] | {"head.weight": torch.randn(4, 32), "head.bias": torch.zeros(4)}
    torch.save(state | {"model": weights, "num_classes": 4}, tmp_path / "four.pth")
    output = tmp_path / "whole.pth"
    code, out, _ = prune(tmp_path / "four.pth", "--relative", "1", "--data", digits / "train", "--output", output)
    assert code == 0
    assert "one is fitted to 512 of the images" in out
    assert "distillation" not in out, "it would teach other classes"
    written = torch.load(output, weights_only=True)
    assert written["architecture"] == NETWORK
    assert written["model"]["head.weight"].shape == (10, 32)
    assert torch.equal(written["model"]["blocks.1.mlp.fc1.weight"], state["model"]["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--macs", "10G"], "the budget must be less"),
        (["--macs", "1k"], "at least"),
        (["--macs", "none"], "Invalid value for '--macs': found 'none'; it must be a number of MACs, as 1.3G or 600M"),
        (["--relative", "1.5"], "Invalid value for '--relative': found '1.5'; it must be a number above 0, at most 1"),
        (["--relative", "0.5", "--data", "gone"], "--data: found 'gone', which is not a folder"),
        (["--relative", "0.5", "--output", "."], "--output: found '.', which is a folder"),
    ],
)
def test_pruning_that_cannot_work_is_refused_and_writes_nothing(
    prune, source, digits, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = prune(source, "--data", digits / "train", *arguments)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_replaced(prune, source, digits, tmp_path):
    output = tmp_path / "there.pth"
    output.write_text("mine")
    code, _, err = prune(source, "--relative", "0.5", "--data", digits / "train", "--output", output)
    assert code == 2
    assert "is there already" in err
    assert output.read_text() == "mine"


# The page


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(source, digits, repository, tmp_path, monkeypatch):
    """On the digits and a network built here; folders, sizes and epochs are replaced, nothing else."""
    text = (repository / "docs" / "elastic.md").read_text()
    small = {
        "imagenet/": f"{digits}/",
        "NETWORK": str(source),
        "num_classes: 1000": "image_size: 32, num_classes: 10",
        "1.3G": "300k",
        "vit16-...": NETWORK,
    }
    numbers = [
        (r"\bepochs: \d+", "epochs: 2"),
        (r"minimum: [\d_]+, maximum: [\d_]+", "minimum: 150_000, maximum: 450_000"),
        (r"macs=[\d_]+", "macs=450_000"),
    ]

    def shrunk(page: str) -> str:
        for old, new in small.items():
            page = page.replace(old, new)
        for old, new in numbers:
            page = re.sub(old, new, page)
        return page

    monkeypatch.chdir(tmp_path)
    for block in fenced(text, "yaml"):
        name = re.match(r"# (\w+\.yaml)\n", block)[1]
        # The one with several lines has the image size as a line of its own.
        body = shrunk(block).replace("  image_size: 32, num_classes: 10\n", "  image_size: 32\n  num_classes: 10\n")
        data = yaml.safe_load(body)
        for section in ("search", "sample", "retrain", "test"):
            if section in data:
                data[section].setdefault("data", {})["workers"] = 0
        if "sample" in data:
            data["sample"] |= {"initial_population": 16, "population": 4, "generations": 1}
        (tmp_path / name).write_text(yaml.safe_dump(data))
    commands = [line.strip() for line in text.splitlines() if re.match(r"    (vitas|python) ", line)]
    assert len(commands) >= 11
    for command in commands:
        words = shlex.split(shrunk(command), comments=True)
        if words[0] == "vitas":
            run_module("vitas", *words[1:], folder=tmp_path)
            continue
        module, *arguments = words[2:]
        if arguments[:1] == ["export"] and "--overwrite" not in arguments:
            arguments.append("--overwrite")
        if module == "search":
            arguments += ["search.batch_size=64"] if "search.flag=false" not in arguments else []
        if module == "retrain":
            arguments += ["retrain.batch_size=64", "retrain.data.workers=0"]
        if arguments[0] == "export":
            run_module(module, *arguments, folder=tmp_path)
        else:
            run_here(module, *map(str, arguments))
    for example in fenced(text, "python"):
        exec(compile(shrunk(example), "elastic.md", "exec"), {})

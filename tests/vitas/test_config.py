"""The configuration: what is refused, in which words, and before anything is built."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search.objectives import OBJECTIVES
from vitas import Architecture
from vitas.catalog import Found, write_found, zoo
from vitas.config import RunConfig, load, require
from vitas.errors import UserError
from vitas.program import run_stages
from vitas.run import STAGES
from vitas.sharing import SCHEMES
from vitas.slurm import signals

ALL_STAGES = ("search", "sample", "retrain", "test")
BLOCK = {"heads": 2, "qkv_dim": 96, "mlp_dim": 64}
TEXT = "p8-e32-token-h2q96m64"


@pytest.fixture
def refusal(make_config):
    """(overrides, stages) -> the message with which the small run is refused under them."""

    def refuse(overrides, stages=()) -> str:
        path = make_config()
        with pytest.raises(UserError) as error:
            load(path, overrides, stages)
        message = str(error.value)
        assert str(path) in message or message.startswith("argument ")
        return message

    return refuse


# What is accepted


def test_the_small_run_loads_with_every_stage_but_those_that_need_its_results(make_config):
    config = load(make_config(), (), ("search", "sample"))
    assert config.search.flag
    assert config.space.size == 2336


def test_shipped_configurations_load(repository):
    paths = sorted(set((repository / "configs").rglob("*.yaml")) - {repository / "configs" / "cluster.yaml"})
    assert paths
    for path in paths:
        load(path)


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("search.epochs=7", lambda c: c.search.epochs, 7),
        ("search.lr=1e-4", lambda c: c.search.lr, 1e-4),
        ("search.lr=1", lambda c: c.search.lr, 1.0),
        ("sample.budget.maximum=4_000_000", lambda c: c.sample.budget.maximum, 4_000_000),
        ("search.flag=false", lambda c: c.search.flag, False),
        ("model.space.heads=[1, 2]", lambda c: c.model.space.heads, (1, 2)),
        ("test.load_name=a=b.pth", lambda c: c.test.load_name, "a=b.pth"),
        ("search.data.augmentation.auto_augment=null", lambda c: c.search.data.augmentation.auto_augment, None),
        ("test=null", lambda c: c.test, None),
        ("retrain.architecture={net_id: 1 2 3}", lambda c: c.retrain.architecture, {"net_id": "1 2 3"}),
        ("model.std=[0.5, 0.5, 0.5]", lambda c: c.model.std, [0.5, 0.5, 0.5]),
        ("sample.budget.convention=true", lambda c: c.sample.budget.convention, "true"),
        ("save_path=elsewhere", lambda c: str(c.folder.root), "elsewhere"),
    ],
)
def test_an_override_sets_its_key_as_yaml(make_config, override, read, value):
    found = read(load(make_config(), [override]))
    assert type(found) is type(value)
    assert found == value


def test_an_override_makes_the_sections_on_its_way(make_config):
    path = make_config({"test": None})
    config = load(path, ["test.data.data_dir=there", "test.data.workers=0"])
    assert (config.test.data.data_dir, config.test.data.workers) == ("there", 0)


def test_of_two_overrides_of_a_key_the_last_one_holds(make_config):
    assert load(make_config(), ["seed=1", "seed=2"]).seed == 2


def test_an_override_changes_its_key_alone_where_sections_share_an_anchor(make_config):
    path = make_config()
    data = yaml.safe_load(path.read_text())
    data["retrain"]["data"] = data["search"]["data"]
    path.write_text(yaml.dump(data))
    assert "*" in path.read_text()
    config = load(path, ["search.data.workers=3"])
    assert (config.search.data.workers, config.retrain.data.workers) == (3, 0)


@pytest.mark.parametrize(
    ("key", "registry"), [("model.sharing", SCHEMES), ("sample.objectives", OBJECTIVES)], ids=["sharing", "objectives"]
)
def test_a_key_takes_exactly_the_names_of_its_registry(make_config, key, registry):
    section, name = key.split(".")
    for offered in registry:
        value = [offered, "error"] if name == "objectives" else offered
        assert getattr(getattr(load(make_config(), [f"{key}={json.dumps(value)}"]), section), name) == value
    with pytest.raises(UserError) as error:
        load(make_config(), [f"{key}={json.dumps(['nothing'] if name == 'objectives' else 'nothing')}"])
    assert set(re.findall(r"'(\w+)'", str(error.value).split("it must be ")[1])) == set(registry)


def test_a_supernet_is_weakly_augmented_unless_the_yaml_says_otherwise(make_config):
    data = {"data_dir": "there", "augmentation": {"flip": 0.0}}
    config = load(make_config({"search.data": data, "retrain.data": data}))
    assert config.search.data.augmentation.auto_augment is None
    assert config.search.data.augmentation.color_jitter == 0
    assert config.retrain.data.augmentation.auto_augment == "rand-m9-mstd0.5-inc1"


def test_what_a_script_is_for_is_set_but_makes_no_section(make_config):
    settings = ("model.sharing=ordinal", "search.method=supernet")
    silent = make_config({"model": {"image_size": 32}}, "silent.yaml")
    assert require(silent, ("seed=1",), settings) == ("seed=1", *settings)
    assert require(make_config({"model": {}, "search": None}), (), settings) == ("model.sharing=ordinal",)
    assert require(make_config({"model.sharing": "ordinal"}), (), settings) == settings
    with pytest.raises(UserError, match=r"model\.sharing: found 'bilateral'.*'ordinal'"):
        require(make_config(), ("model.sharing=bilateral",), settings)


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Unknown keys
        ("search.epoch=3", "search.epoch: unknown key; did you mean epochs?"),
        ("model.image_sze=3", "model.image_sze: unknown key; did you mean image_size?"),
        ("model.space.head=[2]", "model.space.head: unknown key; did you mean heads?"),
        ("search.data.augmentation.flipp=0", "search.data.augmentation.flipp: unknown key; did you mean flip?"),
        ("serch.epochs=3", "serch: unknown key; did you mean search?"),
        ("xyz=1", "xyz: unknown key; the keys here are model, save_path,"),
        # Missing keys and wrong types
        ("save_path=null", "save_path: found None; it must be a string"),
        ("search.data={}", "search.data.data_dir: is missing"),
        ("search.epochs=1.5", "search.epochs: found 1.5; it must be an integer"),
        ("search.epochs=true", "search.epochs: found True; it must be an integer"),
        ("search.epochs='3'", "search.epochs: found '3'; it must be an integer"),
        ("search.epochs=", "search.epochs: found None; it must be an integer"),
        ("search.lr=fast", "search.lr: found 'fast'; it must be a number"),
        ("search.lr=.nan", "search.lr: found nan; it must be a finite number"),
        ("search.flag=1", "search.flag: found 1; it must be true or false"),
        ("search=[]", "search: found []; it must be a section of keys"),
        ("model.space.heads=2", "model.space.heads: found 2; it must be a list"),
        ("model.space.widths=[0.5, all]", "model.space.widths.1: found 'all'; it must be a number"),
        ("model.mean=[0.5]", "model.mean: found [0.5]; it must hold at least 3 values"),
        ("retrain.architecture=3", "retrain.architecture: found 3; it must be"),
        ("test.architecture=[1]", "test.architecture: found [1]; it must be"),
        # Wrong values
        ("search.epochs=0", "search.epochs: found 0; it must be greater than or equal to 1"),
        ("search.label_smoothing=1", "search.label_smoothing: found 1; it must be less than 1"),
        ("model.sharing=both", "model.sharing: found 'both'; it must be 'bilateral', 'ordinal' or 'cyclic'"),
        ("model.qkv_mode=3", "model.qkv_mode: found 3; it must be 0, 1 or 2"),
        ("port=80", "port: found 80; it must be greater than or equal to 1024"),
        # The space
        ("model.space.heads=[2, 5]", "model.space.heads: found 5, which does not divide the attention dim 16"),
        ("model.space.widths=[0.01, 1.0]", "model.space.widths: found [0.01, 1.0]"),
        ("model.space.patch_sizes=[8, 4]", "model.space.patch_sizes: found [8, 4]"),
        ("model.space.patch_sizes=[4, 7]", "model.space.patch_sizes: patch size 7 does not divide the image size 32"),
        # The budget
        ("sample.budget={minimum: 1, maximum: 2}", "sample.budget: no architecture of the space has 1 to 2 MACs"),
        ("sample.budget={minimum: 1, maximum: 2}", "the nearest has 92,672"),
        ("sample.budget.minimum=3_000_000", "sample.budget.minimum: found 3000000; it must be at most the maximum"),
        (
            "sample.budget.minimum=120%",
            "sample.budget.minimum: found '120%'; it must be an integer, 0 or more, or a share",
        ),
        ("sample.budget={minimum: 1, maximum: 1%}", "sample.budget: no architecture of the space has 1 to"),
        ("sample.budget.maximum=9%", "sample.budget.minimum: found 400000; it must be at most the maximum"),
        ("sample.objectives=[macs]", "sample.objectives: found ['macs']; error or loss must be among them"),
        ("sample.objectives=[error, speed]", "sample.objectives.1: found 'speed'; it must be 'error', 'loss', 'macs'"),
        # Recipes
        ("search.warmup_epochs=2", "search.warmup_epochs: found 2; it must be less than search.epochs, 2"),
        ("retrain.epochs=1", "retrain.warmup_epochs: found 1; it must be less than retrain.epochs, 1"),
        ("search.min_lr=0.5", "search.min_lr: found 0.5; it must be at most search.lr, 0.002"),
        ("search={data: {data_dir: x}, mixup: 0.8, batch_size: 63}", "search.batch_size: found 63"),
        ("search.data.augmentation.auto_augment=rnd", "search.data.augmentation.auto_augment: found 'rnd'"),
        ("search.data.augmentation.scale=[1.0, 0.1]", "search.data.augmentation.scale: found [1.0, 0.1]"),
        # Ranges of epochs
        ("test.start=1", "test.start, test.end: found one of the two"),
        ("test={data: {data_dir: x}, start: 3, end: 2}", "test.start: found 3; it must be at most test.end, 2"),
        ("test={data: {data_dir: x}, start: 1, end: 2, load_name: y}", "test.load_name: found 'y' beside a range"),
    ],
)
def test_a_mistake_is_refused_by_key_value_and_what_is_allowed(refusal, override, message):
    assert message in refusal([override])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("best", "found 'best', but "),
        ("deit_tny", "no architecture is named 'deit_tny'; did you mean deit_tiny?"),
        ("vitas_a", "patch size 16 does not divide the image size 36"),
        ("p4-e32-token-h2q96", "found 'h2q96'; a block"),
        ({"net_id": "0 0 0"}, "net_id has 3 integers"),
        ({"net_id": 5}, "net_id: found 5"),
        ({"net_id": "0 0 0", "patch_size": 4}, "net_id must be the only key"),
        ({"patch_size": 4, "embed_dim": 32}, "no key 'blocks'"),
        ({"patch_size": 4, "embed_dim": 32, "blocks": [BLOCK | {"heads": 5}]}, "qkv_dim 96 does not split"),
    ],
)
@pytest.mark.parametrize("stage", ["retrain", "test"])
def test_an_architecture_that_does_not_exist_parse_or_fit_is_refused(make_config, value, message, stage):
    path = make_config({"model.image_size": 36, "model.space.patch_sizes": [4], f"{stage}.architecture": value})
    load(path)
    with pytest.raises(UserError) as error:
        load(path, (), (stage,))
    assert f"{stage}.architecture: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("best", TEXT),
        ("subnet_2", "p8-e32-token-h2q96m64x2"),
        ("deit_tiny", str(zoo()["deit_tiny"])),
        ("p8-e32-mean-h2q96m64", "p8-e32-mean-h2q96m64"),
        ({"net_id": "1 0 2 2 0 0 1 1 1 0 0 0 0"}, "p8-e32-token-h2q96m64-idx2"),
        (Architecture.parse(TEXT).to_dict(), TEXT),
    ],
)
def test_an_architecture_is_found_by_every_form_of_its_name(make_config, value, expected):
    config = load(make_config({"retrain.architecture": value}))
    texts = [TEXT, "p8-e32-token-h2q96m64x2"]
    found = [Found(f"subnet_{i}", Architecture.parse(text), {}) for i, text in enumerate(texts, start=1)]
    write_found(config.folder.architectures, found)
    assert str(config.architecture(config.retrain.architecture)) == expected


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_flagged_stages_images_must_be_there_with_a_folder_a_class(make_config, tmp_path, stage):
    missing = make_config({f"{stage}.data.data_dir": str(tmp_path / "nowhere"), "retrain.architecture": TEXT})
    with pytest.raises(UserError, match=f"{stage}.data.data_dir: found '{tmp_path / 'nowhere'}', which is not a"):
        load(missing, (), ALL_STAGES)
    load(missing, [f"{stage}.flag=false"], ALL_STAGES)
    load(missing, (), tuple(name for name in ALL_STAGES if name != stage))
    other = make_config({"model.num_classes": 9, "retrain.architecture": TEXT})
    with pytest.raises(UserError, match=rf"{stage}.data.data_dir: .* 10 class folders; model.num_classes is 9"):
        load(other, (), (stage,))


def test_stages_of_as_many_but_other_classes_are_refused_by_the_name_that_differs(make_config, tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog" if part == "train" else "doge"):
            (tmp_path / part / name).mkdir(parents=True)
    folders = {f"{stage}.data.data_dir": str(tmp_path / "train") for stage in ("search", "retrain", "test")}
    path = make_config(folders | {"sample.data.data_dir": str(tmp_path / "val"), "model.num_classes": 2})
    with pytest.raises(UserError, match=r"sample\.data\.data_dir: found .* differ .*'doge?'"):
        load(path)
    load(path, [f"sample.data.data_dir={tmp_path / 'train'}"])


@pytest.mark.parametrize("stage", ["search", "sample"])
def test_a_stage_that_searches_needs_a_space(make_config, stage):
    path = make_config({"model.space": None})
    load(path)
    with pytest.raises(UserError, match=r"model\.space: is missing"):
        load(path, (), (stage,))


def test_a_network_that_inherits_needs_a_space_that_holds_it(make_config):
    inherits = {"retrain.from_supernet": True, "retrain.architecture": "p8-e24-token-h2q96m64x3"}
    with pytest.raises(UserError, match=r"retrain\..*embedding dim 24"):
        load(make_config(inherits), (), ("retrain",))
    with pytest.raises(UserError, match=r"model\.space: is missing"):
        load(make_config(inherits | {"model.space": None}), (), ("retrain",))


def test_every_mistake_is_in_one_message(refusal):
    types = refusal(["search.epochs=1.5", "retrain.lr=fast", "model.image_sze=3", "test.data={}"])
    keys = ["search.epochs: ", "retrain.lr: ", "model.image_sze: ", "test.data.data_dir: "]
    assert [line.split()[0] + " " for line in sorted(types.splitlines()[1:])] == sorted(keys)
    rest = refusal(
        ["model.space.patch_sizes=[4, 5, 7]", "search.epochs=1", "test.start=1", "sample.data.data_dir=/nowhere"],
        ("sample",),
    )
    assert len(rest.splitlines()) == 1 + 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["test.start=1", "test.wait=true"], "test.start, test.end: found one of the two"),
        (
            ["model.space={embed: [0.5, 1]}", "retrain.from_supernet=true", f"retrain.architecture={TEXT}"],
            "model.from_pretrained: is missing; model.space says shares",
        ),
        (
            ["model.from_pretrained=a", "search={method: asvit, flag: true, growth: {hidden_dim: 32}}", "sample=null"],
            "model.from_pretrained: As-ViT scores untrained networks",
        ),
    ],
)
def test_a_mistake_is_reported_beside_what_depends_on_it(refusal, overrides, message):
    assert message in refusal([*overrides], ALL_STAGES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.epochs", "argument 'search.epochs': it must read key=value"),
        ("=3", "argument '=3': it must read key=value"),
        ("search.epochs.x=3", "argument 'search.epochs.x=3': epochs holds 2, not "),
        ("seed=[1", "argument 'seed=[1' is not valid YAML"),
    ],
)
def test_an_override_of_no_form_is_refused(refusal, override, message):
    assert message in refusal([override])


@pytest.mark.parametrize(
    ("text", "message"), [("", "found NoneType"), ("- 1", "found list"), ("a: [", "not valid YAML")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused_by_path(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml")


# The program


def test_a_program_refuses_with_one_message_and_exit_code_2_and_writes_nothing(make_config, repository, tmp_path):
    path = make_config({"search.epoch": 3, "model.space.widths": "all", "sample.budget": {"minimum": 1}})
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "search", str(path)],
        cwd=repository,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert first == f"error: {path}:"
    assert sorted(line.split(": ")[0].strip() for line in rest) == [
        "model.space.widths",
        "sample.budget.maximum",
        "search.epoch",
    ]
    assert sorted(tmp_path.rglob("*")) == before


STAGE_FUNCTIONS = {
    "search": "search.search.search",
    "asvit": "search.asvit.search.search",
    "sample": "search.sample.sample",
}


def run_search(monkeypatch, *arguments: object, **environment: str) -> list[str]:
    """What the program `search` ran; nothing is trained."""
    ran = []
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stage, function in STAGE_FUNCTIONS.items():
        monkeypatch.setattr(function, lambda config, world, stage=stage: ran.append(stage))
    # This process keeps its own signal handlers.
    monkeypatch.setattr(signals, "listen", lambda: None)
    monkeypatch.setattr(signals, "guard", lambda check: None)
    run_stages("search", "", arguments=list(map(str, arguments)))
    return ran


@pytest.mark.parametrize("flagged", [["search", "sample"], ["sample"], ["search"]])
def test_a_program_runs_the_stages_that_are_flagged_in_order(monkeypatch, make_config, flagged):
    path = make_config({f"{name}.flag": name in flagged for name in ("search", "sample")})
    assert run_search(monkeypatch, path, "search.epochs=3") == flagged


def test_the_method_says_which_function_runs_the_search(monkeypatch, make_config):
    asvit = {"flag": True, "method": "asvit", "growth": {"parameters": 3_000_000}}
    path = make_config({"search": asvit, "sample": None, "model.space": None})
    assert run_search(monkeypatch, path) == ["asvit"]


def test_every_stage_of_the_table_has_its_section_and_functions_that_exist():
    assert tuple(STAGES) == ALL_STAGES == tuple(name for name in RunConfig.model_fields if name in STAGES)
    for stage in STAGES.values():
        assert all(callable(stage.function(method)) for method in stage.functions)


def test_a_program_without_a_flagged_stage_says_so(monkeypatch, make_config, capsys):
    path = make_config({"search.flag": False, "sample.flag": False})
    with pytest.raises(SystemExit, match="2"):
        run_search(monkeypatch, path)
    message = f"error: {path}: there is nothing to do; set search.flag or sample.flag to true\n"
    assert capsys.readouterr() == ("", message)


def test_a_save_path_that_cannot_be_made_is_refused(monkeypatch, make_config, tmp_path, capsys):
    (tmp_path / "file").touch()
    path = make_config({"save_path": str(tmp_path / "file" / "run")})
    with pytest.raises(SystemExit, match="2"):
        run_search(monkeypatch, path)
    assert f"save_path: found '{tmp_path / 'file' / 'run'}', which cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize(("environment", "told"), [({"RANK": "0"}, 1), ({"RANK": "1"}, 0), ({"SLURM_PROCID": "2"}, 0)])
def test_of_many_processes_one_tells_a_mistake(monkeypatch, make_config, capsys, environment, told):
    with pytest.raises(SystemExit, match="2"):
        run_search(monkeypatch, make_config(), "search.epochs=0", "search.warmup_epochs=0", **environment)
    assert len(capsys.readouterr().err.splitlines()) == told


# Images that must not be shared


def link(source: Path, target: Path, symbolic: bool) -> None:
    """A folder of classes whose images are links to those of another."""
    for path in sorted(source.rglob("*.png")):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        (target / path.parent.name / path.name).symlink_to(path) if symbolic else os.link(
            path, target / path.parent.name / path.name
        )


@pytest.mark.parametrize("kind", ["same folder", "symbolic links", "hard links"])
def test_val_images_that_are_train_images_are_refused(make_config, digits, tmp_path, kind):
    train = val = digits / "train"
    if kind != "same folder":
        val = tmp_path / "val"
        link(train, val, symbolic=kind == "symbolic links")
    path = make_config({"search.data.data_dir": str(train), "sample.data.data_dir": str(val)})
    with pytest.raises(UserError, match=r"sample\.data\.data_dir: found .* among the images of search\.data\.data_dir"):
        load(path, stages=["search", "sample"])
    # Without a search to come it is no mistake.
    load(path, ["sample.flag=false"], stages=["search", "sample"])


def test_testing_on_the_val_images_is_warned_of(make_config, digits):
    assert load(make_config()).warning is None
    warning = load(make_config({"test.data.data_dir": str(digits / "val")})).warning
    assert "have images in common" in warning
    assert str(digits / "val") in warning


def test_images_that_a_later_program_needs_are_missed_before_the_hours_of_this_one(make_config, tmp_path):
    path = make_config({"retrain.data.data_dir": str(tmp_path / "nowhere")})
    warning = load(path, stages=["search", "sample"]).warning
    assert re.search(r"retrain\.data\.data_dir: found .*nowhere.*`retrain` will need it", warning)
    assert load(path, ["retrain.flag=false"], stages=["search", "sample"]).warning is None
    # Nothing runs, so nothing is lost.
    assert load(path).warning is None


def test_the_panels_images_are_looked_at_before_the_first_epochs(make_config, tmp_path):
    path = make_config({"sample.data.data_dir": str(tmp_path / "nowhere"), "search.panel": {}, "sample.flag": False})
    with pytest.raises(UserError, match=r"sample\.data\.data_dir: found .*nowhere"):
        load(path, stages=["search", "sample"])

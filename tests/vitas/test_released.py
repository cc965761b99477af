"""Released ViTAS YAML: what it means here, what is refused, and that it drives every stage."""

import json
import re
from copy import deepcopy

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from tests.processes import run
from vitas import config as configuration
from vitas.architecture import IDENTITY
from vitas.budget import Budget
from vitas.catalog import zoo
from vitas.config import RunConfig, load
from vitas.config_section import explain
from vitas.errors import UserError
from vitas.released import read_configuration, read_model
from vitas.released.schema import convert
from vitas.space import SearchSpace


@pytest.fixture(scope="module")
def released(reference):
    return reference / "released_search.yaml"


@pytest.fixture
def edited(released, tmp_path):
    """{dotted released key: value or ... to remove it} -> the path of the file with them."""

    def edit(changes: dict[str, object]):
        data = yaml.safe_load(released.read_text())
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = data
            for name in sections:
                section = section[name]
            if value is ...:
                del section[last]
            else:
                section[last] = value
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return edit


# What it means


def test_every_key_arrives_where_it_belongs(released):
    config = load(released)
    model, search, sample, retrain, test = config.model, config.search, config.sample, config.retrain, config.test
    ratios = [i / 10 for i in range(1, 11)]
    assert model.space == SearchSpace((14, 16, 32), 384, 16, (3, 6, 12, 16), 1440, 1440, ratios)
    assert (model.image_size, model.num_classes, model.sharing, model.qkv_mode) == (224, 1000, "bilateral", 2)
    assert (config.save_path, config.port) == ("runs/released", 20011)
    assert (search.flag, sample.flag, retrain.flag, test.flag) == (True, True, False, False)
    assert (search.epochs, search.lr, search.min_lr, search.weight_decay, search.warmup_epochs) == (
        300,
        1e-3,
        0,
        0.05,
        5,
    )
    assert (search.mixup, search.cutmix) == (0.0, 1.0)
    assert (retrain.mixup, retrain.cutmix) == (0.8, 1.0)
    assert (search.checkpoint_steps, search.log_steps, search.batch_size) == (10000, 20, 1024)
    assert search.data.augmentation.auto_augment is None
    assert search.data.augmentation.color_jitter == 0
    assert retrain.data.augmentation.auto_augment == "rand-m9-mstd0.5-inc1"
    assert retrain.data.augmentation.random_erasing == search.data.augmentation.random_erasing == 0.25
    assert search.identity_probability is None
    assert (sample.population, sample.generations, sample.sample_num, sample.initial_population) == (50, 40, 10, 50)
    assert sample.budget == Budget(900_000_000, 1_000_000_000, "released", batch_size=256)
    assert (retrain.drop_path_rate, retrain.architecture) == (0.2, str(zoo()["vitas_b"]))
    assert test.architecture == str(zoo()["vitas_c"])


def test_their_epochs_count_from_nought_and_their_range_ends_before_its_end(released):
    """Their epoch_299_ckpt is written after 300 epochs; ours is then epoch_300."""
    test = load(released).test
    assert (test.start, test.end, test.strip, test.wait) == (281, 300, 2, True)
    assert load(released).sample.load_name is None
    assert (
        load(released, ["sample.strategy.load_name=epoch_199_ckpt.pth.tar"]).sample.load_name
        == "epoch_200_ckpt.pth.tar"
    )
    assert load(released, ["sample.strategy.load_name=recent_ckpt.pth.tar"]).sample.load_name is None
    assert load(released, ["sample.strategy.load_name=mine.pth"]).sample.load_name == "mine.pth"


def test_augmentation_sharing_and_mixing_by_their_words(released):
    key = "search.strategy.kwargs"
    sharing = load(released, [f"{key}.side_scheme=AutoSlim", "sample.sampler.kwargs.side_scheme=AutoSlim"])
    assert sharing.model.sharing == "ordinal"
    assert load(released, ["search.data.augmentation=deit"]).search.data.augmentation.auto_augment
    for word, alphas in (("mixup", (0.8, 0.0)), ("cutmix", (0.0, 1.0)), ("null", (0.8, 1.0))):
        search = load(released, [f"{key}.mixup_stg={word}"]).search
        assert (search.mixup, search.cutmix) == alphas
    search = load(released, [f"{key}.mix_up=False"]).search
    assert (search.mixup, search.cutmix) == (0.0, 0.0)


def test_a_random_search_scores_as_many_as_an_evolution_would(edited):
    sample = load(edited({"sample.sampler.type": "random"})).sample
    assert (sample.initial_population, sample.generations) == (50 * 41, 0)
    sample = load(edited({"sample.sampler.type": "random", "sample.sampler.kwargs.search_num": 70})).sample
    assert (sample.initial_population, sample.generations) == (70, 0)


def test_search_id_false_leaves_the_identity_at_a_half(released):
    for key in ("search.strategy.kwargs.search_id", "sample.sampler.kwargs.search_id"):
        assert load(released, [f"{key}=False"]).search.identity_probability == 0.5


def test_search_id_means_nothing_where_there_are_no_identities(edited):
    row = [16, 384, [3, 6, 12, 16], 1440, 384, 1440, 384, True, ["Block"]]
    budget = {"sample.sampler.kwargs.flops_constraint": 9 * 10**9}
    config = load(edited({"model.backbone.Block": row, "sample.sampler.kwargs.search_id": False, **budget}))
    assert config.search.identity_probability is None
    assert "search_id in sample.sampler.kwargs: the row Block has no 'id'" in config.warning


def test_gpu_search_is_a_budget_in_images_per_second(released):
    kwargs = "sample.sampler.kwargs"
    config = load(released, [f"{kwargs}.GPU_search=True", f"{kwargs}.GPUs_min=900", f"{kwargs}.GPUs_constraint=1200"])
    budget = config.sample.budget
    assert (budget.minimum, budget.maximum, budget.is_speed) == (900, 1200, True)
    assert str(budget) == "900 to 1,200 images/s"


def test_stochastic_depth_grows_over_the_depth_that_the_file_says(released):
    """More positions than the row has are filled with identities, which cost nothing."""
    section = yaml.safe_load(released.read_text())["test"]["model"]
    architecture, classes = read_model(section | {"depth": 14})
    assert architecture.blocks == zoo()["vitas_c"].blocks + (IDENTITY,) * 2
    assert classes == 1000


def test_class_counts_are_those_of_the_models_in_use(edited):
    """Search files come with a placeholder in sections that do not run."""
    head = [1, 230, [], [], 10, [], [], False, ["FC"]]
    path = edited({"test.model.backbone.FC": head, "test.flag": True, "search.flag": False, "sample.flag": False})
    assert load(path).model.num_classes == 10
    with pytest.raises(UserError, match=r"test.model.backbone.FC: found 10 classes, and model.backbone.FC has 1000"):
        load(path, ["sample.flag=True"])


def test_a_stage_that_does_not_run_may_leave_its_folder_out(edited):
    path = edited({"search.data.data_dir": ..., "search.flag": False})
    assert load(path).sample.flag
    with pytest.raises(UserError, match=r"search.data.data_dir: is missing"):
        load(path, ["search.flag=True"])


def test_where_nothing_is_searched_the_backbone_need_not_be_one_that_could_be(edited):
    """As in a file that only tests a network: 16 heads do not fit into a tenth of 96 dims."""
    small = {"init_stem": [1, 3, [14, 16, 32], [], 96, [], [], True, ["Patch_init"]]}
    small["Block"] = [16, 96, [3, 6, 12, 16], 480, 96, 480, 96, True, ["Block", "id"]]
    small["Norm"] = [1, 96, [], [], [], [], [], "token", ["Norm"]]
    small["FC"] = [1, 96, [], [], 1000, [], [], False, ["FC"]]
    flags = {"search.flag": False, "sample.flag": False}
    config = load(edited(flags | {"model.backbone": small}))
    assert config.model.space is None
    assert "backbone in model: no stage searches, and none could: heads: found 16" in config.warning
    assert load(edited(flags)).model.space is not None
    with pytest.raises(UserError, match=r"model\.backbone .*found 16"):
        load(edited({"model.backbone": small}))


def test_overrides_name_its_keys_or_ours(released):
    config = load(
        released,
        ["search.strategy.max_epochs=7", "retrain.epochs=9", "save_path=there", "model.image_size=448", "test=null",
         "search.data.workers=1", "sample.budget.minimum=5"],
    )  # fmt: skip
    assert (config.search.epochs, config.retrain.epochs, config.save_path) == (7, 9, "there")
    assert (config.model.image_size, config.test, config.search.data.workers) == (448, None, 1)
    assert config.sample.budget.minimum == 5
    chosen = load(released, ["test.load_name=/somewhere/mine.pth"]).test
    assert (chosen.load_name, chosen.start, chosen.wait) == ("/somewhere/mine.pth", None, False)


def test_one_warning_lists_what_has_no_effect(released):
    warning = load(released).warning
    for told in (
        "type in search.strategy.optimizer: SGD: AdamW is always used",
        "resume in search.strategy, retrain.strategy",
        "cal_train_mode in sample.sampler.kwargs",
        "ps_num in search.strategy.kwargs, sample.sampler.kwargs",
        "save_path in sample.strategy, retrain.strategy, test.strategy: search.strategy.save_path is",
        "Block_heads in search.strategy.kwargs",
    ):
        assert told in warning
    for used in ("lr in", "max_epochs", "channel_percent", "net_id", "workers", "batch_size", "n_gens", "strip"):
        assert used not in warning
    assert load(released.parents[2] / "configs" / "quickstart.yaml").warning is None


def test_convert_prints_the_same_run_in_our_schema(vitas, released, tmp_path):
    code, printed, _ = vitas("convert", released)
    assert code == 0
    ours = tmp_path / "ours.yaml"
    ours.write_text(printed)
    assert load(ours).model_dump() == load(released).model_dump()
    assert load(ours).warning is None
    assert "#   type in search.strategy.optimizer: SGD" in printed
    code, _, err = vitas("convert", ours)
    assert (code, "is no released ViTAS file" in err) == (2, True)


def test_networks_of_the_published_files_are_those_of_the_zoo(vitas_spaces):
    """A to F by the rows and net_ids that their files hold."""
    for name, space in vitas_spaces.items():
        dim = space.embed_dim
        ops = ["Block", "id"] if space.identity else ["Block"]
        section = {
            "backbone": {
                "init_stem": [1, 3, list(space.patch_sizes), [], dim, [], [], True, ["Patch_init"]],
                "Block": [space.depth, dim, list(space.heads), space.qkv_dim, dim, space.mlp_dim, dim, True, ops],
                "Norm": [1, dim, [], [], [], [], [], "token", ["Norm"]],
                "FC": [1, dim, [], [], 1000, [], [], False, ["FC"]],
            },
            "net_id": space.to_net_id(zoo()[name]),
            "channel_percent": list(space.widths),
            "model_len": space.depth + 3,
        }
        assert read_model(section) == (zoo()[name], 1000)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.strategy.max_epochs": "many"}, "search.strategy.max_epochs (here search.epochs): found 'many'"),
        ({"search.strategy.max_epochs": ...}, "search.strategy.max_epochs: is missing"),
        ({"search.strategy.save_path": ...}, "search.strategy.save_path (here save_path): is missing"),
        (
            {"search.strategy.max_epochs": ..., "search.strategy.max_epoch": 3},
            "search.strategy.max_epoch: unknown key; did you mean search.strategy.max_epochs?",
        ),
        ({"search.strategy.kwargs.side_scheme": "Bcnet"}, "found 'Bcnet'; it must be 'BCNet' or 'AutoSlim'"),
        ({"search.strategy.kwargs.side_scheme": "AutoSlim"}, "found 'BCNet'; it must be that of search."),
        ({"search.strategy.kwargs.mixup_stg": "mix"}, "mixup_stg: found 'mix'; it must be 'mixup' or 'cutmix'"),
        ({"search.strategy.kwargs.mix_up": "yes please"}, "mix_up: found 'yes please'; it must be True or False"),
        ({"search.data.augmentation": "strong"}, "search.data.augmentation: found 'strong'; it must be 'deit'"),
        ({"sample.sampler.type": "bayes"}, "sample.sampler.type: found 'bayes'; it must be 'evolution' or 'random'"),
        ({"sample.sampler.kwargs.flops_constraint": ...}, "sample.sampler.kwargs.flops_constraint: is missing"),
        ({"sample.sampler.kwargs.flops_min": 2**31}, "flops_min (here sample.budget.minimum): found 2147483648"),
        ({"model.heads_share": False}, "model.heads_share: found False"),
        ({"model.qkv": 7}, "model.qkv (here model.qkv_mode): found 7"),
        ({"model.backbone.Block": [16, 384]}, "model.backbone.Block: found [16, 384]; it must be a row [repeat"),
        ({"model.backbone.Blok": []}, "model.backbone.Blok: unknown stage; the stages are init_stem, Block, Norm, FC"),
        ({"model.backbone.Norm": [1, 384, [], [], [], [], [], "max", ["Norm"]]}, "entry 7 is 'max'"),
        ({"model.backbone.FC": [1, 384, [], [], 0, [], [], False, ["FC"]]}, "model.backbone.FC: entry 4 is 0"),
        (
            {"model.backbone.Block": [16, 96, [3], 1440, 384, 1440, 384, True, ["Block"]]},
            "model.backbone.Block: entry 1 is 96; the embedding dim is 384",
        ),
        (
            {"model.backbone.Block": [16, 384, [5], 1440, 384, 1440, 384, True, ["Block"]]},
            "model.backbone (here model.space.heads): found 5, which does not divide",
        ),
        ({"retrain.model.net_id": ...}, "retrain.model.net_id: is missing; the rows of retrain.model.backbone leave a"),
        ({"retrain.model.net_id": "1 2 3"}, "retrain.model.net_id: net_id has 3 integers"),
        ({"retrain.model.channel_percent": ...}, "retrain.model.channel_percent: is missing"),
        ({"retrain.model.model_len": 16}, "retrain.model.model_len: found 16; the 16 positions"),
        ({"retrain.model.depth": 3}, "retrain.model.depth: found 3; it must be at least the 16 positions"),
        ({"retrain.strategy.max_epochs": 290}, "test.strategy.end (here test.end): found 300; it would wait for e"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_the_files_own_keys(edited, changes, message):
    path = edited(changes)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


JUNK = (None, True, -1, 0, 1.5, "x", [], [[]], {}, {"x": 1}, [1, 2], float("nan"))


def test_any_value_anywhere_is_carried_or_refused_with_its_key(released):
    """Every leaf and every section of the file, in turn, replaced by what does not belong there."""
    whole = yaml.safe_load(released.read_text())

    def places(data, path=()):
        for key, value in data.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from places(value, (*path, key))

    found = list(places(whole))
    assert len(found) > 100
    for i, place in enumerate(found):
        for j, junk in enumerate(JUNK):
            data = deepcopy(whole)
            section = data
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = junk
            told = mistakes(data, checks_types=(i + j) % 9 == 0)
            assert all(re.match(r"[\w.]+", line) for line in told), told


def mistakes(data: dict, checks_types: bool) -> list[str]:
    try:
        found = convert(data)
    except UserError as error:
        return [str(error)]
    if checks_types:
        try:
            RunConfig.model_validate(found.config)
        except ValidationError as error:
            return explain(error, RunConfig)
    return []


def test_the_supervisor_reads_where_a_released_file_writes(released):
    """It must know the folder before any rank starts."""
    found = read_configuration(released.read_text(), "released.yaml", ["search.flag=true", "save_path=elsewhere"])
    assert found.data["save_path"] == "elsewhere"


# What it drives


def small_released(save_path, digits) -> dict:
    """A released file whose stages take seconds on 32 x 32 digits."""
    dim = 32
    backbone = {
        "init_stem": [1, 3, [4, 8], [], dim, [], [], True, ["Patch_init"]],
        "Block": [3, dim, [2, 4], 96, dim, 64, dim, True, ["Block", "id"]],
        "Norm": [1, dim, [], [], [], [], [], "token", ["Norm"]],
        "FC": [1, dim, [], [], 10, [], [], False, ["FC"]],
    }
    trained = {
        "backbone": backbone, "net_id": "1 0 2 1 0 0 1 1 1 0 0 1 0", "drop_path_rate": 0.1,
        "channel_percent": [0.5, 1.0], "model_len": 6, "depth": 3,
    }  # fmt: skip

    def training(augmentation: str, **kwargs) -> dict:
        return {
            "strategy": {
                "max_epochs": 2,
                "optimizer": {"type": "SGD", "lr": 2e-3, "weight_decay": 0.05},
                "kwargs": {"mix_up": False, "warm_up": 1, **kwargs},
                "task_type": "imagenet", "snapshot_freq": 10000, "print_freq": 8, "resume": False,
                "save_path": "None", "load_name": "recent_ckpt.pth.tar",
            },
            "data": {
                "data_dir": str(digits / "train"), "workers": 0, "task_type": "imagenet",
                "augmentation": augmentation, "batch_size": 128,
            },
        }  # fmt: skip

    def evaluation(part: str) -> dict:
        return {"data_dir": str(digits / part), "workers": 0, "task_type": "imagenet-test", "batch_size": 256}

    shared = {"channel_percent": [0.5, 1.0], "side_scheme": "BCNet", "heads_share": True, "ps_num": 10}
    search = training("deit_xaa_xcj", search=True, **shared)
    search["strategy"]["save_path"] = str(save_path)
    budget = {"flops_constraint": 1_200_000, "flops_min": 400_000}
    return {
        "port": 20123,
        "model": {"backbone": backbone, "depth": 3, "heads_share": True, "qkv": 2},
        "search": {"flag": True, **search},
        "sample": {
            "flag": True,
            "sampler": {
                "type": "evolution",
                "kwargs": {"init_pop": True, "pop_size": 4, "n_gens": 1, "sample_num": 2, **budget, **shared},
            },
            "strategy": {"task_type": "imagenet-test", "save_path": "None", "load_name": "epoch_299_ckpt.pth.tar"},
            "data": evaluation("val"),
        },
        "retrain": {"flag": True, "model": trained, **training("deit", search=False)},
        "test": {
            "flag": True,
            "model": trained,
            "strategy": {"task_type": "imagenet-test", "save_path": "None", "start": 1, "end": 2, "strip": 1},
            "data": evaluation("test"),
        },
    }


@pytest.mark.slow
def test_a_released_file_drives_all_four_stages_unchanged(tmp_path, digits):
    path = tmp_path / "released.yaml"
    path.write_text(yaml.safe_dump(small_released(tmp_path / "run", digits)))
    # Released programs know 224 x 224 alone, which is slow here.
    size = "model.image_size=32"
    assert "best: p" in run("search", path, size)
    run("retrain", path, size)
    run("inference", path, size)
    config = configuration.load(path, [size])
    results = json.loads(config.folder.results.read_text())
    assert results["checkpoint"].endswith("epoch_2_ckpt.pth.tar")
    assert results["architecture"] == config.retrain.architecture
    assert np.isfinite(results["loss"])

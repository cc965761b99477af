import json
import re
import shutil

import pytest
import torch
import yaml

from inference.test import test as measure
from retrain.retrain import retrain
from search.sample import sample
from search.search import search
from tests.conftest import largest, small_run
from vitas import config as configuration
from vitas.architecture import Architecture
from vitas.checkpoint import CheckpointFolder, read, write
from vitas.distributed import World
from vitas.errors import UserError

TEXT = "p8-e32-token-h2q96m64x2"


def newest(config) -> dict:
    return read(CheckpointFolder(config.folder.checkpoints("retrain")).resolve())


def train(path, *overrides: str):
    config = configuration.load(path, ["retrain.epochs=1", "retrain.warmup_epochs=0", *overrides])
    retrain(config, World())
    return config


@pytest.mark.parametrize(
    "given",
    [
        f"retrain.architecture={TEXT}",
        "retrain.architecture={patch_size: 8, embed_dim: 32, blocks: [{heads: 2, qkv_dim: 96, mlp_dim: 64, repeat: 2}]}",  # noqa: E501
    ],
)
def test_an_architecture_of_the_yaml_is_trained(path, given) -> None:
    assert newest(train(path, given))["architecture"] == TEXT


def test_a_net_id_is_trained(path) -> None:
    space = configuration.load(path).space
    config = train(path, f"retrain.architecture={{net_id: {space.to_net_id(largest(space))}}}")
    assert Architecture.parse(newest(config)["architecture"]) == largest(space)


def test_the_best_or_a_named_one_of_the_search_is_trained_from_scratch_or_from_the_supernet(path) -> None:
    config = configuration.load(path, ["search.epochs=1", "search.warmup_epochs=0"])
    search(config, World())
    sample(config, World())
    assert config.architecture("best") == config.architecture("subnet_1")
    config = train(
        path, "retrain.architecture=subnet_2", "retrain.from_supernet=true", "retrain.lr=1e-12", "retrain.min_lr=0"
    )
    state = newest(config)
    assert Architecture.parse(state["architecture"]) == config.architecture("subnet_2")
    supernet = read(CheckpointFolder(config.folder.checkpoints("search")).resolve())["model"]
    dim = config.architecture("subnet_2").embed_dim
    # At a rate of nothing, what comes out is what the supernet gave.
    assert torch.allclose(state["model"]["head.weight"], supernet["head.weight"][:, :dim], atol=1e-6)
    with pytest.raises(UserError, match="did you mean subnet_2"):
        config.architecture("subnet_22")


def test_the_average_of_the_weights_lags_behind_them(path) -> None:
    state = newest(train(path, f"retrain.architecture={TEXT}", "retrain.ema_decay=0.9"))
    model, ema = state["model"], state["ema"]
    assert model.keys() == ema.keys()
    assert any(not torch.equal(model[key], ema[key]) for key in model)


def test_another_recipe_or_architecture_is_not_resumed(path) -> None:
    train(path, f"retrain.architecture={TEXT}")
    with pytest.raises(UserError, match=r"trained with lr .* now it is 0\.5"):
        train(path, f"retrain.architecture={TEXT}", "retrain.lr=0.5")
    with pytest.raises(UserError, match="trained with architecture"):
        train(path, f"retrain.architecture={TEXT}3")


@pytest.mark.parametrize(
    ("key", "other"),
    [("repeats", "2"), ("tokens", "[{until: 0.5, reduce: 2}]"), ("data.augmentation.interpolation", "nearest")],
)
def test_a_key_that_an_older_checkpoint_lacks_had_its_present_default(path, key, other) -> None:
    config = train(path, f"retrain.architecture={TEXT}")
    checkpoint = CheckpointFolder(config.folder.checkpoints("retrain")).resolve()
    state = read(checkpoint)
    del state["recipe"][key]
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match=re.escape(key)):
        train(path, f"retrain.architecture={TEXT}", f"retrain.{key}={other}")
    train(path, f"retrain.architecture={TEXT}")


# Fine-tuning


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, digits):
    """A checkpoint of a network that has seen the digits for some epochs."""
    folder = tmp_path_factory.mktemp("pretraining")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_run(folder, digits)))
    config = train(path, f"retrain.architecture={TEXT}", "retrain.epochs=8")
    return CheckpointFolder(config.folder.checkpoints("retrain")).resolve()


@pytest.fixture
def fewer_digits(digits, tmp_path):
    """The images of the digits 0 to 4."""
    for part in ("train", "val", "test"):
        for digit in range(5):
            shutil.copytree(digits / part / str(digit), tmp_path / "fewer" / part / str(digit))
    return tmp_path / "fewer"


def tuned_from(path) -> list[str]:
    return [f"retrain.from_checkpoint={path}", "retrain.architecture=null"]


def test_fine_tuning_goes_from_other_classes_and_another_image_size(make_config, pretrained, fewer_digits) -> None:
    data = [f"retrain.data.data_dir={fewer_digits / 'train'}", f"test.data.data_dir={fewer_digits / 'test'}"]
    size = ["model.num_classes=5", "model.image_size=48", "search=null", "sample=null"]
    path = make_config()

    def accuracy(name: str, *overrides: str) -> float:
        config = train(path, *data, *size, f"save_path={path.parent / name}", *overrides)
        measure(config, World())
        return json.loads(config.folder.results.read_text())["top1"]

    tuned = accuracy("tuned", *tuned_from(pretrained))
    scratch = accuracy("scratch", f"retrain.architecture={TEXT}")
    assert tuned > scratch + 10
    log = (path.parent / "tuned" / "retrain" / "log" / "retrain.log").read_text()
    assert "position embeddings are interpolated from 4 x 4 to 6 x 6 patches" in log
    assert "the classifier starts anew: 5 classes, and the file has 10" in log


def test_fine_tuning_at_a_rate_of_nothing_leaves_the_weights_as_they_were(path, pretrained) -> None:
    config = train(path, *tuned_from(pretrained), "retrain.lr=1e-12", "retrain.min_lr=0")
    state, before = newest(config), read(pretrained)
    assert state["architecture"] == before["architecture"]
    for name, weights in before["model"].items():
        assert torch.allclose(state["model"][name], weights, atol=1e-6), name


def test_what_cannot_be_fine_tuned_is_refused(path, pretrained, reference) -> None:
    with pytest.raises(UserError, match=r"does not fit this architecture: .*blocks\.2"):
        train(path, f"retrain.from_checkpoint={pretrained}", f"retrain.architecture={TEXT[:-1]}3")
    with pytest.raises(UserError, match=r"vitas_tiny\.pth does not say its architecture; set retrain.architecture"):
        train(path, *tuned_from(reference / "vitas_tiny.pth"))
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        train(path, *tuned_from("nowhere.pth"))
    with pytest.raises(UserError, match=r"from_supernet, retrain.from_checkpoint: found both"):
        train(path, *tuned_from(pretrained), "retrain.from_supernet=true")


def test_a_diverging_training_stops_with_advice_and_saves_nothing(path) -> None:
    with pytest.raises(UserError, match=r"not finite.*no checkpoint to go back to.*retrain\.lr"):
        config = train(path, f"retrain.architecture={TEXT}", "retrain.lr=1e30", "retrain.log_steps=1")
    config = configuration.load(path)
    assert not list(config.folder.checkpoints("retrain").glob("*"))


def test_weight_decay_is_on_matrices_only(path) -> None:
    config = train(path, f"retrain.architecture={TEXT}", "retrain.weight_decay=0.3")
    groups = newest(config)["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    # Per block qkv, proj, fc1, fc2; then the patch projection and the classifier.
    assert len(groups[0]["params"]) == 2 * 4 + 2


# Images that changed


def train_on(path, folder, *overrides: str):
    return train(path, f"retrain.architecture={TEXT}", f"retrain.data.data_dir={folder}", *overrides)


@pytest.fixture
def own_digits(few_digits, tmp_path):
    """Images that a test may change."""
    return shutil.copytree(few_digits, tmp_path / "own")


def remove(folder) -> None:
    next((folder / "3").iterdir()).unlink()


def rename(folder) -> None:
    image = next((folder / "3").iterdir())
    image.rename(image.with_name("renamed.png"))


@pytest.mark.parametrize(
    ("change", "words"),
    [(remove, "class '3' had 16 images and has 15"), (rename, "class '3' has 16 images as before, but other")],
)
def test_images_that_changed_are_refused_with_what_changed_and_the_way_on(path, own_digits, change, words) -> None:
    train_on(path, own_digits, "retrain.epochs=2")
    config = configuration.load(path)
    CheckpointFolder(config.folder.checkpoints("retrain")).epoch_path(2).unlink()
    change(own_digits)
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        train_on(path, own_digits, "retrain.epochs=2")
    assert "retrain.allow_changes=[data]" in str(refusal.value)
    # 159 images are 7 steps an epoch and not 8.
    config = train_on(path, own_digits, "retrain.epochs=2", "retrain.allow_changes=[data]")
    state = newest(config)
    assert state["epoch"] == 2
    (recorded,) = state["changes"]
    assert recorded["key"] == "data"
    assert words in recorded["to"]
    assert words in config.folder.log("retrain", None).read_text()


# More or fewer epochs


def train_long(path, save_path, epochs: int, *overrides: str):
    settings = (f"retrain.architecture={TEXT}", "retrain.ema_decay=0.9", "retrain.keep=0", "retrain.mixup=0.8")
    return train(path, *settings, f"save_path={save_path}", *overrides, f"retrain.epochs={epochs}")


def assert_same(ours, theirs) -> None:
    a, b = newest(ours), newest(theirs)
    assert {key: a[key] for key in ("step", "recipe", "changes")} == {k: b[k] for k in ("step", "recipe", "changes")}
    for part in ("model", "ema"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items())
    for number, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][number][name]) for name, value in moments.items())


@pytest.mark.parametrize(
    ("overrides", "first", "left"),
    [
        (("retrain.lr=1e-3", "retrain.min_lr=1e-3"), 2, 2),
        (("retrain.lr=1e-3", "retrain.min_lr=1e-3", "retrain.warmup_epochs=1"), 5, 1),
        # The newest checkpoint is of the last step of the warm-up; the rate falls after it.
        (("retrain.warmup_epochs=2",), 4, 2),
    ],
    ids=["constant", "fewer than there were to be", "in the warm-up"],
)
def test_epochs_may_change_where_no_step_so_far_depends_on_them_and_the_end_is_the_same(
    path, tmp_path, overrides, first, left
) -> None:
    changed = train_long(path, tmp_path / "changed", first, *overrides)
    folder = CheckpointFolder(changed.folder.checkpoints("retrain"), 0)
    for epoch in range(left + 1, first + 1):
        folder.epoch_path(epoch).unlink()
    train_long(path, tmp_path / "changed", 3, *overrides)
    assert f"to 3 epochs instead of {first}" in changed.folder.log("retrain", None).read_text()
    assert_same(changed, train_long(path, tmp_path / "undisturbed", 3, *overrides))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ((), "its learning rate falls over all epochs"),
        (("retrain.warmup_epochs=1",), "its learning rate falls over all epochs"),
        (
            ("retrain.lr=1e-3", "retrain.min_lr=1e-3", "retrain.tokens=[{until: 0.5, reduce: 2}]"),
            "its phases of coarser tokens are shares of all epochs",
        ),
    ],
)
def test_epochs_that_past_steps_depend_on_are_refused_with_the_way_on(path, tmp_path, overrides, why) -> None:
    config = train_long(path, tmp_path, 2, *overrides)
    last = CheckpointFolder(config.folder.checkpoints("retrain")).epoch_path(2)
    before = last.read_bytes()
    words = f"{last} was trained with epochs 2, and now it is 3; {why}, so its steps would have been others"
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        train_long(path, tmp_path, 3, *overrides)
    assert str(refused.value).endswith(f"another save_path, and retrain.from_checkpoint={last}")
    assert last.read_bytes() == before
    # The way on.
    further = (
        f"retrain.from_checkpoint={last}",
        f"save_path={tmp_path / 'further'}",
        "retrain.lr=1e-4",
        "retrain.architecture=null",
    )
    assert newest(train(path, *further, "retrain.epochs=1"))["epoch"] == 1
    # And a schedule that was left for a constant rate does not change what past steps were.
    with pytest.raises(UserError, match="its steps would have been others"):
        train_long(path, tmp_path, 3, *overrides, "retrain.min_lr=1e-3", "retrain.allow_changes=[lr, min_lr]")


def test_fewer_epochs_than_were_trained_and_other_epochs_of_a_supernet_are_refused(path, tmp_path) -> None:
    constant = ("retrain.lr=1e-3", "retrain.min_lr=1e-3")
    train_long(path, tmp_path, 2, *constant)
    with pytest.raises(UserError, match=r"retrain.epochs: found 1; .*epoch_2_ckpt.pth.tar was trained for 2 already"):
        train_long(path, tmp_path, 1, *constant)
    given = (f"save_path={tmp_path}", "search.warmup_epochs=0", "search.lr=1e-3", "search.min_lr=1e-3")
    search(configuration.load(path, [*given, "search.epochs=1"]), World())
    with pytest.raises(UserError, match=r"record of the choices' losses fades over .*choose another save_path$"):
        search(configuration.load(path, [*given, "search.epochs=2"]), World())


def test_images_that_moved_are_the_same(path, own_digits, tmp_path) -> None:
    train_on(path, own_digits, "retrain.epochs=2")
    config = configuration.load(path)
    CheckpointFolder(config.folder.checkpoints("retrain")).epoch_path(2).unlink()
    train_on(path, own_digits.rename(tmp_path / "moved"), "retrain.epochs=2")


def test_a_checkpoint_of_another_optimizer_is_refused_by_file(path) -> None:
    config = train(path, f"retrain.architecture={TEXT}")
    last = CheckpointFolder(config.folder.checkpoints("retrain")).resolve()
    state = read(last)
    state["optimizer"]["param_groups"][0]["params"].pop()
    write(state, last)
    with pytest.raises(UserError, match=r"epoch_1.*not a checkpoint of this training"):
        train(path, f"retrain.architecture={TEXT}")


@pytest.mark.parametrize("step", [-5, 10**9, "3", None, 2.5])
def test_a_checkpoint_of_an_impossible_step_is_refused_by_file(path, step) -> None:
    config = train(path, f"retrain.architecture={TEXT}")
    last = CheckpointFolder(config.folder.checkpoints("retrain")).resolve()
    write(read(last) | {"step": step}, last)
    with pytest.raises(UserError, match=r"epoch_1.*not a checkpoint of this training.*step"):
        train(path, f"retrain.architecture={TEXT}")

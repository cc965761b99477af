"""Learning from a teacher: what the loss is, which teachers there are, and which are refused."""

import pytest
import timm
import torch
import torch.nn.functional as F

from retrain.retrain import retrain
from tests.retrain.test_training import TEXT, newest, train
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.distributed import World
from vitas.errors import UserError
from vitas.teacher import load_teacher
from vitas.train import Criterion


@pytest.fixture
def teacher(path, tmp_path):
    """A checkpoint of a network that was trained for an epoch, and the configuration it is of."""
    config = train(path, f"retrain.architecture={TEXT}", f"save_path={tmp_path / 'teacher'}")
    return CheckpointFolder(config.folder.checkpoints("retrain")).resolve(), config


def student(path, teacher, *overrides: str):
    given = [f"retrain.distillation.teacher={teacher}", f"retrain.architecture={TEXT}", "retrain.label_smoothing=0"]
    return configuration.load(path, ["retrain.epochs=1", "retrain.warmup_epochs=0", *given, *overrides])


def teacher_of(config):
    return load_teacher(config, "retrain", World())


def criterion_of(path, *overrides: str) -> Criterion:
    return Criterion(student(path, "any", *overrides).retrain)


LOGITS, TAUGHT = (torch.randn(6, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
LABELS = torch.arange(6)


def test_the_loss_mixes_labels_and_teacher_by_the_weight(path) -> None:
    of_labels = F.cross_entropy(LOGITS, LABELS)
    of_teacher = F.cross_entropy(LOGITS, TAUGHT.softmax(1))
    for weight in (0.3, 1.0):
        loss = criterion_of(path, f"retrain.distillation.weight={weight}")(LOGITS, LABELS, TAUGHT)
        assert loss.item() == pytest.approx((weight * of_teacher + (1 - weight) * of_labels).item())
    assert criterion_of(path)(LOGITS, LABELS).item() == pytest.approx(of_labels.item())


def test_a_temperature_softens_both_and_keeps_the_size_of_the_gradient(path) -> None:
    both = [f"retrain.distillation.{key}" for key in ("weight=1.0", "temperature=4.0")]
    loss = criterion_of(path, *both)(LOGITS, LABELS, TAUGHT)
    assert loss.item() == pytest.approx(16 * F.cross_entropy(LOGITS / 4, (TAUGHT / 4).softmax(1)).item())


def test_a_hard_teacher_gives_its_class(path) -> None:
    hard = [f"retrain.distillation.{key}" for key in ("weight=1.0", "hard=true")]
    loss = criterion_of(path, *hard)(LOGITS, LABELS, TAUGHT)
    assert loss.item() == pytest.approx(F.cross_entropy(LOGITS, TAUGHT.argmax(1)).item())


def test_a_student_comes_nearer_to_its_teacher(path, teacher) -> None:
    """Learning from the teacher alone, against learning from the labels alone."""
    file, config = teacher
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taught = teacher_of(student(path, file))(images)
    distances = []
    for name, weight in (("student", 1.0), ("alone", 0.001)):
        folder = path.parent / name
        config = student(path, file, f"save_path={folder}", f"retrain.distillation.weight={weight}", "seed=1")
        retrain(config, World())
        own = teacher_of(student(path, CheckpointFolder(config.folder.checkpoints("retrain")).resolve()))(images)
        distances.append((own.softmax(1) - taught.softmax(1)).abs().mean().item())
    assert distances[0] < 0.8 * distances[1]


def test_a_file_of_timms_weights_is_a_teacher_by_its_models_name(path, tmp_path) -> None:
    network = timm.create_model("deit_tiny_patch16_224", pretrained=False, img_size=32, num_classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taught = teacher_of(student(path, f"deit_tiny_patch16_224:{tmp_path / 'weights.pth'}"))(images)
    with torch.no_grad():
        assert torch.allclose(taught, network(images), atol=1e-5)
    other = timm.create_model("deit_tiny_patch16_224", pretrained=False, img_size=32, num_classes=7)
    torch.save(other.state_dict(), tmp_path / "seven.pth")
    with pytest.raises(UserError, match="has not the 10 classes of this run"):
        teacher_of(student(path, f"deit_tiny_patch16_224:{tmp_path / 'seven.pth'}"))


def test_the_teacher_is_part_of_the_recipe(path, teacher) -> None:
    file, _ = teacher
    config = student(path, file)
    retrain(config, World())
    assert newest(config)["recipe"]["distillation.teacher"] == str(file)
    with pytest.raises(UserError, match="distillation"):
        retrain(student(path, file, "retrain.distillation.weight=0.9"), World())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.image_size=64", r"retrain\.distillation\.teacher: .*image_size 32, and this run has 64"),
        ("model.mean=[0.5, 0.5, 0.5]", r"retrain\.distillation\.teacher: .*another mean or std"),
    ],
)
def test_a_teacher_of_other_images_is_refused(path, teacher, override, message) -> None:
    with pytest.raises(UserError, match=message):
        teacher_of(student(path, teacher[0], override))


def test_a_teacher_of_other_classes_is_refused(path, teacher) -> None:
    config = student(path, teacher[0])
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 7})})
    with pytest.raises(UserError, match=r"num_classes 10, and this run has 7"):
        teacher_of(config)


def test_what_is_no_teacher_is_refused(path, tmp_path) -> None:
    for reference, message in (
        ("deit_tiny_patch16_244", "neither a file nor a model of timm; did you mean deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224", "has 1000 classes, and this run has 10"),
        ("test_vit", "has 1000 classes"),
    ):
        with pytest.raises(UserError, match=rf"retrain\.distillation\.teacher: .*{message}"):
            teacher_of(student(path, reference))


def test_a_model_of_timm_sees_the_images_in_its_own_normalisation(path, monkeypatch) -> None:
    """A model with random weights in place of pretrained ones: nothing is downloaded here."""
    network = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    network.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}
    monkeypatch.setattr("vitas.teacher._from_timm", lambda name, model: network)
    config = student(path, "test_vit")
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = config.model
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    logits = teacher_of(config)((pixels - mean) / std)
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(logits, network((pixels - mean) / std).detach(), rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad

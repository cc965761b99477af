"""Predictions are those of `test`, whatever the pictures are; what is no picture is named."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference.__main__ import run_predict
from inference.test import test as measure
from tests.processes import close_early
from vitas import VisionTransformer
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.data.packing import PackOptions, pack
from vitas.distributed import World


@pytest.fixture
def predict(learnt, capsys):
    """(words, ...) -> (exit code, stdout, stderr) of `python -m inference predict CONFIG words`."""

    def run(*words: object) -> tuple[int, str, str]:
        code = 0
        capsys.readouterr()
        try:
            run_predict([str(learnt), *map(str, words)])
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def picture(digits) -> Path:
    return min((digits / "test" / "3").glob("*.png"))


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predictions_over_the_test_folder_have_the_top_1_of_the_test_stage(predict, learnt, digits, tmp_path):
    config = configuration.load(learnt, [f"save_path={tmp_path}", f"test.load_name={newest(learnt)}"])
    measure(config, World())
    results = json.loads(config.folder.results.read_text())
    code, out, _ = predict(digits / "test", "--csv", "-")
    rows = rows_of(out)
    assert code == 0
    assert len(rows) == results["images"]
    folders = [Path(row["image"]).parent.name for row in rows]
    top1 = 100 * sum(row["class_1"] == name for row, name in zip(rows, folders, strict=True)) / len(rows)
    top5 = sum(any(row[f"class_{i}"] == name for i in range(1, 6)) for row, name in zip(rows, folders, strict=True))
    assert top1 == pytest.approx(results["top1"])
    assert 100 * top5 / len(rows) == pytest.approx(results["top5"])
    assert 20 < results["top1"] < 100, "a network that has learnt nothing, or all, tells little"


def newest(learnt) -> Path:
    return CheckpointFolder(configuration.load(learnt).folder.checkpoints("retrain")).resolve()


def test_probabilities_are_the_softmax_over_all_classes_best_first(predict, learnt, digits):
    config = configuration.load(learnt, ["test.data.crop_fraction=0.8"])
    model = config.model
    network = VisionTransformer(config.architecture(config.retrain.architecture), model.num_classes, model.image_size)
    network.load_state_dict(torch.load(newest(learnt), weights_only=True)["model"])
    images = EvaluationSet.load(config.test.data, model.image_size, model.mean, model.std, World(), everything=True)
    with torch.no_grad():
        expected = network.eval()(next(images.batches(40))[0]).softmax(dim=1)
    _, out, _ = predict("--top", 99, digits / "test" / "0", "test.data.crop_fraction=0.8", "--csv", "-")
    for row, probabilities in zip(rows_of(out), expected, strict=False):
        assert len(row) == 1 + 2 * 10, "all ten classes, though 99 were asked for"
        found = [float(row[f"probability_{i}"]) for i in range(1, 11)]
        assert found == sorted(found, reverse=True)
        by_name = {row[f"class_{i}"]: probability for i, probability in enumerate(found, start=1)}
        assert [by_name[str(label)] for label in range(10)] == pytest.approx(probabilities.tolist(), abs=2e-6)


def test_the_table_has_as_many_columns_as_asked_for_and_the_csv_file_the_same_classes(predict, picture, tmp_path):
    path = tmp_path / "deep" / "found.csv"
    code, out, err = predict(picture, "--top", 2, "--csv", path)
    (row,) = rows_of(path.read_text())
    assert code == 0
    assert list(row) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert row["image"] == str(picture)
    cells = [f"{row[f'class_{i}']} {100 * float(row[f'probability_{i}']):.1f}%" for i in (1, 2)]
    (line,) = (line for line in out.splitlines() if str(picture) in line)
    assert re.split(r"\s{2,}", line.strip()) == [str(picture), *cells]
    assert "top-2" in out
    assert "top-3" not in out
    assert err.startswith("takes ")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_a_picture_of_any_mode_is_read_as_rgb(predict, picture, tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    image = Image.open(picture).convert(mode)
    image.save(tmp_path / f"other.{suffix}")
    image.convert("RGB").save(tmp_path / "rgb.png")
    code, out, _ = predict(tmp_path, "--csv", "-")
    other, rgb = (list(row.values())[1:] for row in rows_of(out))
    assert code == 0
    assert other == rgb


def test_what_is_no_image_is_named_and_the_others_are_done(predict, picture, tmp_path):
    (tmp_path / "a_text.png").write_text("no picture")
    (tmp_path / "b_torn.png").write_bytes(picture.read_bytes()[:100])
    (tmp_path / "c_good.png").write_bytes(picture.read_bytes())
    (tmp_path / "d_empty.jpg").touch()
    # Two of a batch, so that one batch holds nothing good; and as workers tell it.
    words = (tmp_path, "test.batch_size=2", "test.data.workers=1")
    code, out, err = predict(*words, "--csv", tmp_path / "found.csv")
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split()[1] for line in errors] == [
        str(tmp_path / name) for name in ("a_text.png", "b_torn.png", "d_empty.jpg")
    ]
    assert errors[0].endswith("is not an image")
    (row,) = rows_of((tmp_path / "found.csv").read_text())
    assert row["image"] == str(tmp_path / "c_good.png")
    assert "c_good.png" in out


def test_nothing_but_what_is_no_image_ends_with_code_1_and_no_table(predict, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    code, out, err = predict(tmp_path / "text.png")
    assert (code, out) == (1, "")
    assert f"error: {tmp_path / 'text.png'} is not an image\n" in err


def test_one_missing_file_does_not_end_it(predict, picture, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = predict("gone.png", picture, tmp_path / "empty", picture.parent / "gone", "--csv", "-")
    assert code == 1
    assert [row["image"] for row in rows_of(out)] == [str(picture)]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split("'")[1] for line in errors] == [
        "gone.png",
        str(tmp_path / "empty"),
        str(picture.parent / "gone"),
    ]
    assert errors[0] == "error: found 'gone.png', which does not exist; give image files, or folders of them"


def test_classes_are_numbers_where_there_are_no_class_folders_and_that_is_said(predict, picture, tmp_path):
    code, out, err = predict(picture, f"test.data.data_dir={tmp_path / 'gone'}", "--csv", "-")
    named = predict(picture, "--csv", "-")[1]
    assert code == 0
    assert out == named, "the digits' folders are named by their numbers"
    assert f"{tmp_path / 'gone'} is not there, so class names are not known and classes are numbers" in err


def test_class_names_are_those_of_the_folders_even_where_they_are_markup(predict, picture, tmp_path):
    names = ["[bold]", *"bcdefghi", "j, k"]
    for name in names:
        (tmp_path / "named" / name).mkdir(parents=True)
    data = (f"test.data.data_dir={tmp_path / 'named'}", "search=null", "sample=null", "retrain=null")
    _, numbered, _ = predict(picture, "--top", 10, "--csv", "-")
    _, out, _ = predict(picture, *data, "--top", 10, "--csv", tmp_path / "found.csv")
    (row,), (numbers,) = rows_of((tmp_path / "found.csv").read_text()), rows_of(numbered)
    for i in range(1, 11):
        assert row[f"class_{i}"] == names[int(numbers[f"class_{i}"])]
        assert f"{row[f'class_{i}']} " in out


def test_workers_and_batches_change_nothing(predict, digits):
    words = (digits / "test" / "7", "--csv", "-")
    alone = rows_of(predict(*words)[1])
    shared = rows_of(predict(*words, "test.data.workers=2", "test.batch_size=5")[1])
    assert [row["image"] for row in shared] == [row["image"] for row in alone]
    for one, other in zip(alone, shared, strict=True):
        assert np.allclose(float(one["probability_1"]), float(other["probability_1"]), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_images_of_a_pack_are_predicted_as_those_of_its_folder_by_the_names_in_it(
    predict, digits, tmp_path, workers
):
    images, packed = tmp_path / "some", tmp_path / "some.pack"
    for name in ("3", "7"):
        shutil.copytree(digits / "test" / name, images / name)
    pack(images, packed, PackOptions(shard_bytes=5_000), 1)
    words = ("--csv", "-", "test.batch_size=20", f"test.data.workers={workers}")
    code, out, err = predict(packed, *words)
    assert (code, "error" in err) == (0, False)
    assert out == predict(images, *words)[1].replace(str(images), str(packed))
    # With what is no pack, and below a folder.
    (tmp_path / "other.png").write_bytes(next((images / "3").iterdir()).read_bytes())
    shutil.rmtree(images)
    assert rows_of(predict(tmp_path, *words)[1])[1:] == rows_of(out)


def test_an_image_of_a_pack_that_is_damaged_is_named_and_the_others_are_done(predict, digits, tmp_path):
    packed = tmp_path / "pack"
    pack(digits / "test", packed, PackOptions(), 1)
    shard = packed / "00000.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 1
    shard.write_bytes(content)
    code, out, err = predict(packed, "--csv", "-")
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    first = min((digits / "test" / "0").iterdir()).name
    assert line == f"error: {packed / '0' / first} is not what was packed, by its checksum"
    assert len(rows_of(out)) == len(list((digits / "test").rglob("*.png"))) - 1


def test_a_pack_that_is_not_whole_is_named_and_the_others_are_done(predict, digits, picture, tmp_path):
    pack(digits / "test", tmp_path / "pack", PackOptions(), 1)
    (tmp_path / "pack" / "00000.arrow").unlink()
    code, out, err = predict(tmp_path / "pack", picture, "--csv", "-")
    assert code == 1
    assert [row["image"] for row in rows_of(out)] == [str(picture)]
    assert f"error: {tmp_path / 'pack' / '00000.arrow'}: No such file or directory; it is a part of the pack" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone.png",), "found 'gone.png', which does not exist"),
        (("{tmp}",), "which holds no image"),
        (("{picture}", "--csv", "{picture}"), "it must be a file that ends with .csv"),
        (("{picture}", "--csv", "{tmp}/file/x.csv"), "--csv: found '{tmp}/file', which cannot be made"),
        (("{picture}", "test.load_name={picture}"), "is not a complete checkpoint file"),
        (("{picture}", "test.architecture=p8-e32-token-h2q96m64"), "does not fit this architecture"),
        (("{picture}", "test.start=1", "test.end=2"), "no checkpoint of epoch 1"),
        (("{picture}", "test.wheels=1"), "test.wheels: unknown key"),
    ],
)
def test_mistakes_are_refused_in_one_line_and_write_nothing(predict, picture, tmp_path, words, message):
    (tmp_path / "file").touch()
    before = picture.read_bytes()
    code, out, err = predict(*(word.format(tmp=tmp_path, picture=picture) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message.format(tmp=tmp_path) in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert picture.read_bytes() == before


@pytest.mark.parametrize("words", [("seed=1",), ()])
def test_a_call_without_pictures_is_refused(predict, words):
    code, _, err = predict(*words)
    assert code == 2
    assert "IMAGE_OR_FOLDER" in err


def test_a_picture_whose_name_reads_like_a_key_is_one_with_its_folder(predict, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").write_bytes(picture.read_bytes())
    code, out, _ = predict("./seed=1", "seed=5", "--csv", "-")
    assert code == 0
    assert [row["image"] for row in rows_of(out)] == ["seed=1"]


@pytest.mark.parametrize("words", [("--csv", "-"), ()], ids=["CSV", "table"])
def test_a_reader_that_leaves_in_the_middle_is_no_error(learnt, digits, words):
    printed, errors = close_early("inference", "predict", learnt, digits / "train", *words, "--top", 10, lines=2)
    assert words == () or printed.startswith("image,class_1,probability_1,")
    assert [line.split()[0] for line in errors.splitlines()] == ["takes"]

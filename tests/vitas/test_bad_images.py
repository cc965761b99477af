"""Bad images: who takes their places, who leaves them out, where they are named, and how many are too many."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vitas.conftest import assert_equal_batches
from vitas.data.augmentation import training_transform
from vitas.data.bad_images import BadImages
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import Augmentation, EvaluationData, TrainingData
from vitas.data.images import draw_images, open_image_folder, spread_images
from vitas.data.training import AugmentedImages, TrainingLoader
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report
from vitas.run import RunFolder

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
# In the folder's order: two in a row at the end of class a, and the last of the folder.
BAD = [4, 8, 9, 19]
REPLACED_BY = {4: 5, 8: 10, 9: 10, 19: 0}


@pytest.fixture
def good(tmp_path) -> Path:
    """20 random images of 40 x 32, ten of each of two classes, of different values throughout."""
    folder, rng = tmp_path / "good", np.random.default_rng(0)
    for i in range(20):
        path = folder / "ab"[i // 10] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    return folder


def paths_of(folder: Path) -> list[Path]:
    return [Path(path) for path, _ in open_image_folder(str(folder)).samples]


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.fixture
def damaged(good, tmp_path) -> Path:
    """The same folder with the images of BAD damaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(good, folder)
    for index in BAD:
        spoil(paths_of(folder)[index])
    return folder


@pytest.fixture
def report(tmp_path) -> Report:
    return Report("retrain", RunFolder(tmp_path / "run"), World())


def loader(folder, batch_size=10, world=World(), workers=0, share=0.2, report=None, repeats=1) -> TrainingLoader:
    settings = TrainingData(data_dir=str(folder), workers=workers, bad_images=share)
    return TrainingLoader(settings, 16, MEAN, STD, batch_size, world, seed=0, repeats=repeats, report=report)


def evaluation_set(folder, world=World(), workers=0, share=0.2, report=None, everything=False) -> EvaluationSet:
    settings = EvaluationData(data_dir=str(folder), workers=workers, crop_fraction=1.0, bad_images=share)
    return EvaluationSet.load(settings, 32, MEAN, STD, world, everything, report)


def lines(report: Report) -> list[str]:
    return report.bad_images.read_text().splitlines()


# Training


def test_the_next_good_image_takes_a_bad_ones_place_with_its_label_and_the_bad_ones_augmentation(good, damaged):
    transform = training_transform(Augmentation(), 16, MEAN)
    for index in range(20):
        # The same draws, of an image that lies where the bad one lay.
        twin, by = paths_of(good)[index], REPLACED_BY.get(index, index)
        content = twin.read_bytes()
        twin.write_bytes(paths_of(good)[by].read_bytes())
        [expected] = AugmentedImages(open_image_folder(str(good)), transform, 0).__getitems__([(1, index, 0)])
        twin.write_bytes(content)
        augmented = AugmentedImages(open_image_folder(str(damaged)), transform, 0, most_bad=4)
        [item] = augmented.__getitems__([(1, index, 0)])
        assert torch.equal(item.image, expected.image), index
        assert item.erased == expected.erased
        assert item.label == by // 10
        assert list(map(Path, item.bad)) == [paths_of(damaged)[i] for i in BAD if index <= i < by or i == index]


def test_batches_with_bad_images_depend_neither_on_workers_nor_on_ranks_nor_on_the_start(damaged):
    whole = list(loader(damaged).batches(0, 6))
    assert_equal_batches(loader(damaged, workers=2).batches(0, 6), whole)
    assert_equal_batches(loader(damaged).batches(3, 6), whole[3:])
    parts = zip(*(loader(damaged, world=World(rank, 2), workers=1).batches(0, 6) for rank in range(2)), strict=True)
    assert_equal_batches((tuple(torch.cat(part) for part in zip(*step, strict=True)) for step in parts), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_once_in_the_file_and_in_the_log(damaged, report, workers):
    for _ in loader(damaged, workers=workers, report=report, repeats=2).batches(0, 16):
        pass
    named = dict(line.split("\t") for line in lines(report))
    assert len(lines(report)) == len(named) == 4
    assert sorted(named) == [str(paths_of(damaged)[index]) for index in BAD]
    assert all(reason.startswith("is a damaged image") for reason in named.values())
    log = (report.bad_images.parent / "log" / "retrain.log").read_text().splitlines()
    assert len(log) == 4
    for number, (line, path) in enumerate(zip(log, named, strict=True), start=1):
        assert f"bad image, {number} of at most 4 of 20: {path} is a damaged image" in line


def test_another_start_and_another_rank_name_only_what_is_new(damaged, report, tmp_path):
    for _ in loader(damaged, report=report).batches(0, 2):
        pass
    before = lines(report)
    other = Report("retrain", RunFolder(tmp_path / "run"), World(1, 2))
    spoil(paths_of(damaged)[2])
    for _ in loader(damaged, report=other, share=0.3).batches(0, 2):
        pass
    assert lines(report)[:4] == before
    assert [line.split("\t")[0] for line in lines(report)[4:]] == [str(paths_of(damaged)[2])]
    log = (report.bad_images.parent / "log" / "retrain.log").read_text().splitlines()
    assert len(log) == 5
    assert "rank 1: bad image, 5 of at most 6 of 20" in log[4]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("share", "allowed"), [(0.15, 3), (0.0, 0)])
def test_more_bad_images_than_allowed_stop_the_run_with_their_names_and_leave_no_worker(
    damaged, workers, share, allowed
):
    before = multiprocessing.active_children()
    with pytest.raises(UserError) as raised:
        list(loader(damaged, workers=workers, share=share).batches(0, 20))
    message = str(raised.value)
    assert f"of {str(damaged)!r}; bad_images ({share:g} of them) allows {allowed}: mend" in message
    named = [line.split()[0] for line in message.splitlines()[1:]]
    assert len(named) > allowed
    assert set(named) <= {str(paths_of(damaged)[index]) for index in BAD}
    assert set(multiprocessing.active_children()) <= set(before)


def test_a_folder_of_bad_images_alone_ends_with_a_message(damaged):
    for path in paths_of(damaged):
        path.write_text("no picture")
    for share in (0.0, 0.99):
        with pytest.raises(UserError, match=r"bad images? among the 20"):
            list(loader(damaged, share=share).batches(0, 1))
        with pytest.raises(UserError, match="found 20 bad images"):
            evaluation_set(damaged, share=share)


def test_the_union_of_ranks_and_starts_is_what_may_not_be_too_much(damaged, report, tmp_path):
    bad = {rank: BadImages(str(damaged), 20, 0.15, Report("retrain", RunFolder(tmp_path / "run"), World(rank, 2)))
           for rank in range(2)}  # fmt: skip
    paths = [str(paths_of(damaged)[index]) for index in BAD]
    bad[0].record({paths[0]: "is bad", paths[1]: "is bad"})
    bad[1].record({paths[1]: "is bad", paths[2]: "is bad"})
    assert [line.split("\t")[0] for line in lines(report)] == paths[:3]
    with pytest.raises(UserError, match="found 4 bad images"):
        bad[1].record({paths[3]: "is bad"})
    # A restart says so at once.
    with pytest.raises(UserError, match="found 4 bad images"):
        loader(damaged, share=0.15, report=report)
    loader(damaged, share=0.2, report=report)


def test_images_that_were_mended_or_taken_away_since_count_no_more(good, damaged, report):
    with pytest.raises(UserError, match="found"):
        evaluation_set(damaged, share=0.15, report=report)
    shutil.copy(paths_of(good)[4], paths_of(damaged)[4])
    assert evaluation_set(damaged, share=0.15, report=report).left_out == 3
    paths_of(damaged)[8].unlink()
    assert evaluation_set(damaged, share=0.12, report=report).left_out == 2
    spoil(paths_of(damaged)[4])
    with pytest.raises(UserError, match="found 3"):
        evaluation_set(damaged, share=0.12, report=report)


def test_bad_images_of_another_folder_do_not_count(good, damaged, report):
    """`retrain` and `test` have one file, and so have `search` and `sample`."""
    evaluation_set(damaged, report=report)
    spoil(paths_of(good)[0])
    assert evaluation_set(good, share=0.05, report=report).left_out == 1
    assert len(lines(report)) == 5


def test_a_message_lists_ten_and_says_where_all_are(damaged, report):
    many = {str(damaged / f"{i}.png"): "is bad" for i in range(500)}
    with pytest.raises(UserError) as raised:
        BadImages(str(damaged), 1000, 0.1, report).record(many)
    listed = str(raised.value).splitlines()[1:]
    assert len(listed) == 11
    assert listed[-1] == f"  and 490 more; all are in {report.bad_images}"
    assert len(lines(report)) == 500


@pytest.mark.parametrize("name", ["new\nline.png", "tab\there.png", "line\u2028separator.png", "\udcff.png"])
def test_every_name_is_one_line(damaged, report, name):
    BadImages(str(damaged), 100, 0.1, report).record({f"{damaged}/{name}": "is bad\nin two lines"})
    (line,) = report.bad_images.read_text().split("\n")[:-1]
    assert line.count("\t") == 1
    assert line.endswith("\tis bad\\nin two lines")
    again = BadImages(str(damaged), 100, 0.1, report)
    again.record({f"{damaged}/{name}": "is bad\nin two lines"})
    assert len(lines(report)) == 1


@pytest.mark.parametrize(
    ("images", "share", "allowed"), [(100, 0.29, 29), (999, 0.001, 0), (1000, 0.001, 1), (9, 0, 0)]
)
def test_as_many_are_allowed_as_the_share_says(tmp_path, images, share, allowed):
    bad = BadImages(str(tmp_path), images, share)
    bad.record({str(tmp_path / str(i)): "is bad" for i in range(allowed)})
    with pytest.raises(UserError, match=f"found {allowed + 1} bad image"):
        bad.record({str(tmp_path / "more"): "is bad"})


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_images_out(good, damaged, report, workers):
    whole, left = evaluation_set(good), evaluation_set(damaged, workers=workers, report=report)
    kept = torch.tensor([index for index in range(20) if index not in BAD])
    assert torch.equal(left.images, whole.images[kept])
    assert torch.equal(left.labels, whole.labels[kept])
    assert (left.total, left.left_out, whole.left_out) == (16, 4, 0)
    assert [line.split("\t")[0] for line in lines(report)] == [str(paths_of(damaged)[index]) for index in BAD]


def test_all_ranks_know_how_many_images_remain_and_one_names_the_bad(damaged, as_ranks, report, tmp_path):
    def load(world: World) -> EvaluationSet:
        return evaluation_set(damaged, world, report=Report("retrain", RunFolder(tmp_path / "run"), world))

    shares, whole = as_ranks(3, load), evaluation_set(damaged)
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)
    assert {(share.total, share.left_out) for share in shares} == {(16, 4)}
    assert len(lines(report)) == 4


def test_too_many_bad_images_of_all_ranks_together_stop_each_of_them(damaged, as_ranks):
    ended = as_ranks(3, lambda world: evaluation_set(damaged, world, share=0.15))
    assert [type(end) for end in ended] == [UserError] * 3
    assert {str(end).splitlines()[0].split(" of ")[0] for end in ended} == {"found 4 bad images among the 20"}


def test_a_line_of_pixels_is_left_out_of_evaluation(good):
    """Its shorter side would be resized to the network's, and it would fill the memory."""
    Image.new("RGB", (200_000, 1)).save(paths_of(good)[3])
    assert evaluation_set(good).left_out == 1


# A few images


def test_the_next_good_image_that_is_not_drawn_takes_the_place_of_a_bad_one(good, damaged):
    by_index = evaluation_set(good).images

    def indices(images: torch.Tensor) -> list[int]:
        return [next(i for i in range(20) if torch.equal(image, by_index[i])) for image in images]

    assert indices(spread_images(str(damaged), 5, 32, 1.0, 0.2)) == [0, 5, 10, 12, 16]
    assert indices(spread_images(str(good), 5, 32, 1.0)) == [0, 4, 8, 12, 16]
    assert indices(spread_images(str(damaged), 20, 32, 1.0, 0.2)) == [i for i in range(20) if i not in BAD]
    drawn = draw_images(str(good), 12, 32, 1.0, seed=1)[0]
    again, new_labels = draw_images(str(damaged), 12, 32, 1.0, seed=1, workers=2, bad_images=0.2)
    assert torch.equal(again, draw_images(str(damaged), 12, 32, 1.0, seed=1, bad_images=0.2)[0])
    assert set(BAD) & set(indices(drawn))
    for old, new, label in zip(indices(drawn), indices(again), new_labels, strict=True):
        assert label == new // 10
        assert (old == new) == (old not in BAD)
    assert len(set(indices(again))) == 12
    assert not set(BAD) & set(indices(again))
    for read in (spread_images, lambda *a: draw_images(*a, seed=1)):
        with pytest.raises(UserError, match=r"bad images? among the 20"):
            read(str(damaged), 12, 32, 1.0)

"""The page of a run: from whatever there is of it, with everything in it, and nothing that could hurt."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import binomtest

from search.sample import sample
from search.search import search
from tests.processes import ENVIRONMENT, REPOSITORY
from tests.vitas.made_runs import END, MARKUP, SIZE, finished, journal, log, metrics, searched, without_training
from vitas import config as configuration
from vitas.catalog import zoo
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report_page import javascript, of_search
from vitas.report_page.of_runs import differences, sign_test, verdicts
from vitas.report_page.read import MOST_POINTS, Scored, read_metrics, read_run
from vitas.report_page.stages import duration
from vitas.report_page.write import write_report
from vitas.run import STAGES, RunFolder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without the plotting library, which is tested in a browser, and without drawing files, which takes seconds."""
    monkeypatch.setattr("vitas.report_page.write.bundle", lambda: "/* the library */")
    monkeypatch.setattr("vitas.report_page.write.write_figures", lambda page, folder: None)


class Parts(HTMLParser):
    """A page's headings, text, figures and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.figures, self.tags, self.words, self.headings = [], [], [], []
        self.data: dict[str, str] = {}
        self._inside, self._script = [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag == "figure" and "data-figure" in found:
            self.figures.append(found["data-figure"])
        if tag in ("h1", "h2", "h3", "script", "style"):
            self._inside.append(tag)
            self._script = found.get("id")

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, text):
        inside = self._inside[-1] if self._inside else ""
        if inside == "script":
            self.data[self._script] = self.data.get(self._script, "") + text
        elif inside != "style":
            self.words.append(text)
            if inside:
                self.headings.append(text)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page(*folders: RunFolder, output: Path | None = None) -> Parts:
    return Parts(write_report([folder.root for folder in folders], output).read_text())


def test_a_finished_run_has_all_its_sections_and_figures(tmp_path):
    found = page(finished(tmp_path / "run"))
    sections = [
        "Result",
        "What was found",
        "Search",
        "The supernet's training",
        "The found network's training",
        "Mistakes",
    ]
    assert [heading for heading in found.headings if heading in [*sections, "Stages"]] == [*sections, "Stages"]
    assert found.figures == [
        "search", "best", "hypervolume", "choices-network", "choices-heads", "choices-qkv-dim", "choices-mlp-dim",
        "search-loss", "search-lr", "panel", "seen-costs", "seen-depths",
        "retrain-loss", "retrain-top1", "retrain-lr", "classes", "confusion",
    ]  # fmt: skip
    specs = json.loads(found.data["figures"])
    assert list(specs) == found.figures
    points = specs["search"]["spec"]["layer"][-1]["data"]["values"]
    assert len(points) == 60
    assert [tag for tag, _ in found.tags].count("img") == 2 * 4
    assert "resumes at step 8 of 16" in found.text
    assert "0123456789ab with changes" in found.text
    assert "8 x a GPU" in found.text
    assert "No curves" not in found.text


def test_the_accuracy_has_its_interval(tmp_path):
    folder = finished(tmp_path / "run")
    results = json.loads(folder.results.read_text())
    results["checkpoints"] = [{**results, "top1": 97.5, "images": 360} | {"checkpoints": None}]
    folder.results.write_text(json.dumps(results))
    assert "97.5 95.3 to 98.7" in page(folder).text.replace("97.595.3", "97.5 95.3")


@pytest.mark.parametrize(
    "gone", ["search", "retrain", "search/log", "retrain/log", "search/metrics", "search/population.jsonl"]
)
def test_half_a_run_has_a_page(tmp_path, gone):
    folder = finished(tmp_path / "run")
    path = folder.root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = page(folder)
    assert "Stages" in found.headings
    assert ("No curves of loss and learning rate: this run has no search/metrics/search.csv." in found.text) == (
        gone == "search/metrics"
    )


def test_a_folder_of_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "run" / "search").mkdir(parents=True)
    assert "No logs here." in page(RunFolder(tmp_path / "run")).text


@pytest.mark.parametrize(
    "name",
    [
        "search/population.jsonl", "search/panel.jsonl", "search/seen.yaml", "search/architectures.yaml",
        "retrain/results.json", "retrain/predictions.npz", "search/log/search/config.yaml",
        "search/log/search/environment.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"\xff\xfe no file of ours \n", b'{"a": {"b": 1}}\n[1]\n', b""])
def test_a_broken_file_is_a_note_and_the_rest_of_the_page_is_there(tmp_path, name, content):
    folder = finished(tmp_path / "run")
    (folder.root / name).write_bytes(content)
    found = page(folder)
    assert "Stages" in found.headings
    if content.startswith(b"\xff"):
        assert Path(name).name in found.text


def test_a_half_written_line_is_left_to_its_writer(tmp_path):
    folder = searched(tmp_path / "run")
    with open(folder.population, "a") as file:
        file.write('{"architecture": "p8-e3')
    before = folder.population.read_bytes()
    points = json.loads(page(folder).data["figures"])["search"]["spec"]["layer"][-1]["data"]["values"]
    assert len(points) == 60
    assert folder.population.read_bytes() == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report([tmp_path])
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_report([searched(tmp_path / "run").root], tmp_path / "page.pdf")


def test_markup_in_names_is_text(tmp_path):
    classes = (MARKUP, END, os.fsdecode(b"\xff\xfe"), *"defghij")
    folder = finished(tmp_path / f"run {MARKUP.replace('/', '')}", classes=classes)
    log(folder, "retrain", "begins", f"bad image, 1 of at most 2 of 3: {MARKUP}{END}", "the network is in x")
    html = write_report([folder.root]).read_text()
    found = Parts(html)
    assert [tag for tag, of in found.tags if tag == "img" and not of["src"].startswith("data:image/")] == []
    assert not any(name.startswith("on") for _, of in found.tags for name in of)
    assert [tag for tag, _ in found.tags].count("script") == html.count("<script") == 4
    assert MARKUP in found.text
    said = {row["said"] for row in json.loads(found.data["figures"])["confusion"]["spec"]["data"]["values"]}
    assert END in said


def test_the_page_may_fetch_nothing(tmp_path):
    found = page(finished(tmp_path / "run"))
    policy = next(of["content"] for tag, of in found.tags if tag == "meta" and "http-equiv" in of)
    assert "default-src 'none'" in policy
    assert not [of for tag, of in found.tags if tag in ("link", "iframe") or str(of.get("src", "data:"))[:5] != "data:"]


def test_runs_are_side_by_side_with_what_differs(tmp_path):
    runs = [finished(tmp_path / f"run {seed}", seed=seed, right=0.9 - 0.4 * seed) for seed in (0, 1)]
    found = page(*runs, output=tmp_path / "both.html")
    assert {"runs", "runs-front", "runs-train-loss", "run1-search", "run2-search"} <= set(found.figures)
    assert ("retrain.lr", ["0", "1"]) in differences([read_run(run.root) for run in runs])
    assert "Where their configurations differ" in found.headings
    assert re.search(r"run 0 has \d+\.\d\d points more than run 1\.", found.text)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [finished(tmp_path / name / "run", seed=i) for i, name in enumerate("ab")]
    found = page(*runs, output=tmp_path / "both.html")
    rows = json.loads(found.data["figures"])["runs"]["spec"]["data"]["values"]
    assert [row["run"] for row in rows] == ["a/run", "b/run"]
    # The same run twice is no reason to wait.
    page(runs[0], runs[0], output=tmp_path / "twice.html")


def test_two_runs_inside_an_interval_are_not_ranked(tmp_path):
    runs = [read_run(finished(tmp_path / name, right=right).root) for name, right in (("a", 0.8), ("b", 0.81))]
    (told,) = verdicts(runs)
    assert "are not ranked" in told
    # The same images in the same order.
    assert "Of the same 200 images" in told


def test_the_sign_test_is_exact():
    for one, other in ((0, 0), (5, 0), (12, 3), (300, 260)):
        expected = binomtest(one, one + other).pvalue if one + other else 1.0
        assert sign_test(one, other) == pytest.approx(expected)


def test_a_stage_of_one_run_alone_is_one_line_of_the_differences(tmp_path):
    whole, part = finished(tmp_path / "a"), without_training(tmp_path / "b")
    found = dict(differences([read_run(whole.root), read_run(part.root)]))
    assert found["retrain"] == ["was run", "was not"]
    assert "retrain.lr" not in found


def test_a_search_without_training_has_its_scores_and_its_series(tmp_path):
    found = page(without_training(tmp_path / "run"))
    assert found.figures == ["asvit-length-distortion", "asvit-ntk-condition", "asvit-entropy", "asvit-series"]
    points = json.loads(found.data["figures"])["asvit-ntk-condition"]["spec"]["layer"][0]["data"]["values"]
    # One topology has no finite scores.
    assert len(points) == 29


def test_an_elastic_run_lists_its_front(tmp_path):
    folder = searched(tmp_path / "run")
    folder.pretrained.write_text("origin: {image_size: 32, num_classes: 10}\n")
    found = page(folder)
    assert "Search: subnets with inherited weights" in found.headings
    front = of_search.SearchView(read_run(folder.root)).front
    assert all(str(scored.architecture) in found.text for scored in front)


def test_requeues_bad_images_bad_steps_and_errors_of_ranks_are_told(tmp_path):
    folder = finished(tmp_path / "run")
    start = folder.start("retrain", None)
    journal(start / "requeues.jsonl", [{"stopped": True}, {"stopped": False}])
    (start / "rank_3.err").write_text("Traceback\nRuntimeError: CUDA error\n")
    folder.bad_images("retrain").write_text("a\tis empty\nb\tis empty\n")
    folder.bad_steps("retrain").write_text("step 11\n")
    text = page(folder).text
    assert "requeued 2 times: 1 stops, 1 deaths" in text
    assert "rank_3.err: RuntimeError: CUDA error" in text
    assert "2 bad images" in text
    assert "1 steps were left out" in text


def test_a_pause_is_not_counted_as_time_that_a_stage_ran(tmp_path):
    folder = searched(tmp_path / "run")
    path = folder.log("search", None)
    path.write_text(
        "2026-01-01 00:00:00 search: begins\n2026-01-01 00:10:00 search: epoch 1\n"
        "2026-01-03 08:00:00 search: begins\n2026-01-03 08:00:10 search: resumes at step 3\n"
        "2026-01-03 08:05:10 search: the supernet is in x\n"
    )
    found = read_run(folder.root).logs["search"]
    assert (found.seconds, found.starts, found.is_done) == (600 + 310, 2, True)
    assert [duration(s) for s in (9, 61, 3660)] == ["9 s", "1 min 01 s", "1 h 01 min"]


def test_metrics_of_a_step_that_is_there_twice_count_once_and_broken_lines_not_at_all(tmp_path):
    folder = RunFolder(tmp_path)
    metrics(folder, "retrain", {"train/loss": [2.0, 1.0]})
    with open(folder.metrics("retrain"), "a") as file:
        file.write("10,0.5,1,train/loss,0.5\n20,1.0,1,train/loss,nan\nx,,,train/loss,1\n30,1.5,1,train/lo")
    assert read_metrics(folder.metrics("retrain")) == {"train/loss": [(0, 0.0, 2.0), (10, 0.5, 0.5)]}


def test_long_curves_are_thinned_to_their_ends_and_evenly_between(tmp_path):
    folder = RunFolder(tmp_path)
    metrics(folder, "retrain", {"train/loss": [float(i) for i in range(20_000)]})
    curve = read_metrics(folder.metrics("retrain"))["train/loss"]
    assert len(curve) == MOST_POINTS
    assert (curve[0][2], curve[-1][2]) == (0.0, 19_999.0)


def test_the_hypervolume_never_falls_and_ends_where_the_front_is(tmp_path):
    scored = of_search.SearchView(read_run(searched(tmp_path / "run").root)).scored
    found = of_search.hypervolume(scored, lambda s: s.macs)
    volumes = [volume for _, volume in found]
    assert volumes == sorted(volumes)
    assert volumes[-1] > 0
    assert found[-1][0] == len(scored)


def test_the_front_is_of_those_that_no_other_one_beats(tmp_path):
    scored = of_search.SearchView(read_run(searched(tmp_path / "run").root)).scored

    def beats(one: Scored, other: Scored) -> bool:
        return one.macs <= other.macs and one.top1 >= other.top1 and (one.macs, one.top1) != (other.macs, other.top1)

    expected = {(s.macs, s.top1) for s in scored if not any(beats(other, s) for other in scored)}
    assert {(s.macs, s.top1) for s in of_search.front(scored, lambda s: s.macs)} == expected


def test_published_networks_are_lines_where_they_fit_between_the_costs(tmp_path):
    def names(folder: RunFolder) -> set[str]:
        layers = json.loads(page(folder).data["figures"])["search"]["spec"]["layer"]
        return {row["name"] for layer in layers for row in layer["data"]["values"] if "name" in row}

    folder = searched(tmp_path / "run")
    assert names(folder) == set()
    first, *others = folder.population.read_text().splitlines()
    dear = json.loads(others[-1]) | {"macs": 2 * zoo()["deit_tiny"].macs(*SIZE)}
    folder.population.write_text("\n".join([first, *others, json.dumps(dear)]) + "\n")
    assert "deit tiny" in names(folder)
    assert "deit small" not in names(folder)


@pytest.mark.slow
def test_stages_that_ran_are_said_to_be_done(make_config, tmp_path):
    """By the lines that they really write."""
    path = make_config({"search.epochs": 1, "retrain.epochs": 1, "retrain.warmup_epochs": 0, "search.warmup_epochs": 0})
    config = configuration.load(path)
    search(config, World())
    sample(config, World())
    for name in ("retrain", "test"):
        STAGES[name].function()(config, World())
    run = read_run(tmp_path / "run")
    assert {name: run.logs[name].is_done for name in STAGES} == dict.fromkeys(STAGES, True)
    assert run.notes == []
    assert run.predictions is not None
    found = page(run.folder)
    assert {"search", "classes"} <= set(found.figures)


@pytest.mark.slow
def test_a_stages_end_writes_the_page_and_if_that_fails_it_is_one_line_in_the_log(make_config, tmp_path):
    path = make_config({"search.epochs": 1, "search.warmup_epochs": 0, "sample.flag": False})
    (tmp_path / "run" / "report.html").mkdir(parents=True)

    def run_stage() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "search", str(path)],
            env=ENVIRONMENT | {"VITAS_REPORT": "1"},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr

    run_stage()
    lines = (tmp_path / "run/search/log/search.log").read_text().splitlines()
    assert ["report: the page is not written" in line for line in lines[-2:]] == [False, True]
    assert "report.html" in lines[-1]
    assert read_run(tmp_path / "run").logs["search"].is_done
    # With the fault gone, a stage's end leaves a page, and its figures.
    pytest.importorskip("vl_convert")
    (tmp_path / "run" / "report.html").rmdir()
    run_stage()
    found = Parts((tmp_path / "run" / "report.html").read_text())
    assert found.figures == ["search-loss", "search-lr", "seen-costs", "seen-depths"]
    assert len(list((tmp_path / "run" / "report").glob("*.png"))) == 4
    assert "the page is not written" in found.text


def test_a_missing_plotting_library_is_said_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"pip install 'vitas\[report\]'"):
        javascript.bundle()

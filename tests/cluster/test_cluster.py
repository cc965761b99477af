"""On a real Slurm: what people type reaches its end, whatever happens to its jobs, with an undisturbed run's result.

Most of the time here is Slurm's: jobs start, are missed, wait in the queue. So
the tests marked `beside_others` run at the same time, each in a thread, as soon
as the first of them is asked for.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from search.sample import sample
from tests.cluster.slurm import Slurm, wait_for
from tests.processes import REPOSITORY, run_module
from tests.test_resume import assert_equal
from vitas import cli
from vitas import config as configuration
from vitas.distributed import World
from vitas.slurm.cluster import load_cluster, sbatch_options

pytestmark = pytest.mark.slow

# Two ranks on two nodes.
ONE_EACH = ("-N", "2", "--ntasks-per-node=1", "--gres=gpu:1", "-c", "1")
STAGES = ("search", "sample", "retrain", "test")
HOMES = {"search": "search", "sample": "search", "retrain": "retrain", "test": "retrain"}
# What is retrained where the search does not matter.
GIVEN = "retrain.architecture=p8-e32-token-h2q96m64x2"
# More would only wait for each other's processors.
AT_ONCE = 3


@dataclass(frozen=True)
class Undisturbed:
    """The folders of runs that nothing disturbs, by two processes that torchrun starts, without Slurm.

    whole: all four stages. given: `retrain` of the architecture `GIVEN`.
    """

    whole: Path
    given: Path


def run_undisturbed(make_run: Callable[..., Path]) -> Undisturbed:
    whole = make_run("undisturbed")
    given = make_run("given", GIVEN)
    run_module("tests.two_ranks", whole, given, processes=2)
    return Undisturbed(whole.parent / "run", given.parent / "run")


Scenario = Callable[[Slurm, Callable[..., Path], Callable[[], Undisturbed]], None]
SCENARIOS: dict[str, Scenario] = {}


def beside_others(scenario: Scenario) -> Callable[[dict[str, Future]], None]:
    """A test that runs at the same time as the others."""
    SCENARIOS[scenario.__name__] = scenario

    def test(scenarios: dict[str, Future]) -> None:
        scenarios[scenario.__name__].result()

    test.__doc__ = scenario.__doc__
    return test


@pytest.fixture(scope="module")
def scenarios(request, slurm, make_run) -> Iterator[dict[str, Future]]:
    """Those of the chosen tests, by name, under way."""
    chosen = [item.name for item in request.session.items if item.name in SCENARIOS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        undisturbed = pool.submit(run_undisturbed, make_run)
        yield {name: pool.submit(SCENARIOS[name], slurm, make_run, undisturbed.result) for name in chosen}


def sbatch(slurm: Slurm, *arguments: object) -> str:
    """Submit with sbatch from the repository's root; the job's id. What it prints goes to /dev/null, or `--output`."""
    return slurm.run("sbatch", "--parsable", "--output=/dev/null", *arguments, cwd=REPOSITORY).stdout.strip()


def launch(slurm: Slurm, *arguments: object) -> list[str]:
    """`vitas launch`; the ids of the jobs that it submits."""
    done = slurm.run(*LAUNCH, *arguments, cwd=REPOSITORY)
    return re.findall(r"submitted job (\d+)", done.stdout)


LAUNCH = (sys.executable, "-m", "vitas", "launch")


def launched(slurm: Slurm, *arguments: object) -> tuple[int, str, str]:
    """The exit code, output and errors of `vitas launch`, without the seconds of a new process."""
    output, error, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        for name in ("PATH", "SLURM_CONF"):
            patch.setenv(name, slurm.environment[name])
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["vitas", "launch", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    return code, output.getvalue(), error.getvalue()


def log_of(save_path: Path, stage: str, job: str) -> str:
    """What rank 0 said of a stage in a job."""
    path = save_path / HOMES[stage] / "log" / f"{stage}-{job}.log"
    return path.read_text() if path.exists() else ""


def wait_for_middle(slurm: Slurm, save_path: Path, stage: str, job: str) -> None:
    """Wait until a stage is under way: some steps, scores or checkpoints from its start, many from its end."""
    signs = {"search": "step 2", "sample": "generation 1/", "retrain": "step 2", "test": "epoch_1_ckpt"}
    wait_for(lambda: signs[stage] in log_of(save_path, stage, job), 180, f"{stage} does not start in job {job}")
    assert slurm.job(job)["JobState"] == "RUNNING"


def assert_same_results(left: Path, right: Path, stages: tuple[str, ...] = STAGES) -> None:
    """The final checkpoints and results of two runs are equal, bit by bit; only what a clock measured may differ."""
    for stage, epochs in {"search": 4, "retrain": 6}.items():
        if stage not in stages:
            continue
        name = f"{stage}/checkpoint/epoch_{epochs}_ckpt.pth.tar"
        assert_equal(*(torch.load(folder / name, weights_only=True) for folder in (left, right)))
    if "sample" in stages:
        for name in ("search/population.jsonl", "search/architectures.yaml"):
            assert (left / name).read_bytes() == (right / name).read_bytes(), name
    if "test" in stages:
        assert results_of(left) == results_of(right)


def results_of(save_path: Path) -> list[dict]:
    rows = json.loads((save_path / "retrain" / "results.json").read_text())["checkpoints"]
    measured = {"images_per_second", "checkpoint"}
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


@beside_others
def test_a_chain_whose_every_job_is_requeued_takes_a_yaml_from_nothing_to_an_undisturbed_runs_results(
    slurm, make_run, undisturbed
):
    config = make_run()
    save_path = config.parent / "run"
    output = config.parent / "output"
    with open(output, "w") as file:
        following = subprocess.Popen(
            [*LAUNCH, "search", str(config), "--chain", "--follow", *ONE_EACH],
            env=slurm.environment, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    wait_for(lambda: output.read_text().count("submitted job") == 4, 60, "the jobs are not submitted")
    jobs = re.findall(r"submitted job (\d+)", output.read_text())
    for stage, job in zip(STAGES, jobs, strict=True):
        wait_for_middle(slurm, save_path, stage, job)
        slurm.run("scontrol", "requeue", job)
        fields = slurm.wait(job)
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), stage
    # It followed them all, line by line.
    assert following.wait(60) == 0
    followed = output.read_text()
    for stage, job in zip(STAGES, jobs, strict=True):
        assert f"job {job} ended: COMPLETED" in followed
        assert f" {stage}: " in followed

    for stage, job in zip(("search", "retrain"), (jobs[0], jobs[2]), strict=True):
        # SIGTERM came with time enough for a checkpoint: no step was lost.
        (stopped,) = re.findall(r"stops after step (\d+) of", log_of(save_path, stage, job))
        assert f"resumes at step {stopped} of" in log_of(save_path, stage, job)
    (stopped,) = re.findall(r"stops after (\d+) scores", log_of(save_path, "sample", jobs[1]))
    assert re.search(rf"from {stopped} scores", log_of(save_path, "sample", jobs[1]))
    assert_same_results(undisturbed().whole, save_path)

    rows = results_of(save_path)
    assert len(rows) == 6
    assert rows[-1]["top1"] > 20
    starts = sorted(save_path.glob("*/log/*/environment.json"))
    assert [path.parent.name.split("-")[0] for path in starts] == ["inference", "retrain", "search", "search"]
    for path in starts:
        environment = json.loads(path.read_text())
        assert environment["slurm_job"] == path.parent.name.split("-")[1]
        assert environment["processes"] == 2
        assert environment["packages"]["torch"]
        # Every default is resolved.
        assert yaml.safe_load((path.parent / "config.yaml").read_text())["retrain"]["weight_decay"] == 0.05
    assert not list(save_path.rglob("*.lock"))
    # Ranks that were stopped said so, and Slurm why.
    for path in save_path.rglob("rank_*.err"):
        assert all(line.startswith(("stopped by SIGTERM", "slurmstepd")) for line in path.read_text().splitlines())


@beside_others
def test_a_killed_rank_and_a_lost_node_take_the_job_back_into_the_queue(slurm, make_run, undisturbed):
    config = make_run()
    save_path = config.parent / "run"
    (job,) = launch(slurm, "retrain", config, GIVEN, "retrain.checkpoint_steps=20", *ONE_EACH,
                    "-p", "frail")  # fmt: skip
    for restart, rank in enumerate((1, 0), start=1):
        wait_for_step_after(restart - 1, save_path, job)
        os.kill(ranks(job)[rank], signal.SIGKILL)
        # Far from the half hour that a collective may take.
        wait_for(lambda: slurm.job(job)["JobState"] != "RUNNING", 60, "the other rank hangs", every=0.5)
        assert slurm.job(job)["Restarts"] == str(restart)
    output = (save_path / "retrain" / "log" / f"retrain-{job}" / f"{job}_0_log.out").read_text()
    assert f"job {job} died; requeued, 2 of at most 100 times" in output

    wait_for_step_after(2, save_path, job)
    for pid in ranks(job).values():
        os.kill(pid, signal.SIGSTOP)  # So that they do not end before Slurm misses the node.
    try:
        slurm.kill_node("n4")
        wait_for(lambda: slurm.job(job)["Restarts"] == "3", 90, "Slurm does not miss the node", every=0.5)
    finally:
        for pid in ranks(job).values():
            os.kill(pid, signal.SIGCONT)
        slurm.start_node("n4")
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "3")
    assert_same_results(undisturbed().given, save_path, ("retrain",))


@beside_others
def test_a_stopped_rank_is_named_in_the_jobs_log_and_the_job_goes_on(slurm, make_run, undisturbed):
    config = make_run()
    save_path = config.parent / "run"
    (job,) = launch(slurm, "retrain", config, GIVEN, "retrain.checkpoint_steps=20", "stall_seconds=15", *ONE_EACH)
    wait_for_step_after(0, save_path, job)
    stopped = ranks(job)[1]
    os.kill(stopped, signal.SIGSTOP)
    # Far from the half hour that a collective may take.
    wait_for(lambda: slurm.job(job)["JobState"] != "RUNNING", 120, "nobody notices", every=0.5)
    assert slurm.job(job)["Restarts"] == "1"
    assert not Path(f"/proc/{stopped}").exists()
    output = (save_path / "retrain" / "log" / f"retrain-{job}" / f"{job}_0_log.out").read_text()
    assert re.search(r"^error: no step of retrain for \d+ s: rank 1 on \S+ does not answer", output, re.M), output
    assert f"job {job} died; requeued, 1 of at most 100 times" in output
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert_same_results(undisturbed().given, save_path, ("retrain",))


def ranks(job: str) -> dict[int, int]:
    """The process ids of a job's ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = dict(part.partition(b"=")[::2] for part in (folder / "environ").read_bytes().split(b"\0"))
            if variables.get(b"SLURM_JOB_ID") == job.encode() and words[1:3] == [b"-m", b"retrain"]:
                found[int(variables[b"SLURM_PROCID"])] = int(folder.name)
    return found


def wait_for_step_after(restart: int, save_path: Path, job: str) -> None:
    """Wait until a retraining job is at work after its `restart`th requeue."""

    def at_work() -> bool:
        starts = log_of(save_path, "retrain", job).split("process(es) on cpu")
        return len(starts) == restart + 2 and re.search(r" step [2-9]\d", starts[-1]) is not None

    wait_for(at_work, 180, f"job {job} does not start")


@beside_others
def test_the_scripts_that_people_type(slurm, make_run, undisturbed):
    """sbatch script/search_bcnet.sh with 2 nodes x 2 tasks, ./script/retrain.sh, ./script/inference.sh."""
    config = make_run()
    save_path = config.parent / "elsewhere"
    job = sbatch(
        slurm, "-p", "VA", "-N", "2", "--ntasks-per-node=2", "--gres=gpu:2", "-c", "1",
        f"--output={save_path}.out", "script/search_bcnet.sh", config, f"save_path={save_path}", "search.epochs=2",
    )  # fmt: skip
    # A requeue, for what `vitas launch` does not go through: the script's own way to find itself and its environment.
    wait_for_middle(slurm, save_path, "search", job)
    slurm.run("scontrol", "requeue", job)
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), Path(f"{save_path}.out").read_text()
    assert log_of(save_path, "search", job).count("4 process(es)") == 2
    # The batch output is appended to, and says what rank 0 says.
    assert Path(f"{save_path}.out").read_text().count("4 process(es)") == 2
    assert (save_path / "search" / "architectures.yaml").exists()

    for script, stage, more in (
        ("retrain", "retrain", ["retrain.epochs=3", "test.end=3"]),
        ("inference", "test", ["test.end=3"]),
    ):
        done = slurm.run(f"script/{script}.sh", "-N1", "--ntasks-per-node=1", "--gres=gpu:1", "-c1", config,
                         f"save_path={save_path}", *more, cwd=REPOSITORY)  # fmt: skip
        assert "Slurm" in done.stderr
        (job,) = re.findall(r"submitted job (\d+)", done.stdout)
        (log,) = re.findall(r"its log will be (\S+)", done.stdout)
        assert slurm.wait(job)["JobState"] == "COMPLETED", Path(log).read_text()
        assert f"{stage}: " in Path(log).read_text()
    assert len(results_of(save_path)) == 3
    assert not list((save_path / "retrain").rglob("rank_*.err"))

    # One process gives that supernet's architectures the same scores.
    alone = config.parent / "alone"
    shutil.copytree(save_path / "search" / "checkpoint", alone / "search" / "checkpoint")
    sample(configuration.load(config, [f"save_path={alone}"]), World())
    for name in ("population.jsonl", "architectures.yaml"):
        assert (alone / "search" / name).read_bytes() == (save_path / "search" / name).read_bytes()


@beside_others
def test_a_time_limit_shorter_than_the_stage(slurm, make_run, undisturbed):
    """The job stops before its limit, several times, goes on each time where it was, and ends."""
    config = make_run()
    save_path = config.parent / "run"
    # Slurm's limits are whole minutes, so the margin is nearly as long: each start is told at its first step to stop.
    few_steps = ["retrain.batch_size=180", "retrain.epochs=1", "retrain.warmup_epochs=0"]
    (job,) = launch(slurm, "retrain", config, GIVEN, *few_steps, *ONE_EACH,
                    "--time=1", "--stop-margin=59")  # fmt: skip
    fields = slurm.wait(job, 500)
    assert fields["JobState"] == "COMPLETED"
    assert int(fields["Restarts"]) >= 2
    requeues = (save_path / "retrain" / "log" / f"retrain-{job}" / "requeues.jsonl").read_text().splitlines()
    assert len(requeues) == int(fields["Restarts"])
    log = log_of(save_path, "retrain", job)
    stopped = re.findall(r"stops after step ([\d,]+) of .* \(the time limit\)", log)
    assert stopped == re.findall(r"resumes at step ([\d,]+) of", log)
    assert len(stopped) == len(requeues)
    assert (save_path / "retrain" / "checkpoint" / "epoch_1_ckpt.pth.tar").exists()


@beside_others
def test_scancel_stops_for_good_and_leaves_what_can_go_on(slurm, make_run, undisturbed):
    config = make_run()
    save_path = config.parent / "run"
    (job,) = launch(slurm, "retrain", config, GIVEN, *ONE_EACH)
    wait_for_middle(slurm, save_path, "retrain", job)
    slurm.run("scancel", job)
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    (stopped,) = re.findall(r"stops after step (\d+) of", log_of(save_path, "retrain", job))
    (again,) = launch(slurm, "retrain", config, GIVEN, *ONE_EACH)
    fields = slurm.wait(again)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0")
    assert f"resumes at step {stopped} of" in log_of(save_path, "retrain", again)
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert_same_results(undisturbed().given, save_path, ("retrain",))


@beside_others
def test_a_second_job_with_a_running_ones_save_path_is_refused_and_requeues_are_bounded(slurm, make_run, undisturbed):
    config = make_run()
    save_path = config.parent / "run"
    long = [GIVEN, "retrain.epochs=1000"]
    (first,) = launch(slurm, "retrain", config, *long, *ONE_EACH, "--max-requeues=0")
    wait_for_middle(slurm, save_path, "retrain", first)
    (second,) = launch(slurm, "retrain", config, *long, "-N1", "--gpus-per-node=0", "--tasks-per-node=1", "-c1")
    fields = slurm.wait(second)
    assert (fields["JobState"], fields["Restarts"], fields["ExitCode"]) == ("FAILED", "0", "2:0")
    output = (save_path / "retrain" / "log" / f"retrain-{second}" / f"{second}_0_log.out").read_text()
    assert len(re.findall(f"^error: save_path: .* Slurm job {first} of ", output, re.M)) == 1

    assert slurm.job(first)["JobState"] == "RUNNING"
    slurm.run("scancel", "--signal=USR1", first)
    fields = slurm.wait(first)
    assert (fields["JobState"], fields["Restarts"], fields["ExitCode"]) == ("FAILED", "0", "75:0")
    output = (save_path / "retrain" / "log" / f"retrain-{first}" / f"{first}_0_log.out").read_text()
    assert re.search(r"requeued 0 times, .*\(max_requeues\)", output)
    assert "(SIGUSR1)" in log_of(save_path, "retrain", first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "VBA"], "partition: found 'VBA'; this cluster has VA, short, frail; did you mean VA?"),
        (["--gpus-per-node=5"], "gpus_per_node: found 5; a node of partition VA has 4 (--gpus-per-node, or"),
        (["-N", "3"], "nodes: found 3; partition VA has 2 (-N, or"),
        (["-c", "5"], "cpus_per_task: found 5, for 4 processes; a node of partition VA has 16 processors (-c, or"),
        (["-C", "a100"], "Slurm refuses the job: Invalid feature specification"),
        (["save_path=/dev/null/run"], "save_path: found '/dev/null/run', which cannot be made: Not a directory"),
    ],
)
def test_what_slurm_cannot_give_is_refused_in_one_line(slurm, make_run, arguments, message):
    config = make_run()
    code, output, error = launched(slurm, "search", config, *arguments)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    # Jobs of other tests may be in the queue.
    assert str(config.parent) not in slurm.run("scontrol", "show", "jobs").stdout
    assert list(config.parent.iterdir()) == [config]


def test_sbatch_takes_what_cluster_yaml_sets(slurm, make_run, tmp_path):
    """sbatch $(vitas cluster) script/search_bcnet.sh"""
    file = tmp_path / "cluster.yaml"
    file.write_text("partition: short\nnodes: 1\ngpus_per_node: 1\ncpus_per_task: 2\ntime: 00:20:00\n")
    job = sbatch(slurm, *sbatch_options(load_cluster(file)), "--hold", "script/search_bcnet.sh", make_run())
    fields = slurm.job(job)
    slurm.run("scancel", job)
    assert (fields["Partition"], fields["NumNodes"], fields["NumTasks"]) == ("short", "1-1", "1")
    assert (fields["CPUs/Task"], fields["TimeLimit"], fields["TresPerNode"]) == ("2", "00:20:00", "gres:gpu:1")
    assert fields["Requeue"] == "1"

"""Launching: what is found, what is asked of Slurm, and what is refused before anything is submitted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, REPOSITORY
from vitas import cli, config
from vitas.architecture import IDENTITY, Architecture
from vitas.catalog import zoo
from vitas.cli import launch
from vitas.config import find
from vitas.errors import UserError
from vitas.slurm import local, queries
from vitas.slurm.cluster import Cluster, fill_in, load_cluster, sbatch_options
from vitas.slurm.queries import Partition
from vitas.slurm.submission import StageJob, Submitted

PARTITIONS = [Partition("gpu", True, 6, 8, 64, "1-00:00:00"), Partition("cpu", False, 1, 0, 2, "infinite")]


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two partitions, which nothing can be submitted to."""
    monkeypatch.setattr(queries, "installed", lambda: True)
    monkeypatch.setattr(queries, "partitions", lambda: PARTITIONS)


@pytest.fixture
def file(tmp_path):
    """(text) -> a cluster.yaml."""

    def write(text: str):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return write


# Names of configurations


def test_a_configuration_is_found_by_path_or_name(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    configs = REPOSITORY / "configs"
    assert find("mine.yaml", "search").samefile(tmp_path / "mine.yaml")
    assert find("mine", "search").samefile(tmp_path / "mine.yaml")
    assert find(str(tmp_path / "mine.yaml"), "retrain") == tmp_path / "mine.yaml"
    assert find("ViTAS_1.3G.yaml", "retrain").samefile(configs / "retrain" / "ViTAS_1.3G.yaml")
    assert find("ViTAS_1.3G", "inference").samefile(configs / "inference" / "ViTAS_1.3G.yaml")
    assert find("quickstart.yaml", "search").samefile(configs / "quickstart.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViTAS_1.3.yaml", "did you mean ViTAS_1.3G.yaml"),
        ("vitas_858m", "did you mean ViTAS_858M.yaml"),
        ("swin.yaml", "there are AsViT_S.yaml, ViTAS_1.3G.yaml"),
    ],
)
def test_a_name_that_does_not_exist_lists_the_near_ones(name, hint):
    with pytest.raises(UserError, match=rf"{name}: no such file, here or in configs/retrain/; {hint}"):
        find(name, "retrain")


# The configurations that come with the project


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*/*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_flags_what_its_folder_runs(path):
    loaded = config.load(path)
    # As-ViT's search needs no sampling.
    searched = ("search",) if path.stem == "AsViT" else ("search", "sample")
    stages = {"search": searched, "retrain": ("retrain",), "inference": ("test",)}[path.parent.name]
    assert all(getattr(loaded, stage).flag for stage in stages)


def test_the_quickstart_compares_networks_of_one_budget():
    """Its baseline is inside the budget of the search."""
    script = (REPOSITORY / "script" / "quickstart.sh").read_text()
    baseline = Architecture.parse(re.search(r"baseline=(\S+) found=subnet_1", script)[1])
    loaded = config.load(REPOSITORY / "configs" / "quickstart.yaml")
    assert loaded.sample.budget.convention == "true"
    assert baseline.macs(loaded.model.image_size, loaded.model.num_classes) in loaded.sample.budget
    assert len(set(baseline.blocks)) == 1


@pytest.mark.parametrize(
    ("size", "name"),
    [("858M", "vitas_a"), ("1G", "vitas_b"), ("1.3G", "vitas_c"), ("2.7G", "vitas_e"), ("4.9G", "vitas_f")],
)
def test_the_published_networks_are_retrained_and_measured_in_one_folder(size, name):
    loaded = {
        folder: config.load(REPOSITORY / "configs" / folder / f"ViTAS_{size}.yaml")
        for folder in ("retrain", "inference")
    }
    assert loaded["retrain"].architecture(loaded["retrain"].retrain.architecture) == zoo()[name]
    assert loaded["inference"].architecture(loaded["inference"].test.architecture) == zoo()[name]
    assert loaded["retrain"].save_path == loaded["inference"].save_path
    recipe = loaded["retrain"].retrain
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (300, 1024, 1e-3, 0.05)


def test_vitas_c_can_be_found_by_the_block_level_search():
    loaded = config.load(REPOSITORY / "configs" / "search" / "ViTAS_1.3G_block.yaml")
    found = zoo()["vitas_c"]
    deep = Architecture(found.patch_size, found.embed_dim, (*found.blocks, *[IDENTITY] * 4))
    assert loaded.space.decode(loaded.space.encode(deep)).active_blocks == found.blocks
    assert found.macs(convention="released") in loaded.sample.budget


@pytest.mark.parametrize(("name", "sharing"), [("BCNet", "bilateral"), ("AutoSlim", "ordinal")])
def test_the_published_searches(name, sharing):
    loaded = config.load(REPOSITORY / "configs" / "search" / f"ViTAS_1G_{name}.yaml")
    assert loaded.model.sharing == sharing
    assert loaded.search.subnets.draw == "published"
    assert zoo()["vitas_b"].macs(convention="released") in loaded.sample.budget
    assert loaded.space.encode(zoo()["vitas_b"].shifted()) is not None


def test_the_block_level_search_keeps_patch_16():
    loaded = config.load(REPOSITORY / "configs" / "search" / "ViTAS_1.3G_block.yaml")
    assert (loaded.space.patch_sizes, loaded.space.shared_blocks) == ((16,), True)
    assert loaded.search.subnets.draw == "published"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "search").glob("ViTAS_*.yaml")), ids=lambda p: p.stem)
def test_a_published_search_trains_with_cutmix_and_retrains_without_mixing(path):
    """As the released files do: they retrain 858M, 1G and 1.3G without, and these searches end there."""
    loaded = config.load(path)
    assert (loaded.search.mixup, loaded.search.cutmix, loaded.search.min_lr) == (0, 1, 0)
    assert (loaded.retrain.mixup, loaded.retrain.cutmix, loaded.retrain.min_lr) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "mixing"),
    [
        ("858M", (0, 0)),
        ("1G", (0, 0)),
        ("1.3G", (0, 0)),
        ("2.7G", (0.8, 1)),
        ("4.9G", (0.8, 1)),
    ],
)
def test_a_published_network_is_retrained_with_its_published_recipe(name, mixing):
    retrain = config.load(REPOSITORY / "configs" / "retrain" / f"ViTAS_{name}.yaml").retrain
    assert (retrain.mixup, retrain.cutmix) == mixing
    assert (retrain.epochs, retrain.batch_size, retrain.lr, retrain.min_lr, retrain.repeats) == (300, 1024, 1e-3, 0, 1)


def test_deits_recipe_is_a_variant_that_says_so():
    published, variant = (
        config.load(REPOSITORY / "configs" / "retrain" / f"{name}.yaml") for name in ("ViTAS_1.3G", "ViTAS_1.3G_DeiT")
    )
    retrain = variant.retrain
    assert (retrain.mixup, retrain.cutmix, retrain.min_lr, retrain.repeats) == (0.8, 1, 1e-5, 3)
    assert retrain.architecture == published.retrain.architecture
    assert variant.save_path != published.save_path


# What is asked of Slurm


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(file):
    path = file("partition: gpu\ntime: 12:00:00\ngpus_per_node: 4\nsbatch: {exclude: n1, exclusive: true}\n")
    merged = load_cluster(path, {"gpus_per_node": 2, "nodes": None, "sbatch": {"exclude": "n2"}})
    assert merged == Cluster(
        partition="gpu", time="12:00:00", gpus_per_node=2, sbatch={"exclude": "n2", "exclusive": True}
    )
    assert sbatch_options(merged) == [
        "--partition=gpu", "--gres=gpu:2", "--ntasks-per-node=2", "--time=12:00:00", "--exclude=n2", "--exclusive",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "partitoin: unknown key; did you mean partition?"),
        ("nodes: two", "nodes: found 'two'; it must be an integer"),
        ("time: soon", "time: found 'soon'; it must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
        ("- gpu", "found list; it must be a mapping of keys"),
    ],
)
def test_a_cluster_file_with_a_mistake_is_refused(file, text, message):
    path = file(text)
    with pytest.raises(UserError) as refused:
        load_cluster(path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_what_is_left_open_is_what_the_partition_has(cluster):
    filled = fill_in(Cluster(), "search")
    assert (filled.nodes, filled.gpus_per_node, filled.tasks_per_node, filled.cpus_per_task) == (2, 8, 8, 4)
    assert filled.time == "1-00:00:00"
    assert fill_in(Cluster(), "test").nodes == 1
    filled = fill_in(Cluster(partition="cpu"), "search")
    assert (filled.nodes, filled.gpus_per_node, filled.tasks_per_node, filled.time) == (1, 0, 1, "0")
    assert filled.cpus_per_task == 2
    assert fill_in(Cluster(gpus_per_node=3, tasks_per_node=6), "retrain").tasks_per_node == 6


def launched(capsys, *arguments: object) -> tuple[int, str, str]:
    """The exit code, output and errors of `vitas launch`."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vitas", "launch", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_prints_the_sbatch_file_and_writes_nothing(cluster, make_config, capsys, tmp_path):
    path = make_config()
    code, output, error = launched(
        capsys, "retrain", path, "-p", "gpu", "-N", "3", "retrain.architecture=p8-e48-token-h2q72m48x2",
        "--gpus-per-node=4", "-t", "2-00", "--mem=64G", "--sbatch", "exclude=n7", "--dry-run", "retrain.epochs=7",
    )  # fmt: skip
    assert (code, error) == (0, "")
    for line in (
        "--partition=gpu", "--nodes=3", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=4", "--time=2-00",
        "--exclude=n7", "--mem=64G", "--requeue", "--open-mode=append", "--job-name=vitas-retrain",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reason", ["no Slurm here", "Slurm does not answer: Unable to contact slurm controller"])
def test_a_dry_run_needs_no_controller_and_says_what_it_could_not_ask(make_config, capsys, monkeypatch, reason):
    def partitions() -> list[Partition]:
        raise queries.SlurmError("Unable to contact\nslurm controller")

    monkeypatch.setattr(queries, "installed", lambda: "answer" in reason)
    monkeypatch.setattr(queries, "partitions", partitions)
    code, output, error = launched(capsys, "search", make_config(), "--dry-run", "--gpus-per-node=4")
    assert (code, error) == (0, "")
    assert output.startswith(f"#!/bin/bash\n# {reason}; nodes, GPUs, processes and time that were not given come from")
    assert "#SBATCH --gres=gpu:4\n" in output
    # To submit is another matter.
    code, output, error = launched(capsys, "search", make_config(), "--gpus-per-node=4")
    assert (code, output) == (2, "")
    assert error.startswith(f"error: {reason.partition(':')[0]}")


def test_gpus_of_a_type(cluster, make_config, capsys):
    path = make_config({"retrain.architecture": "p8-e32-token-h2q96m64"})
    for words in (["--gres=gpu:a100:4"], ["--gpu-type=a100", "--gpus-per-node=4"]):
        _, output, _ = launched(capsys, "retrain", path, "--dry-run", *words)
        assert "#SBATCH --gres=gpu:a100:4\n" in output
        assert "#SBATCH --ntasks-per-node=4\n" in output
    assert "--gres=gpu:a100:4" in sbatch_options(Cluster(gpu_type="a100", gpus_per_node=4))
    assert sbatch_options(Cluster(gpus_per_node=0, tasks_per_node=2)) == ["--ntasks-per-node=2"]


def test_a_chain_is_of_the_flagged_stages(cluster, make_config, capsys):
    _, output, _ = launched(capsys, "search", make_config({"retrain.flag": False}), "--chain", "--dry-run")
    assert re.findall(r"--job-name=(.*)", output) == ["vitas-search", "vitas-sample", "vitas-test"]
    assert "wckey" not in output


def test_a_test_with_the_supernets_weights_reads_its_checkpoint(cluster, make_config, capsys, tmp_path):
    changes = {"model.sharing": "ordinal", "test.architecture": "p8-e32-token-h2q96m64x3", "test.from_supernet": True}
    code, _, error = launched(capsys, "test", make_config(changes), "--dry-run")
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'run' / 'search' / 'checkpoint'} holds no checkpoint")


@pytest.mark.parametrize(("stage", "home"), [("sample", "search"), ("test", "retrain")])
def test_a_first_stage_without_the_checkpoint_that_it_reads_is_refused(
    cluster, make_config, capsys, tmp_path, stage, home
):
    path = make_config({"test.architecture": "p8-e32-token-h2q96m64"})
    code, output, error = launched(capsys, stage, path, "--dry-run")
    assert (code, output) == (2, "")
    checkpoints = tmp_path / "run" / home / "checkpoint"
    assert error == f"error: {checkpoints} holds no checkpoint; run the stage that writes it first\n"
    assert not (tmp_path / "run").exists()


def test_a_chain_does_not_ask_yet_for_what_its_first_stages_will_find(cluster, make_config, capsys):
    path = make_config()
    code, _, error = launched(capsys, "retrain", path, "--chain", "--dry-run")
    assert (code, "run `sample` first" in error) == (2, True)
    assert launched(capsys, "search", path, "--chain", "--dry-run")[0] == 0
    # What no search can bring is still refused.
    code, _, error = launched(capsys, "search", path, "--chain", "--dry-run", "retrain.architecture=deit_tny")
    assert (code, "did you mean deit_tiny" in error) == (2, True)


def test_where_one_job_of_a_chain_is_refused_none_stays(cluster, make_config, capsys, monkeypatch):
    cancelled = []

    def submit(job: StageJob, after: Submitted | None) -> Submitted:
        if after is not None:
            raise UserError("Slurm refuses the job: enough")
        return Submitted(job, "7", Path("log"))

    monkeypatch.setattr(launch, "submit", submit)
    monkeypatch.setattr(queries, "cancel", cancelled.append)
    code, output, error = launched(capsys, "search", make_config(), "--chain")
    assert (code, output, error) == (2, "", "error: Slurm refuses the job: enough\n")
    assert cancelled == ["7"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "CONFIG is missing"),
        (["search.epochs=3"], "CONFIG is missing"),
        (["nothing.yaml"], "nothing.yaml: no such file, here or in configs/search/"),
        (["CONFIG", "search.epochs=0"], "search.epochs: found 0"),
        (["CONFIG", "-p", "gpus"], "partition: found 'gpus'; this cluster has gpu, cpu; did you mean gpu?"),
        (["CONFIG", "--gpus-per-node", "9"], "gpus_per_node: found 9; a node of partition gpu has 8"),
        (["CONFIG", "-p", "cpu", "--gpus-per-node", "1"], "gpus_per_node: found 1; a node of partition cpu has 0"),
        (["CONFIG", "-N", "7"], "nodes: found 7; partition gpu has 6"),
        (["CONFIG", "-c", "9"], "cpus_per_task: found 9, for 8 processes; a node of partition gpu has 64 processors"),
        (["CONFIG", "-t", "soon"], "--time: found 'soon'; it must be minutes"),
        (["CONFIG", "--gres=tpu:1"], "found 'tpu:1'; it must read gpu:N or gpu:TYPE:N"),
        (["CONFIG", "--nodez=1"], "--nodez"),
    ],
)
def test_a_mistake_is_refused_in_one_line(cluster, make_config, capsys, tmp_path, arguments, message):
    path = make_config()
    code, output, error = launched(capsys, "search", *[path if word == "CONFIG" else word for word in arguments])
    assert code == 2
    assert output == ""
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_without_slurm_it_says_what_to_do(monkeypatch, make_config, capsys):
    monkeypatch.setattr(queries, "installed", lambda: False)
    code, _, error = launched(capsys, "search", make_config())
    assert code == 2
    assert error == "error: no Slurm here (sbatch is not on PATH); add --local to run on this machine\n"


def test_a_controller_that_is_down_is_told_in_one_line(cluster, monkeypatch, make_config, capsys, tmp_path):
    def partitions() -> list:
        raise queries.SlurmError("Unable to contact slurm controller (connect failure)")

    monkeypatch.setattr(queries, "partitions", partitions)
    code, _, error = launched(capsys, "search", make_config())
    assert code == 2
    assert error == "error: Slurm does not answer: Unable to contact slurm controller (connect failure)\n"
    assert not (tmp_path / "run").exists()


# Without Slurm, on this machine


@pytest.fixture
def without_slurm(tmp_path):
    """(command) -> how a script ended where there is no sbatch."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env", "sed", "dirname", "ls", "cat", "id"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)

    def run(*command: object) -> subprocess.CompletedProcess:
        environment = ENVIRONMENT | {"PATH": str(programs)}
        environment.pop("SLURM_JOB_ID", None)
        return subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_a_chain_runs_on_this_machine_stage_by_stage_until_one_fails(monkeypatch, make_config, capsys):
    ran = []

    def run_locally(program: str, config: object, overrides: tuple, processes: int | None) -> int:
        ran.append((program, overrides[-2:], processes))
        return 3 if len(ran) == 2 else 0

    monkeypatch.setattr(launch, "run_locally", run_locally)
    code, _, _ = launched(capsys, "search", make_config(), "--chain", "--local", "--tasks-per-node=2")
    assert code == 3
    assert ran == [
        ("search", ("search.flag=true", "sample.flag=false"), 2),
        ("search", ("search.flag=false", "sample.flag=true"), 2),
    ]


@pytest.mark.parametrize("text", ["two", "-1", "nan", "inf"])
def test_a_variable_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("VITAS_PROCESSES", text)
    with pytest.raises(UserError, match=f"VITAS_PROCESSES: found '{text}' in the environment; it must be a number"):
        local.run_locally("search", Path("config.yaml"), ())


@pytest.mark.slow
def test_the_scripts_run_on_this_machine_where_there_is_no_slurm(without_slurm, make_config, tmp_path):
    path = make_config({"search.epochs": 1, "search.warmup_epochs": 0, "retrain.epochs": 1, "retrain.warmup_epochs": 0})
    script = REPOSITORY / "script"
    done = without_slurm("bash", script / "search_bcnet.sh", path, "sample.generations=1")
    assert done.returncode == 0, done.stderr
    assert "bilateral supernet" in done.stdout
    assert (tmp_path / "run" / "search" / "architectures.yaml").exists()
    for name in ("retrain", "inference"):
        done = without_slurm(script / f"{name}.sh", path)
        assert done.returncode == 0, done.stderr
        assert "no Slurm here (sbatch is not on PATH): running on this machine" in done.stderr
    assert (tmp_path / "run" / "retrain" / "results.json").exists()


@pytest.mark.parametrize(
    ("script", "key", "said", "wanted"),
    [
        ("search_bcnet", "model.sharing", "ordinal", "bilateral"),
        ("search_bcnet", "search.method", "asvit", "supernet"),
        ("search_autoslim", "model.sharing", "bilateral", "ordinal"),
        ("search_asvit", "search.method", "supernet", "asvit"),
    ],
)
@pytest.mark.parametrize("where", ["file", "override"])
def test_a_search_script_refuses_a_yaml_that_says_something_else(
    without_slurm, make_config, tmp_path, script, key, said, wanted, where
):
    path = make_config({key: said} if where == "file" else {})
    overrides = [f"{key}={said}"] if where == "override" else []
    done = without_slurm("bash", REPOSITORY / "script" / f"{script}.sh", path, *overrides)
    assert done.returncode == 2
    assert f"{key}: found {said!r}" in done.stderr
    assert wanted in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", sorted((REPOSITORY / "script").glob("*.sh")), ids=lambda path: path.name)
def test_every_script_answers_help_at_once(script, tmp_path):
    done = subprocess.run([script, "--help"], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "#SBATCH --" not in done.stdout

"""The command `vitas`."""

import json
import re
import subprocess
import sys

import pytest

import vitas as package
from tests.conftest import largest
from tests.processes import ENVIRONMENT, REPOSITORY, close_early
from vitas import cli, evaluate, zoo
from vitas.architecture import Architecture
from vitas.catalog import Found, write_found
from vitas.cli import zoo as zoo_command
from vitas.run import RunFolder

# As large as those of ViTAS-F.
NUMBERS = {
    "top1": 91.234,
    "top5": 99.5,
    "macs": 4_948_123_456,
    "macs_released": 4_930_994_656,
    "parameters": 22_540_277,
    "images_per_second": 98_765.4,
}


@pytest.fixture
def architectures_yaml(tmp_path, small_space):
    entries = [
        Found("subnet_1", largest(small_space), {"top1": 90.0}),
        Found("subnet_2", small_space.decode([1, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0]), {"top1": 80.0}),
    ]
    write_found(tmp_path / "architectures.yaml", entries)
    return tmp_path / "architectures.yaml"


def rows_of(out: str) -> dict[str, list[float]]:
    """The lines of a description's table, by their first words, and the numbers in them."""
    lines = [line.strip("│ ") for line in out.splitlines()]
    kinds = re.compile(r"(\d+ patches|block \d+|norm|classifier|total)\b")
    return {
        match[0]: [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*\b", line)]
        for line in lines
        if (match := kinds.match(line))
    }


def test_describe_shows_a_zoo_networks_costs_and_text(vitas):
    code, out, err = vitas("describe", "vitas_c")
    network = zoo()["vitas_c"]
    assert (code, err) == (0, "")
    assert f"{network.macs():,} MACs, 1,303,042,496 in the released convention, 6,048,414 parameters" in out
    assert str(network) in out


@pytest.mark.parametrize("name", [name for name, network in zoo().items() if isinstance(network, Architecture)])
def test_describe_shows_every_number_of_every_block_whole(vitas, name):
    _, out, _ = vitas("describe", name)
    assert "…" not in out
    rows = [row for part, row in rows_of(out).items() if part.startswith("block")]
    assert len(rows) == len(zoo()[name].blocks)
    for i, (row, block) in enumerate(zip(rows, zoo()[name].blocks, strict=True), start=1):
        dims = [] if block.is_identity else [block.heads, block.qkv_dim, block.mlp_dim]
        assert row[:-3] == [i, *dims]


@pytest.mark.parametrize("text", ["p8-e32-token-h2q96m64-id-h4q48m32", "vit8-e32-mean-h2q96m64-id-h4q48m32"])
def test_the_rows_of_a_description_add_up_to_its_total(vitas, text):
    _, out, _ = vitas("describe", text, "--image-size", "32", "--num-classes", "10")
    *parts, total = rows_of(out).values()
    assert len(parts) == 1 + 3 + 2
    for column in (-3, -1):
        assert sum(row[column] for row in parts) == total[column]
    assert sum(row[-2] for row in parts) == pytest.approx(100, abs=0.5)


def test_describe_takes_a_text_and_a_size(vitas):
    code, out, _ = vitas("describe", "p8-e32-token-h2q96m64x2", "--image-size", "32", "--num-classes", "10")
    assert code == 0
    assert "p8-e32-token-h2q96m64x2" in out
    assert "16 patches 8x8, dim 32" in out


def test_describe_takes_a_file_of_architectures_or_one_entry_of_it(vitas, architectures_yaml, small_space):
    size = ("--image-size", "32", "--num-classes", "10")
    code, out, _ = vitas("describe", architectures_yaml, *size)
    assert code == 0
    assert "subnet_1" in out
    assert "subnet_2" in out
    code, out, _ = vitas("describe", f"{architectures_yaml}:subnet_2", *size)
    assert code == 0
    assert "subnet_1" not in out
    assert "p8-e16-token-h2q48m32-idx2" in out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("vitas_aa", "no architecture is named 'vitas_aa'; did you mean vitas_a?"),
        ("p16-e230-token-h3q432", "found 'h3q432'; a block"),
        ("p15-e30-token-h3q432m20", "patch size 15 does not divide the image size 224"),
        ("nowhere.yaml", "nowhere.yaml: No such file"),
    ],
)
def test_describe_refuses_what_it_does_not_find_with_exit_code_2(vitas, argument, message):
    code, out, err = vitas("describe", argument)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_describe_refuses_an_entry_that_a_file_lacks_with_those_it_has(vitas, architectures_yaml):
    code, _, err = vitas("describe", f"{architectures_yaml}:subnet_3")
    assert code == 2
    assert "holds no 'subnet_3'; it holds subnet_1, subnet_2" in err


def record_images(save_path, size=32, classes=10):
    """What a program writes when it starts."""
    start = RunFolder(save_path).start("search", None)
    start.mkdir(parents=True)
    model = {"image_size": size, "num_classes": classes}
    (start / "config.yaml").write_text(json.dumps({"model": model, "search": {"epochs": 2}, "sample": {}}))


@pytest.fixture
def found_run(tmp_path, small_space):
    """A run of 32 x 32 images and 10 classes that has found the largest network of the small space."""
    run = tmp_path / "run"
    network = largest(small_space)
    record_images(run)
    write_found(RunFolder(run).architectures, [Found("subnet_1", network, {"top1": 90.0, **network.costs(32, 10)})])
    return run


@pytest.mark.parametrize("reference", ["{run}", "{run}:subnet_1", "{file}", "{file}:subnet_1"])
def test_describe_takes_image_size_and_classes_from_the_run(vitas, found_run, small_space, reference):
    """At 224 x 224 with 1,000 classes the same network has a hundred times the MACs."""
    reference = reference.format(run=found_run, file=RunFolder(found_run).architectures)
    code, out, err = vitas("describe", reference)
    network = largest(small_space)
    assert (code, err) == (0, "")
    assert f"{network.macs(32, 10):,} MACs" in out
    assert "at 32 x 32 with 10 classes" in out
    (facts,) = json.loads(vitas("describe", reference, "--json")[1])
    assert (facts["macs"], facts["parameters"]) == (network.macs(32, 10), network.parameters(32, 10))
    assert f"{network.macs(64, 7):,} MACs" in vitas("describe", reference, "--image-size", 64, "--num-classes", 7)[1]


def test_describe_refuses_a_file_outside_its_run_whose_costs_are_of_other_images(vitas, found_run, tmp_path):
    path = tmp_path / "copy.yaml"
    path.write_bytes(RunFolder(found_run).architectures.read_bytes())
    code, out, err = vitas("describe", f"{path}:subnet_1")
    assert (code, out) == (2, "")
    assert f"{path} says" in err
    assert "give --image-size and --num-classes" in err
    assert vitas("describe", path, "--image-size", 32, "--num-classes", 10)[0] == 0


def test_describe_says_that_a_run_has_found_nothing_yet(vitas, tmp_path):
    record_images(tmp_path / "run")
    code, _, err = vitas("describe", tmp_path / "run")
    assert (code, "architectures.yaml: no such file; the stage sample writes it" in err) == (2, True)


@pytest.mark.parametrize("size", ["0", "-3", "big"])
def test_describe_refuses_a_size_that_is_none(vitas, size):
    code, _, err = vitas("describe", "vitas_c", "--image-size", size)
    assert code == 2
    assert f"found '{size}'; it must be a whole number above 0" in err


def write_results(save_path, **numbers):
    path = RunFolder(save_path).results
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(NUMBERS | numbers))


def test_compare_shows_the_results_of_runs_in_their_order(vitas, tmp_path):
    write_results(tmp_path / "one")
    write_results(tmp_path / "two", top1=88.888)
    code, out, _ = vitas("compare", tmp_path / "two", tmp_path / "one")
    assert code == 0
    assert out.index("88.89") < out.index("91.23")
    for number in ("99.50", "4,948,123,456", "4,930,994,656", "22,540,277", "98,765"):
        assert out.count(number) == 2


def test_compare_shows_how_sure_an_accuracy_is(vitas, tmp_path):
    write_results(tmp_path / "few", top1=97.5, images=360)
    write_results(tmp_path / "many", top1=97.5, images=36_000)
    code, out, _ = vitas("compare", tmp_path / "few", tmp_path / "many")
    assert code == 0
    assert "95.32 to 98.68" in out
    assert "97.33 to 97.66" in out
    few, many = json.loads(vitas("compare", tmp_path / "few", tmp_path / "many", "--json")[1])
    assert few["top1_interval"][0] < 95.4 < many["top1_interval"][0]


def test_compare_shows_runs_without_results_too(vitas, tmp_path, found_run, small_space):
    write_results(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    code, out, _ = vitas("compare", tmp_path / "one", found_run, tmp_path / "empty")
    assert code == 0
    assert "91.23" in out
    assert f"{largest(small_space).macs(32, 10):,}" in out
    assert f"{found_run} has no results yet: not started; the costs are those of subnet_1" in out
    assert f"{tmp_path / 'empty'} has no results yet: not started" in out
    code, _, err = vitas("compare", tmp_path / "gone")
    assert (code, "no such folder" in err) == (2, True)


@pytest.mark.parametrize("content", ["{", "[]", '{"top1": 3.0}'])
def test_compare_refuses_results_that_are_none_by_path(vitas, tmp_path, content):
    write_results(tmp_path)
    RunFolder(tmp_path).results.write_text(content)
    code, out, err = vitas("compare", tmp_path)
    assert (code, out) == (2, "")
    assert str(RunFolder(tmp_path).results) in err


def test_digits_writes_image_folders(vitas, digits):
    before = sorted(digits.rglob("*"))
    assert vitas("digits", digits) == (0, "", "")
    assert sorted(digits.rglob("*")) == before


def test_without_a_command_the_usage_is_shown(vitas):
    code, _, err = vitas()
    assert code == 2
    assert "COMMAND" in err


def test_the_zoo_side_by_side(vitas):
    code, out, err = vitas("zoo")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r" *(vitas|asvit|deit)_", line)}
    assert list(rows) == list(zoo())
    assert rows["vitas_c"] == ["16", "230", "12", "3", "1.265", "1.303", "6.05", "74.7", "92.0"]
    assert rows["asvit_large"] == ["4", "180/360/720/1024", "14", "4/8/16/32", "22.358", "87.58", "83.5"]
    assert rows["deit_small"] == ["16", "384", "12", "6", "4.599", "4.649", "22.05", "79.8"]


def test_the_zoos_speed_is_measured(vitas, monkeypatch):
    measured = []

    def images_per_second(network, batch_size: int) -> float:
        measured.append((sum(p.numel() for p in network.parameters()), batch_size))
        return 1234.6

    monkeypatch.setattr(evaluate, "images_per_second", images_per_second)
    _, out, _ = vitas("zoo", "--measure", "--batch-size", "3")
    assert measured == [(architecture.parameters(), 3) for architecture in zoo().values()]
    assert out.count("1,235") == len(zoo())
    assert "batches of 3, forward passes only" in out


def test_the_zoo_as_json(vitas):
    code, out, _ = vitas("zoo", "--json")
    networks = json.loads(out)["networks"]
    assert code == 0
    assert [network["name"] for network in networks] == list(zoo())
    assert networks[2]["macs_released"] == 1_303_042_496


# The command itself


def test_every_command_has_a_help_with_examples_that_begin_as_they_are_typed(vitas):
    for name in cli.COMMANDS:
        code, out, err = vitas(name, "--help")
        assert (code, err) == (0, ""), name
        examples = out.partition("\nExamples:\n")[2]
        assert re.search(rf"^  .*vitas {name}\b", examples, re.MULTILINE), name


def test_the_help_lists_every_command_and_every_exit_code(vitas):
    _, out, _ = vitas("--help")
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", out, re.MULTILINE), name
    for code in (0, 1, 2, 75, 130, 141):
        assert re.search(rf"^  {code} +\w", out, re.MULTILINE)


def test_a_mistyped_command_is_guessed(vitas):
    code, _, err = vitas("exprot")
    assert (code, "no command is named 'exprot'; did you mean export?" in err) == (2, True)


def test_the_version_is_that_of_the_package(vitas):
    assert vitas("--version") == (0, f"vitas {package.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(vitas, shell):
    code, out, _ = vitas("completion", shell)
    assert code == 0
    assert "_VITAS_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vitas ex", "export"),
        ("vitas describe --im", "--image-size"),
        ("vitas search x.yaml search.ep", "search.epochs="),
        ("vitas launch search x.yaml sample.budget.ma", "sample.budget.maximum="),
    ],
)
def test_commands_options_and_keys_are_completed(words, expected):
    environment = ENVIRONMENT | {
        "_VITAS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    code = "import sys; sys.argv = ['vitas']; from vitas.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert f"plain,{expected}" in done.stdout.split()


def test_ctrl_c_ends_a_command_with_the_code_of_a_shell(vitas, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo_command, "published", interrupted)
    assert vitas("zoo")[0] == 130


# `| head`


@pytest.mark.parametrize("arguments", [["describe", "vitas_c"], ["zoo"], ["convert", "{released}"], ["cluster"]])
def test_output_that_nobody_reads_is_no_error(arguments, reference):
    arguments = [word.format(released=reference / "released_search.yaml") for word in arguments]
    assert close_early("vitas", *arguments, lines=0) == ("", "")


def test_a_reader_that_leaves_in_the_middle_gets_its_lines_and_no_error(tmp_path, small_space):
    path = tmp_path / "architectures.yaml"
    write_found(path, [Found(f"subnet_{i}", largest(small_space), {}) for i in range(200)])
    printed, errors = close_early("vitas", "describe", path, "--image-size", 32, lines=1)
    assert printed.split() == ["subnet_0"]
    assert errors == ""

"""What is installed is whole: a wheel, built and installed as users do; extras and citation are true."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import vitas
from tests.processes import ENVIRONMENT, REPOSITORY
from vitas import packaged
from vitas.errors import UserError
from vitas.plain_data import parse_yaml

CONFIGS = [
    path.relative_to(REPOSITORY / "configs").as_posix() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))
]
# What a person who installed the wheel can do, anywhere.
SCRIPT = """
import json, vitas
from vitas import config, packaged
names = packaged.names()
print(json.dumps({
    "vitas": vitas.__file__, "texts": {name: packaged.text(name) for name in names},
    "loaded": [name for name in names if config.load(packaged.FOLDER / name)],
    "found": str(config.find("ViTAS_1G", "search")),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of what the repository holds, built in a copy: setuptools writes into its source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("vitas", "search", "retrain", "inference", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of a new virtual environment with the wheel; what it depends on is found where these tests find it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    site = next(folder.glob("lib/python*/site-packages"))
    # A path alone: an installation of this project for development beside those packages stays out.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return folder / "bin"


def run_installed(bin_folder: Path, folder: Path, *command: str) -> str:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bin_folder / command[0], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_every_configuration_once_and_says_that_it_has_types(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    assert sorted(name for name in held if name.endswith(".yaml")) == [
        "vitas/config/meanings.yaml",
        *(f"vitas/configs/{name}" for name in CONFIGS),
    ]
    assert "vitas/py.typed" in held
    assert {name.split("/")[0].split("-")[0] for name in held} == {"vitas", "search", "retrain", "inference"}


def test_what_a_wheel_installs_finds_its_configurations_in_any_folder(installed, tmp_path):
    told = json.loads(run_installed(installed, tmp_path, "python", "-c", SCRIPT))
    assert Path(told["vitas"]).is_relative_to(installed.parent)
    assert told["texts"] == {
        name: (REPOSITORY / "configs" / name).read_text() for name in CONFIGS if name != "cluster.yaml"
    }
    assert told["loaded"] == list(told["texts"])
    assert told["found"].endswith("vitas/configs/search/ViTAS_1G.yaml")


@pytest.mark.slow
def test_the_installed_programs_run_in_any_folder(installed, tmp_path):
    assert "6,048,414 parameters" in run_installed(installed, tmp_path, "vitas", "describe", "vitas_c")
    run_installed(installed, tmp_path, "vitas", "digits", "runs/digits")
    (tmp_path / "mine.yaml").write_text(run_installed(
        installed, tmp_path, "python", "-c", "from vitas import packaged; print(packaged.text('search/digits'))"
    ))  # fmt: skip
    printed = run_installed(
        installed, tmp_path, "python", "-m", "search", "mine.yaml", "sample.flag=false", "search.epochs=1",
        "search.warmup_epochs=0", "save_path=runs/mine", "search.data.workers=0",
    )  # fmt: skip
    assert "the supernet is in runs/mine/search/checkpoint/epoch_1_ckpt.pth.tar" in printed


def test_a_cluster_file_of_the_working_folder_comes_first(installed, tmp_path):
    assert run_installed(installed, tmp_path, "vitas", "cluster").strip() == ""
    (tmp_path / "cluster.yaml").write_text("partition: mine\n")
    assert run_installed(installed, tmp_path, "vitas", "cluster").strip() == "--partition=mine"


def test_every_configuration_has_a_name_and_a_text():
    assert packaged.names()[0] == "quickstart.yaml"
    assert sorted([*packaged.names(), "cluster.yaml"]) == CONFIGS
    assert parse_yaml(packaged.text("search/ViTAS_1G"), "")["search"]["flag"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("search/vitas_1H", r"did you mean .*search/ViTAS_1G.yaml"),
        ("swin", "there are quickstart.yaml"),
        ("cluster", "which does not come with the project"),
        ("../setup", "there are"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name, hint):
    with pytest.raises(UserError, match=hint):
        packaged.text(name)


# Extras


def setup_arguments() -> dict:
    """What setup.py gives to setuptools."""
    code = (
        "import json, sys, setuptools; sys.path.insert(0, '.')\n"
        "setuptools.setup = lambda **given: print(json.dumps(given))\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def package_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower()


# Where the name that is imported is not the package's.
PACKAGES = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}


def test_every_extra_that_a_text_names_exists():
    extras = setup_arguments()["extras_require"]
    code = [
        path
        for name in ("vitas", "search", "retrain", "inference", "bench")
        for path in (REPOSITORY / name).rglob("*.py")
    ]
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "bench").glob("*.md")]
    named = {path: set(re.findall(r"vitas\[(\w+)\]", path.read_text())) for path in (*code, *pages)}
    assert {"quickstart", "export", "bench"} <= set().union(*named.values())
    for path, found in named.items():
        assert found <= set(extras), f"{path} names {found - set(extras)}"


def test_a_message_about_a_missing_package_names_an_extra_that_brings_it():
    """Whatever is imported in a `try` whose `except ImportError` raises."""
    extras = setup_arguments()["extras_require"]
    checked = set()
    for path in (
        path for name in ("vitas", "search", "retrain", "inference") for path in (REPOSITORY / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Try):
                continue
            for handler in node.handlers:
                caught = ast.unparse(handler.type) if handler.type else ""
                raises = [inner for inner in ast.walk(handler) if isinstance(inner, ast.Raise)]
                if caught not in ("ImportError", "ModuleNotFoundError") or not raises:
                    continue
                message = ast.unparse(handler)
                extra = re.search(r"pip install \\?'vitas\[(\w+)\]", message)
                assert extra, f"{path}: line {handler.lineno} does not say how the package is installed"
                brought = set(map(package_of, extras[extra[1]]))
                imports = [inner for part in node.body for inner in ast.walk(part)]
                names = {inner.module.split(".")[0] for inner in imports if isinstance(inner, ast.ImportFrom)}
                names |= {
                    a.name.split(".")[0] for inner in imports if isinstance(inner, ast.Import) for a in inner.names
                }
                assert {PACKAGES.get(name, name) for name in names} <= brought, f"{path}: line {handler.lineno}"
                checked.add(path.name)
    assert {"example_images.py", "export.py"} <= checked


def test_the_extra_of_the_formats_brings_what_they_need():
    from inference.export import FORMATS

    brought = set(map(package_of, setup_arguments()["extras_require"]["export"]))
    assert {package for each in FORMATS.values() for package in each.needs} <= brought


# Citation


def test_the_citation_is_of_this_version_and_names_the_papers_that_the_readme_names():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    given = setup_arguments()
    assert citation["version"] == vitas.__version__ == given["version"]
    assert citation["license"] == given["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors", "abstract"} <= set(citation)
    ids = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    pages = (REPOSITORY / "README.md").read_text() + (REPOSITORY / "THIRD_PARTY.md").read_text()
    assert {f"arXiv:{number}" for number in re.findall(r"arxiv(?:\.org/abs/| )(\d+\.\d+)", pages, re.IGNORECASE)} <= ids
    for paper in citation["references"]:
        assert paper["authors"]
        assert paper["title"]
        assert paper["year"]

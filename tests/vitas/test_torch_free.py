"""What must not load torch, which takes seconds: a typing error, a --help and a table of costs do not wait for it."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from tests.conftest import small_run
from tests.processes import ENVIRONMENT, REPOSITORY

FRAMEWORKS = ("torch", "torchvision", "timm")
MODULES = [
    "vitas.config", "vitas", "vitas.errors", "vitas.architecture", "vitas.space", "vitas.budget", "vitas.sharing",
    "vitas.catalog", "vitas.asvit.genotype", "vitas.run", "vitas.files", "vitas.journal",
    "vitas.plain_data", "vitas.packaged", "vitas.model_card", "vitas.config_section", "vitas.released",
    "vitas.data.folders", "vitas.program", "vitas.cli", "vitas.cli.describe", "vitas.cli.launch", "search.objectives",
    "vitas.watchdog", "vitas.drawing", "vitas.intervals", "vitas.predictions", "vitas.report_page.write",
    "vitas.report_page.refresh",
    *(f"vitas.slurm.{path.stem}" for path in sorted((REPOSITORY / "vitas" / "slurm").glob("[!_]*.py"))),
]  # fmt: skip
# Name: (module, arguments, exit code, what it prints). {config} is a YAML of a small run, {run} its folder,
# {images} that of its images, {new} a file that is not there.
COMMANDS = {
    "an unknown key": ("search", ["{config}", "search.epoch=3"], 2, "search.epoch: unknown key"),
    "a budget that nothing meets": (
        "search", ["{config}", "sample.budget={minimum: 1, maximum: 2}"], 2, "sample.budget: no architecture",
    ),
    "search --help": ("search", ["--help"], 0, "usage: python -m search"),
    "retrain --help": ("retrain", ["--help"], 0, "usage: python -m retrain"),
    "inference --help": ("inference", ["--help"], 0, "usage: python -m inference"),
    "inference export --help": ("inference", ["export", "--help"], 0, "Usage: python -m inference export"),
    "inference predict --help": ("inference", ["predict", "--help"], 0, "Usage: python -m inference predict"),
    "vitas --help": ("vitas", ["--help"], 0, "Usage: vitas"),
    "vitas --version": ("vitas", ["--version"], 0, "vitas 0.1.0"),
    "vitas search --help": ("vitas", ["search", "--help"], 0, "Usage: vitas search"),
    "an unknown key in vitas search": ("vitas", ["search", "{config}", "search.epoch=3"], 2, "did you mean epochs?"),
    "vitas check": ("vitas", ["check", "{config}"], 0, "nothing to mend"),
    "vitas check --data": ("vitas", ["check", "{config}", "--data"], 0, "359 images of 10 classes, 0 bad"),
    "vitas space": ("vitas", ["space", "{config}"], 0, "architectures"),
    "vitas schema": ("vitas", ["schema"], 0, "json-schema.org"),
    "vitas init": ("vitas", ["init", "{images}", "--output", "{new}"], 0, "next: vitas check"),
    "vitas pack": ("vitas", ["pack", "{images}/val", "{new}.pack", "--workers", "1"], 0, "359 images of 10 classes"),
    "vitas status": ("vitas", ["status", "{run}"], 0, "nothing runs"),
    "vitas compare": ("vitas", ["compare", "{run}"], 0, "has no results yet"),
    "vitas describe": ("vitas", ["describe", "vitas_c"], 0, "6,048,414 parameters"),
    "vitas zoo": ("vitas", ["zoo"], 0, "deit_small"),
    "vitas launch --help": ("vitas", ["launch", "--help"], 0, "Usage: vitas launch"),
    "the supervisor's usage": ("vitas.slurm.supervisor", [], 2, "usage: python -m vitas.slurm.supervisor"),
}  # fmt: skip

# One process for all: starting it is what takes long. Each step tells what it loaded that was not there before.
SCRIPT = """
import contextlib, importlib, io, json, runpy, sys

frameworks, modules, commands = json.load(sys.stdin)
steps = {}


@contextlib.contextmanager
def step(name):
    before, told = set(sys.modules), io.StringIO()
    steps[name] = found = {"code": 0}
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            yield
    except SystemExit as end:
        found["code"] = end.code or 0
    found |= {"told": told.getvalue(), "loaded": sorted(set(frameworks) & (set(sys.modules) - before))}


for module in modules:
    with step(module):
        importlib.import_module(module)
for name, (module, arguments) in commands.items():
    sys.argv = [module, *arguments]
    with step(name):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory, digits) -> dict[str, dict]:
    """What each import and each command printed and loaded, in a process that began with nothing."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(small_run(folder / "run", digits)))
    (folder / "run").mkdir()
    places = {"config": config, "run": folder / "run", "images": digits, "new": folder / "new.yaml"}
    commands = {
        name: (module, [re.sub(r"\{(\w+)\}", lambda match: str(places[match[1]]), word) for word in arguments])
        for name, (module, arguments, _, _) in COMMANDS.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([FRAMEWORKS, MODULES, commands]),
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_plans_and_checks_loads_no_framework(steps, module):
    assert steps[module]["loaded"] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_trains_nothing_loads_no_framework(steps, name):
    _, _, code, told = COMMANDS[name]
    step = steps[name]
    assert told in step["told"]
    assert step["code"] == code
    assert step["loaded"] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["search.search", "retrain.retrain", "inference.test"])
def test_a_stage_loads_nothing_large_that_it_need_not(stage):
    """timm looks for wandb, and loads it; a run that logs to it finds it later."""
    large = ("wandb", "scipy", "pymoo", "sklearn", "matplotlib", "tensorboard", "mlflow")
    script = (
        "import sys\nfrom vitas.program import quick_imports\n"
        f"with quick_imports():\n    import {stage}\n"
        f"print(sorted(set({large}) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

"""Who may import whom, and what may load torch: the arrows of the design, as they are drawn in the code."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from vitas.run import STAGES

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = ("search", "retrain", "inference")

# The rooms of vitas: a module, or a package, or a module of a package that lies elsewhere than the rest of it.
# A room may import those of the rows above its own, and no other.
LAYERS = (
    ("errors", "costs", "seeds", "watchdog"),
    ("config_section", "intervals", "hypervolume", "plain_data", "data.pictures", "data.processes"),
    ("data.pack_index", "data.stored_images"),
    ("data.packed",),
    (
        "architecture",
        "bounds",
        "files",
        "digests",
        "packaged",
        "sharing",
        "data.folders",
        "data.example_images",
        "slurm.queries",
    ),
    (
        "data.census",
        "data.survey",
        "data.image_list",
        "space",
        "asvit.genotype",
        "model_card",
        "journal",
        "run",
        "predictions",
        "slurm.signals",
        "slurm.lock",
    ),
    ("elastic_space", "report", "data.listings", "data.packing"),
    ("budget", "catalog", "released", "run_files"),
    ("drawing",),
    ("report_page",),
    ("config", "in_budget", "status"),
    ("next_step", "space_costs", "suggestion"),
    ("slurm.cluster", "slurm.local"),
    ("slurm.supervisor",),
    ("slurm.submission",),
    ("distributed", "models"),
    ("reduction", "compiled", "accumulation", "memory", "work_queue"),
    ("asvit.scores", "checkpoint", "provenance"),
    ("data", "loading"),
    ("evaluate", "timm", "pretrained", "importance"),
    ("pruning", "elastic", "supernet_folder"),
    ("teacher", "resume", "step_watch", "validation", "background_save"),
    ("train", "huggingface"),
    ("program",),
    ("cli",),
)
LEVELS = {room: level for level, row in enumerate(LAYERS) for room in row}
# All other rooms answer before torch could be loaded, which takes seconds: a wrong YAML, --help, `vitas describe`.
WITH_TORCH = (
    "distributed", "models", "reduction", "compiled", "accumulation", "memory", "asvit.scores", "data", "checkpoint",
    "loading", "provenance", "evaluate", "teacher", "timm", "huggingface", "train", "resume", "step_watch",
    "validation", "background_save", "pretrained", "importance", "pruning", "elastic", "supernet_folder", "work_queue",
)  # fmt: skip
FRAMEWORKS = ("torch", "torchvision", "timm")


def name_of(path: Path) -> str:
    """vitas/data/example_images.py -> vitas.data.example_images; vitas/data/__init__.py -> vitas.data."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for package in ("vitas", *PROGRAMS) for path in (REPOSITORY / package).rglob("*.py")}


def room_of(module: str) -> str | None:
    """vitas.data.folders -> data.folders; vitas.models.supernet -> models; None for the front, vitas itself."""
    parts = module.split(".")[1:]
    rooms = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((room for room in rooms if room in LEVELS), None)


def rooms_of_vitas() -> dict[str, list[str]]:
    """The modules of each room; one that has no room counts as a room of its own."""
    rooms: dict[str, list[str]] = {}
    for module, path in sorted(SOURCES.items()):
        # A package's front may be a docstring alone, which says what lies in it.
        is_empty = path.name == "__init__.py" and not imports(path)
        if module.startswith("vitas.") and module != "vitas.__main__" and (room_of(module) or not is_empty):
            rooms.setdefault(room_of(module) or module, []).append(module)
    return rooms


def statements(node: ast.AST, loading: bool) -> Iterator[ast.AST]:
    """All below a node; where it is about loading the module, without functions and what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        )
        if not (loading and later):
            yield child
            yield from statements(child, loading)


def imports(path: Path, loading: bool = False) -> set[str]:
    """The modules that a file imports anywhere, or (`loading`) while it is loaded; `from vitas import SuperNet` is
    `vitas`."""
    names = set()
    for node in statements(ast.parse(path.read_text()), loading):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(REPOSITORY).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= inner & set(SOURCES) | ({base} if inner - set(SOURCES) else set())
    return names


def loaded_with(module: str, seen: set[str] | None = None) -> set[str]:
    """All that is loaded with a module of ours: the packages around it, what they import, and so on."""
    seen = set() if seen is None else seen
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        each = ".".join(parts[:length])
        if each not in seen:
            seen.add(each)
            if each in SOURCES:
                for name in imports(SOURCES[each], loading=True):
                    loaded_with(name, seen)
    return seen


def strings(path: Path) -> set[str]:
    """The texts in a file's code."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("package", ["vitas", *PROGRAMS])
def test_the_library_imports_no_stage_and_no_stage_another(package):
    modules = [module for module in SOURCES if module.split(".")[0] == package]
    assert modules
    for module in modules:
        tops = {name.partition(".")[0] for name in imports(SOURCES[module])}
        assert not tops & (set(PROGRAMS) - {package}), module


def test_the_library_names_a_stages_modules_in_one_place_alone():
    """As text, in the tables of vitas/run.py; nothing else of the library loads a module by a text."""
    names = "|".join(re.escape(name) for name in SOURCES if name.split(".")[0] in PROGRAMS and "." in name)
    # `search.subnets` is a module, and the beginning of keys of the YAML.
    of_stages = rf"\b({names})(:\w|$)"
    for module, path in SOURCES.items():
        if module.split(".")[0] == "vitas" and module != "vitas.run":
            named = [text for text in strings(path) if re.search(of_stages, text)]
            assert not named, f"{module} names a stage's module: {named}"
            # The front loads modules of vitas when they are asked for.
            assert module == "vitas" or "import_module" not in path.read_text(), module
    assert any(re.search(of_stages, text) for text in strings(SOURCES["vitas.run"]))


def test_the_table_of_stages_names_functions_that_are_there():
    assert {stage.program for stage in STAGES.values()} == set(PROGRAMS)
    for stage in STAGES.values():
        for method in stage.functions:
            assert callable(stage.function(method))


def test_every_module_of_the_library_has_a_room_and_every_room_a_module():
    assert set(rooms_of_vitas()) == set(LEVELS), "give the new module its row in LAYERS"
    assert set(WITH_TORCH) <= set(LEVELS)


@pytest.mark.parametrize("room", LEVELS)
def test_a_room_imports_lower_rooms_alone(room):
    """So there is no circle between rooms."""
    for module in rooms_of_vitas()[room]:
        ours = {name for name in imports(SOURCES[module]) if name.split(".")[0] == "vitas"}
        # The front is above all rooms.
        rooms = {room_of(name) or name for name in ours} - {room}
        higher = {name for name in rooms if LEVELS.get(name, 99) >= LEVELS[room]}
        assert not higher, f"{module} imports {higher}"


def test_no_module_is_loaded_in_a_circle():
    """Within a room, and within a stage, too."""
    tuple(TopologicalSorter({name: imports(path, loading=True) for name, path in SOURCES.items()}).static_order())


TORCH_FREE = [
    *(module for room, modules in rooms_of_vitas().items() if room not in WITH_TORCH for module in modules),
    # The front, and what programs load before they know that their YAML is right.
    *(
        "vitas",
        "vitas.__main__",
        "search.__main__",
        "search.objectives",
        "search.subnets",
        "retrain.__main__",
        "inference.__main__",
        "inference.commands",
    ),
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_does_not_compute_loads_no_torch(module):
    heavy = {name for name in loaded_with(module) if name.split(".")[0] in FRAMEWORKS}
    assert not heavy, f"loading {module} loads {heavy}"


@pytest.mark.parametrize("room", WITH_TORCH)
def test_rooms_that_may_load_torch_do(room):
    """Else they belong to those that may not."""
    loaded = set().union(*(loaded_with(module) for module in rooms_of_vitas()[room]))
    assert loaded & set(FRAMEWORKS)

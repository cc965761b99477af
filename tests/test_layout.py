"""Who may import whom: the arrows of the design, as they are drawn in the code."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = ("search", "retrain", "inference")

# A module of vitas may import those of the rows above its own, and no other.
LAYERS = (
    ("errors", "settings", "importing"),
    ("slurm",),
    ("files", "distributed"),
    ("interruption", "lock", "provenance", "space"),
    ("released", "models", "cost", "data"),
    ("config", "checkpoint", "report", "scores"),
    ("engine", "registry"),
    ("program",),
    ("launch",),
    ("cli",),
)
LEVELS = {module: level for level, row in enumerate(LAYERS) for module in row}


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """vitas/data/digits.py -> data; vitas/cost.py -> cost."""
    return path.relative_to(REPOSITORY).with_suffix("").parts[1]


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports anywhere, `from a import b` as a.b and relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(REPOSITORY).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def vitas_modules(path: Path) -> set[str]:
    """The modules of vitas that a file of it imports; its front, `from vitas import SuperNet`, is `vitas` itself."""
    found = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "vitas":
            part = rest.split(".")[0]
            found.add(part if part in LEVELS else "vitas")
    return found


@pytest.mark.parametrize("package", ["vitas", *STAGES])
def test_the_library_imports_no_stage_and_no_stage_another(package):
    assert sources(package)
    for path in sources(package):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & (set(STAGES) - {package}), path


def test_every_module_of_the_library_has_a_layer():
    modules = {module_of(path) for path in sources("vitas")} - {"__init__", "__main__"}
    assert modules <= set(LEVELS), "give the new module its row in LAYERS"


@pytest.mark.parametrize("module", sorted(LEVELS, key=LEVELS.get))
def test_a_module_imports_lower_layers_alone(module):
    """So there is no circle between modules either."""
    for path in sources("vitas"):
        if module_of(path) == module:
            higher = {name for name in vitas_modules(path) - {module} if LEVELS.get(name, 99) >= LEVELS[module]}
            assert not higher, f"{path.relative_to(REPOSITORY)} imports {higher}"


def test_the_ground_floor_knows_no_framework():
    """Architectures and spaces can be read where no torch is loaded."""
    for path in sources("vitas/space"):
        assert not {name for name in imports(path) if name.partition(".")[0] in ("torch", "timm", "torchvision")}, path

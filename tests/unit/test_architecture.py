"""Who may import whom: the floors of the package, walked over the source."""

import ast
from pathlib import Path

import pytest

from beit3_vqa.tasks import TASKS

PACKAGE = Path(__file__).parents[2] / "beit3_vqa"
TESTS = PACKAGE.parent / "tests"
# A file imports from its own folder and from lower floors, top to bottom; nothing else.
FLOORS = [
    ["__main__", "cli"],
    ["apps"],
    ["engine"],
    ["tasks"],
    ["metrics", "prepare", "models"],
    ["data", "config"],
    ["runtime"],
    ["errors"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """`beit3_vqa.data.index` -> `data`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: write imports in full"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "beit3_vqa":
            names = [node.module] if node.module != "beit3_vqa" else [f"beit3_vqa.{a.name}" for a in node.names]
            found += names
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "beit3_vqa"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_its_own_folder_and_from_lower_floors(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":  # the front door
        return
    for module in imports(path):
        other = room(module)
        below = own == other or FLOOR[own] < FLOOR.get(other, -1) or own == "__main__"
        assert below, f"{path.relative_to(PACKAGE)} imports {module}, which stands above or beside it"


def test_the_root_holds_the_front_doors_and_ten_folders_at_most():
    names = {path.relative_to(PACKAGE).parts[0] for path in FILES}
    assert {name for name in names if name.endswith(".py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert len([name for name in names if not name.endswith(".py")]) <= 10


def test_every_task_is_one_file_and_one_class():
    for name, place in TASKS.items():
        module, class_name = place.split(":")
        tree = ast.parse((PACKAGE / "tasks" / f"{module}.py").read_text(encoding="utf-8"))
        assert class_name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, name


@pytest.mark.parametrize("folder", ["engine", "data", "apps/ensemble", "apps/report", "models"])
def test_no_task_is_named_outside_tasks(folder):
    allowed = {PACKAGE / "models" / "names.py", PACKAGE / "data" / "index.py"}  # suffixes of names, names of files
    for path in (PACKAGE / folder).rglob("*.py"):
        if path not in allowed:
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert not set(TASKS) & {s for s in strings if isinstance(s, str)}, path


def test_no_family_is_named_outside_models_and_the_demo():
    """What a run is made of must not depend on who computes it: a family is an interface."""
    allowed = {"models", "prepare", "__init__.py", "cli"}
    allowed_files = {PACKAGE / "apps" / "demo.py", PACKAGE / "config" / "options.py", PACKAGE / "config" / "resolve.py"}
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] not in allowed and path not in allowed_files:
            tree = ast.parse(path.read_text())
            compared = [n for c in ast.walk(tree) if isinstance(c, (ast.Compare, ast.Call)) for n in ast.walk(c)]
            names = {n.value for n in compared if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not [name for name in names if name.rstrip("_") in ("beit3", "clip")], path


def test_only_the_command_line_knows_argparse():
    # Two more read upstream's pickled Namespace.
    readers = {PACKAGE / "engine/checkpoint/io.py", PACKAGE / "models/beit3/key_layout.py"}
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] != "cli" and path not in readers:
            assert "argparse" not in set(path.read_text().split()), path


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_module_imports_a_test_file_or_a_conftest(path):
    """What several test files need stands in tests/helpers (or is a fixture, which pytest hands over)."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    for module in modules:
        parts = module.split(".")
        own = parts[0] == "tests" and any(part == "conftest" or part.startswith("test_") for part in parts)
        assert not own, f"{module}: move what you need from it to tests/helpers"

"""Who may import whom: DESIGN.md's ranks, walked over the source."""

import ast
from pathlib import Path

import pytest

from beit3_vqa.tasks import TASKS

PACKAGE = Path(__file__).parent.parent / "beit3_vqa"
# A file imports from its own rank's folder and from ranks below; errors, config and schema from nowhere but below.
RANKS = [
    ["__main__"],
    ["cli"],
    ["commands"],
    ["cross_validation", "ensembling"],
    ["members", "reporting", "serving"],
    ["demo", "run"],
    ["dry_run", "restore"],
    ["training"],
    ["saving"],
    ["batch_size", "evaluation", "scoring", "questions", "same_run"],
    ["assemble"],
    ["tasks", "models", "prepare"],
    ["output"],
    ["data"],
    ["engine", "metrics"],
    ["config", "schema"],
    ["options"],
    ["option_field"],
    ["files"],
    ["errors"],
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# They stand outside: the package's front door, and what it hangs into timm's import.
FRONT = {"__init__", "timm_hook"}


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


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_back(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own in FRONT:
        return
    for module in imports(path):
        other = room(module)
        assert other not in FRONT, f"{relative} imports the front door"
        assert other == own or RANK[own] < RANK[other], f"{relative} imports {module}, which stands above or beside it"


def test_every_room_has_a_rank():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - FRONT == set(RANK)


@pytest.mark.parametrize("folder", ["engine", "data", "output", "models"])
def test_no_task_is_named_outside_tasks(folder):
    allowed = {PACKAGE / "models" / "registry.py", PACKAGE / "data" / "index.py"}  # suffixes of names, names of files
    for path in (PACKAGE / folder).rglob("*.py"):
        if path not in allowed:
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert not set(TASKS) & {s for s in strings if isinstance(s, str)}, path


def test_no_family_is_named_outside_models_and_the_demo():
    """What a run is made of must not depend on who computes it: a family is an interface."""
    allowed = {"models", "demo.py", "prepare", "options.py", "timm_hook.py", "__init__.py", "commands"}
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] not in allowed:
            tree = ast.parse(path.read_text())
            compared = [n for c in ast.walk(tree) if isinstance(c, (ast.Compare, ast.Call)) for n in ast.walk(c)]
            names = {n.value for n in compared if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not [name for name in names if name.rstrip("_") in ("beit3", "clip")], path


def test_only_the_command_line_knows_argparse():
    for path in FILES:
        # Two more read upstream's pickled Namespace.
        if path.parent.name != "commands" and path.name not in ("cli.py", "checkpoint.py", "key_layout.py"):
            assert "argparse" not in set(path.read_text().split()), path

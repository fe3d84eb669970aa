"""Who may import whom: the floors of the package, walked over the source."""

import ast
from pathlib import Path

import pytest

from beit3_vqa.config.config import GROUPS
from beit3_vqa.tasks import TASKS

PACKAGE = Path(__file__).parents[2] / "beit3_vqa"
TESTS = PACKAGE.parent / "tests"
# A file imports from its own folder and from lower floors, top to bottom; nothing else.
FLOORS = [
    ["__main__", "cli"],
    ["apps"],
    ["engine"],
    ["tasks"],
    ["metrics", "preparation", "models"],
    ["data", "config"],
    ["runtime"],
    ["errors", "__version__"],
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
    allowed = {"models", "preparation", "__init__.py", "cli"}
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


OPTION_CLASSES = {"RunConfig", *(cls.__name__ for cls in GROUPS.values())}


def of_config(node: ast.AST) -> bool:
    """Whether something of a `config` is meant: the name itself, `parts.config`, or a group of one."""
    return any(getattr(n, "id", getattr(n, "attr", "")) == "config" for n in ast.walk(node))


def settled_again(tree: ast.AST) -> list[str]:
    """What in a file would make a RunConfig, or change one."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0] if node.args else None
            changes = name in ("replace", "setattr", "__setattr__", "__replace__", "updated")
            changed = (first is not None and of_config(first)) or (changes and of_config(node.func))
            if name in OPTION_CLASSES or name == "updated" or (changes and changed):
                found.append(ast.unparse(node))
            if name == "replace" and any(keyword.arg == "config" for keyword in node.keywords):
                found.append(ast.unparse(node))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            attributes = [t for t in targets if isinstance(t, (ast.Attribute, ast.Subscript)) and of_config(t)]
            texts = [ast.unparse(target) for target in attributes]
            found += [text for text in texts if text != "self.config" and not text.startswith("torch.")]
    return found


@pytest.mark.parametrize(
    "code",
    [
        "config = config.updated({'fold': 1})",
        "replace(config, run=other)",
        "dataclasses.replace(parts.config, run=other)",
        "replace(parts.config.optim, batch_size=4)",
        "replace(parts, config=other)",
        "copy.replace(config, run=other)",
        "config.__replace__(run=other)",
        "RunConfig(optim=other)",
        "config_module.RunConfig()",
        "OptimConfig(batch_size=4)",
        "parts.config = other",
        "parts.config.optim.batch_size = 4",
        "config.optim.batch_size += 1",
        "object.__setattr__(config.optim, 'batch_size', 4)",
        "setattr(config, 'optim', other)",
    ],
)
def test_a_config_that_is_changed_is_found(code):
    assert settled_again(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "self.config = config",
        "config = resolve(given)",
        "text.replace('config', 'x')",
        "replace(parts, step_size=StepSize(4, 2))",
        "batch_size = config.optim.batch_size",
        "def build(config: RunConfig) -> None: pass",
    ],
)
def test_a_config_that_is_read_is_not(code):
    assert not settled_again(ast.parse(code))


def test_options_are_settled_in_config_alone():
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] != "config":
            assert not settled_again(ast.parse(path.read_text(encoding="utf-8"))), path


def test_each_way_in_settles_its_options_with_one_call():
    """A run that begins, a checkpoint (to go on from, evaluate, ask or count), and what all folds or trials share."""
    callers = {}
    for path in FILES:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        count = sum(getattr(call.func, "id", "") == "resolve" for call in calls)
        if count and path.relative_to(PACKAGE).parts[0] != "config":
            callers[str(path.relative_to(PACKAGE))] = count
    apps = {"apps/cross_validation.py": 1, "apps/search/run.py": 1}
    assert callers == {"engine/api.py": 1, "engine/build.py": 1, **apps}


def test_trust_in_a_checkpoint_is_decided_in_one_place():
    """Only there a file is read in full, and only there somebody looks at what the user said of it."""
    decides = PACKAGE / "engine/checkpoint/io.py"
    in_full = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                how = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                in_full += [path] if how.get("weights_only") != "True" else []
            asks = isinstance(node, (ast.Compare, ast.Subscript)) and "'trust_checkpoint'" in ast.unparse(node)
            assert not asks or path == decides, f"{path}: {ast.unparse(node)}"
    assert in_full == [decides]


UNIT_TESTS = sorted((TESTS / "unit").rglob("test_*.py"))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: str(path.relative_to(TESTS)))
def test_unit_tests_stand_where_the_module_stands_that_they_test(path):
    """A module `a/b.py`, or a folder `a/b`, is tested by `tests/unit/a/test_b.py`, or a folder by one inside it."""
    folder, name = PACKAGE / path.parent.relative_to(TESTS / "unit"), path.stem.removeprefix("test_")
    if name == "architecture":  # of the whole package
        return
    assert (folder / f"{name}.py").is_file() or (folder / name).is_dir() or folder.name == name, path


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

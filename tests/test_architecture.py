"""The layout of the package: rooms, the direction of imports, and where the tests lie."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

#: In import order: a room imports only from the rooms before it. api.py may import from all of them.
ROOMS = (
    "utils",
    "config",
    "circuit",
    "simulation",
    "ground_truth",
    "stimulus",
    "data",
    "models",
    "training",
    "recovery",
    "tuning",
    "landscape",
    "search",
    "report",
    "experiments",
    "cli",
)
TOP = {"__init__.py", "__main__.py", "api.py"}
#: Folders of tests that mirror no room.
OTHER_TESTS = {"end_to_end", "support"}


class Sources:
    """The syntax trees of the package by module name, and what each module imports."""

    def __init__(self, package):
        self.paths = {self._name(path, package): path for path in sorted(package.rglob("*.py"))}
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.paths.items()}

    @staticmethod
    def _name(path, package):
        parts = path.relative_to(package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, name):
        """(module, line) for each module of the package that `name` imports, inside functions too."""
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: relative import in line {node.lineno}"
                if node.module == "flyjax" and [alias.name for alias in node.names] == ["__version__"]:
                    continue
                # `from package import x` imports x where x is a module.
                submodules = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [t if t in self.trees else node.module for t in submodules]
            else:
                continue
            for target in dict.fromkeys(targets):
                if target in self.trees and target != name:
                    yield target, node.lineno


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.fixture(scope="module")
def sources(root):
    return Sources(root / "flyjax")


def test_every_module_lies_in_a_room(root):
    package = root / "flyjax"
    assert {path.name for path in package.glob("*.py")} <= TOP
    assert {path.name for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))} == set(ROOMS)


def test_imports_point_one_way(sources):
    order = {name: k for k, name in enumerate(ROOMS)}
    upward = [
        f"{sources.paths[name]}:{line} imports {target}"
        for name in sources.trees
        if room(name) in order
        for target, line in sources.imports(name)
        if order.get(room(target), len(ROOMS)) > order[room(name)]
    ]
    assert upward == []


def test_no_modules_import_each_other(sources):
    # A package's __init__ and its own modules always see each other; that is no cycle.
    graph = {
        name: {t for t, _ in sources.imports(name) if not name.startswith(f"{t}.")}
        for name in sources.trees
        if name != "flyjax"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_reader_of_imports_sees_functions_and_submodules(tmp_path):
    package = tmp_path / "flyjax"
    for name in ("utils", "cli"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("")
    (package / "cli" / "console.py").write_text("")
    (package / "utils" / "a.py").write_text("def f():\n    from flyjax.cli import console\n    import flyjax.cli\n")
    found = list(Sources(package).imports("flyjax.utils.a"))
    assert found == [("flyjax.cli.console", 2), ("flyjax.cli", 3)]


def importers(sources, package):
    return {
        name
        for name, tree in sources.trees.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == package for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package)
    }


def test_jraph_is_imported_in_one_module(sources):
    assert len(importers(sources, "jraph")) == 1


def test_environment_variables_are_read_in_one_module(sources):
    readers = {
        name
        for name, tree in sources.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    }
    # cli.app sets variables of JAX before JAX starts.
    assert readers <= {"flyjax.utils.environment", "flyjax.cli.app"}


def test_texts_are_written_where_keys_are_taken_out(sources):
    writers = {
        name
        for name, tree in sources.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "write_text"
    }
    assert writers == set()


def test_tests_mirror_the_package(root):
    tests = root / "tests"
    folders = {path.name for path in tests.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders - OTHER_TESTS <= set(ROOMS)
    covered = {path.parent.name for path in tests.rglob("test_*.py")}
    assert set(ROOMS) - covered == set(), "rooms without tests"
    # Alone at the top: the project, the layout, and the public functions of api.py.
    assert {path.name for path in tests.glob("test_*.py")} <= {
        "test_api.py",
        "test_architecture.py",
        "test_docs.py",
        "test_language.py",
        "test_project.py",
    }

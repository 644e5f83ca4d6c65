"""The project's files agree with the code: dependencies, packaged data, version, citation."""

import ast
import re
import sys
import tomllib

import pytest
import yaml

import flyjax

#: Packages whose module has another name than their distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
#: What requirements-dev.txt joins.
DEV_EXTRAS = ("test", "notebooks", "compare", "video", "tensorboard", "tables", "workers", "docs", "dev")


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def requirements_file(path):
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return sorted((line for line in lines if line and not line.startswith("#")), key=str.lower)


def imports(path, at_import_time=False):
    """Top-level packages that a file imports; with `at_import_time` only those outside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        if at_import_time and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def third_party(root, folders, **kwargs):
    local = {"flyjax", *(path.stem for path in (root / "scripts").glob("*.py"))}
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            for package in imports(path, **kwargs):
                if package not in sys.stdlib_module_names and package not in local:
                    found.setdefault(DISTRIBUTIONS.get(package, package).lower(), path.relative_to(root).as_posix())
    return found


def test_requirements_files_repeat_pyproject(root, project):
    extras = project["optional-dependencies"]
    dev = [requirement for extra in DEV_EXTRAS for requirement in extras[extra]]
    assert requirements_file(root / "requirements.txt") == sorted(project["dependencies"], key=str.lower)
    assert requirements_file(root / "requirements-dev.txt") == sorted(dev, key=str.lower)


def test_every_import_is_required(root, project):
    required = names(project["dependencies"])
    optional = names(r for extra in project["optional-dependencies"].values() for r in extra)
    always = third_party(root, ["flyjax", "scripts"], at_import_time=True)
    assert {k: v for k, v in always.items() if k not in required} == {}
    sometimes = third_party(root, ["flyjax", "scripts"])
    assert {k: v for k, v in sometimes.items() if k not in required | optional} == {}


def test_every_dependency_is_imported(root, project):
    used = set(third_party(root, ["flyjax", "scripts"]))
    unused = names(project["dependencies"]) - used
    assert unused == set(), "requirements that nothing imports"


def test_tests_need_only_the_requirements_files(root):
    required = names(requirements_file(root / "requirements.txt")) | names(
        requirements_file(root / "requirements-dev.txt")
    )
    support = {path.stem for path in (root / "tests").iterdir()}
    used = third_party(root, ["tests"])
    assert {k: v for k, v in used.items() if k not in required | support} == {}


def test_the_version_is_the_same_everywhere(root, project):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert newest and newest[1] == project["version"]
    assert citation["version"] == project["version"] == flyjax.__version__


def test_the_citation_names_its_sources(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    first_authors = {reference["authors"][0].get("family-names") for reference in citation["references"]}
    assert {"Lappalainen", "Allier", "Pont-Tuset", "Butler"} <= first_authors


def test_data_files_lie_inside_the_package(root):
    package = root / "flyjax"
    for name in (
        "py.typed",
        "circuit/data/fib25-fib19_v2.2.json",
        "circuit/data/LICENSE-flyvis.txt",
        "report/templates/report.html",
        "report/templates/report.css",
        "report/templates/report.js",
    ):
        assert (package / name).is_file(), name


def test_public_names_resolve():
    assert {name for name in flyjax.__all__ if not hasattr(flyjax, name)} == set()

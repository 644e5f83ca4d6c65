"""The documentation agrees with the code: links, paths, symbols, configuration keys."""

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from flyjax.config import Experiment
from flyjax.search.journal.journal import EVENTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "experiments" / "transcripts" / "README.md",
]
PROSE = [*PAGES, ROOT / "CHANGELOG.md"]


def text_of(path):
    return path.read_text(encoding="utf-8")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def page_id(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=page_id)
def test_links_of_the_site_lead_to_pages_or_to_the_repository(page):
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    source = page.relative_to(ROOT / "docs").as_posix()
    shown = hooks.on_page_markdown(
        text_of(page),
        SimpleNamespace(file=SimpleNamespace(src_uri=source)),
        SimpleNamespace(repo_url="https://host/us/it"),
        None,
    )
    made = {"commands.md", "changelog.md"}
    for target in re.findall(r"\]\(([^)\s#]+)", shown):
        repository = re.fullmatch(r"https://host/us/it/(?:blob|tree)/main/(.+)", target)
        if repository:
            assert (ROOT / repository[1]).exists(), target
        elif "://" not in target and "pictures/" not in target:
            path = (page.parent / target).resolve()
            assert path.is_relative_to(ROOT / "docs") and (path.exists() or path.name in made), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_the_text_exist(page):
    paths = re.findall(r"(?<![\w/])((?:flyjax|scripts|tests|experiments|docs)/[\w./-]*\w)", text_of(page))
    assert sorted({path for path in paths if not (ROOT / path).exists()}) == []


def symbols(path):
    """Names defined at the top of a module, and methods as Class.method."""
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef))
        if isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def test_the_map_of_the_code_is_right():
    rows = re.findall(
        r"^\| Where .+\? \| `(flyjax/[^`]+)` \| (.*) \|$", text_of(ROOT / "docs" / "architecture.md"), re.M
    )
    assert len(rows) >= 15
    missing = [
        f"{path}: {symbol}"
        for path, cell in rows
        for symbol in re.findall(r"`([^`]+)`", cell)
        if symbol not in set(symbols(ROOT / path))
    ]
    assert missing == []


def test_the_architecture_page_lists_every_room_in_import_order():
    table = re.findall(r"^\| `(\w+)` \| ", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    rooms = {path.name for path in (ROOT / "flyjax").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert set(table) == rooms and len(table) == len(rooms)
    source = text_of(ROOT / "tests" / "test_architecture.py")
    order = next(n.value for n in ast.parse(source).body if isinstance(n, ast.Assign) and n.targets[0].id == "ROOMS")
    assert tuple(table) == ast.literal_eval(order)


def keys(model=Experiment, prefix=""):
    """Every configuration key with its default."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def shown(value):
    if value is None or value in ("", (), {}):
        return "none" if value is None else "empty"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def test_every_configuration_key_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|.*\|.*\|$", text_of(ROOT / "docs" / "configuration.md"), re.M))
    expected = {name: "protocol's" if name.endswith("ranges") else shown(default) for name, default in keys()}
    assert {name: value.strip() for name, value in rows.items()} == expected


def test_every_event_of_the_journal_is_documented_with_its_fields():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|[^|]+\|$", text_of(ROOT / "docs" / "search.md"), re.M)
    shown = {name: tuple(set(re.findall(r"`(\w+)`", cell)) for cell in cells) for name, *cells in rows}
    common = {"event", "time", "waited_s"}
    known = {
        name: {k: f.is_required() for k, f in m.model_fields.items() if k not in common} for name, m in EVENTS.items()
    }
    assert shown == {
        name: ({k for k, needed in f.items() if needed}, {k for k, needed in f.items() if not needed})
        for name, f in known.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_configuration_keys_in_the_text_exist(page):
    known = {name for name, _ in keys()} | {"search.llm"}
    used = re.findall(r"(?<![\w.])((?:simulation|model|training|search|sweep)\.[\w.]*\w)(?!\()", text_of(page))
    files = {name for name in used if name.endswith((".py", ".md", ".yaml"))}
    assert {name for name in used if name not in known} - files == set()


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_python_examples_are_valid():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
            compile(block, page.name, "exec")

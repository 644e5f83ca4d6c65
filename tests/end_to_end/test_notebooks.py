"""Every cell of every notebook runs at its smallest size, and the notebooks are those that their sources make."""

import importlib.util
import sys
import tempfile

import IPython.display
import nbformat
import pytest

NAMES = (
    "01_the_fly_sees",
    "02_train_and_recover",
    "03_a_batched_sweep",
    "04_the_search_loop",
    "05_read_a_run",
    "06_your_own_circuit",
)
#: Pictures shown, without those of matplotlib.
PICTURES = {"01": 6, "02": 2, "03": 0, "04": 1, "05": 2, "06": 0}


@pytest.fixture(scope="module")
def build(root):
    spec = importlib.util.spec_from_file_location("build", root / "experiments" / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(root, request):
    return nbformat.read(root / "experiments" / "notebooks" / f"{request.param}.ipynb", as_version=4)


def test_there_is_no_other_notebook(root):
    assert sorted(path.stem for path in (root / "experiments" / "notebooks").glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("notebook", NAMES, indirect=True, ids=lambda name: name[:2])
def test_the_cells_run(root, notebook, monkeypatch, tmp_path, request):
    # In this process: starting a kernel each would cost more than the cells.
    shown = []
    monkeypatch.setenv("FLYJAX_TINY", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(root / "experiments" / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(IPython.display, "display", shown.append)
    names = {}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(compile(cell.source, f"cell {number}", "exec"), names)
    pictures = [item for item in shown if isinstance(item, IPython.display.Image)]
    assert len(pictures) == PICTURES[request.node.callspec.id] and all(len(item.data) > 1_000 for item in pictures)


@pytest.mark.parametrize("notebook", NAMES, indirect=True, ids=lambda name: name[:2])
def test_a_notebook_is_made_from_its_source(notebook, build, request):
    name = next(n for n in NAMES if n.startswith(request.node.callspec.id))
    source = build.cells_of(build.FOLDER / "source" / f"{name}.py")
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source]
    assert build.repository().removeprefix("https://") in notebook.cells[0].source.replace(
        "colab.research.google.com/github", "github.com"
    )
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"] and len(str(outputs)) < 700_000

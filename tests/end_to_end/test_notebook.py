"""The notebook runs from top to bottom, here with short trainings."""

import os
import sys

import nbformat
from nbclient import NotebookClient


def test_quickstart_notebook_runs(root, monkeypatch):
    # A notebook is a user's process: without the test suite's strictness and four devices.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(root / "experiments" / "notebooks" / "quickstart.ipynb", as_version=4)
    short = {
        '{"batch_size": 4': '{"batch_size": 4, "data_augmentation_loop": 2',
        '"training.batch_size=4"': '"training.batch_size=4", "training.data_augmentation_loop=2"',
    }
    for long, shorter in short.items():
        assert any(long in cell.source for cell in notebook.cells), long
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, shorter)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(root / "experiments" / "notebooks")}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    # rich shows its lines as displayed data in a notebook, print as a stream.
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "443 neurons, 8174 synapses" in text
    assert "finished: 1 blocks done" in text
    assert text.count("Parent rule:") >= 2
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert "branching was 0 %" in text.lower() and "16,000" in text, "the recorded run tells its edit"
    assert len(pictures) == 5

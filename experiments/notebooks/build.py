"""Make the notebooks from source/*.py: `python experiments/notebooks/build.py [--execute NAME ...]`.

A source is Python with cells that begin with `# %%`, or `# %% [markdown]` for text. A badge and the cells that install
flyjax and show the devices are added; the address of the repository is that of mkdocs.yml. Outputs stay unless cells
have changed.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
INSTALL = """# On Colab: the repository and what it needs beside Colab's own jax. Elsewhere: the checkout.
import os
import subprocess
import sys

REPOSITORY = "{repository}"

if "google.colab" in sys.modules and not os.path.isfile("protocol.md"):
    if not os.path.isdir("flyjax"):  # a checkout that you uploaded as flyjax/ is used as it is
        subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, "flyjax"], check=True)
    os.chdir("flyjax")
    # The jax that is there supports this machine's accelerator: constraints keep pip from replacing it.
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    kept = [line for line in frozen.splitlines() if line.lower().startswith(("jax", "numpy=")) and "@" not in line]
    with open("/tmp/constraints.txt", "w") as file:
        file.write("\\n".join(kept))
    install = [sys.executable, "-m", "pip", "install", "-q", "-r", "requirements.txt", "-c", "/tmp/constraints.txt"]
    subprocess.run(install, check=True)
while not os.path.isfile("protocol.md") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")
if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())"""
DEVICES = """import jax

print(f"jax {jax.__version__} on {jax.devices()}")
if jax.default_backend() == "cpu":
    print("No accelerator: everything runs, the trainings take longer.")"""


def repository() -> str:
    """The address of the repository."""
    found = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, "mkdocs.yml has no repo_url"
    return found[1]


def cells_of(source: Path) -> list:
    """The cells of a notebook; the first of a source is its title."""
    parts = re.split(r"^# %%(.*)\n", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    cells = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        if "markdown" in kind:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            cells.append(nbformat.v4.new_code_cell(body.strip()))
    where = repository().replace("https://github.com/", "https://colab.research.google.com/github/")
    address = f"{where}/blob/main/experiments/notebooks/{source.stem}.ipynb"
    cells[0].source += f"\n\n{BADGE.format(address=address)}"
    install = nbformat.v4.new_code_cell(INSTALL.format(repository=repository()))
    cells[1:1] = [install, nbformat.v4.new_code_cell(DEVICES)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # equal in every build
    return cells


def small(output):
    """An output as it is stored: films, of a megabyte, move only where the cell is run."""
    if "image/gif" not in output.get("data", {}):
        return output
    return nbformat.v4.new_output("stream", text="(run the cell to see the film)\n")


def build(source: Path, execute: bool = False):
    """A notebook, with the outputs of the one that is there where the cells are equal; or with new ones."""
    notebook = nbformat.v4.new_notebook(cells=cells_of(source))
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    path = FOLDER / f"{source.stem}.ipynb"
    if execute:
        resources = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [small(output) for output in cell.outputs]
    elif path.exists():
        old = nbformat.read(path, as_version=4)
        if [c.source for c in old.cells] == [c.source for c in notebook.cells]:
            notebook = old
    return path, notebook


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", nargs="*", default=[], help="notebooks whose outputs are made again")
    names = parser.parse_args().execute
    for script in sorted((FOLDER / "source").glob("[0-9]*.py")):
        target, made = build(script, script.stem in names or script.stem[:2] in names)
        nbformat.write(made, target)
        print(f"{target.relative_to(ROOT)}  ({target.stat().st_size / 1000:.0f} kB)")

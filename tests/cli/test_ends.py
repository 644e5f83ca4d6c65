"""A script ends, soon and with its exit code, whatever stops it."""

import errno
import os
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, pathlib, threading, time
import numpy as np
from flyjax.cli import app as cli
from flyjax.training import checkpoint

app, mkdir = cli.make_app(), os.mkdir

def no_inode(path, *arguments, **options):
    if os.path.basename(path).startswith({prefix!r}):
        raise OSError({number}, "no", str(path))
    return mkdir(path, *arguments, **options)

@app.command()
def main():
    os.mkdir = no_inode
    {body}

cli.run(app)
"""
STORE = """store = checkpoint.Store(pathlib.Path("store"))
    try:
        for number in range(3):
            store.save(number, {"x": np.zeros(1000)})
    finally:
        store.close()"""
PARAMS = 'checkpoint.save_params(pathlib.Path("params"), {"x": np.zeros(1000)})'
THREAD = 'threading.Thread(target=time.sleep, args=(300,)).start(); os.mkdir("none")'


@pytest.mark.parametrize(
    "prefix, body", [("1.", STORE), ("default", STORE), ("params", PARAMS), ("none", THREAD)],
    ids=["checkpoint", "item", "parameters", "thread"],
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_one_line_and_the_process_ends(tmp_path, root, prefix, body):
    program = PROGRAM.format(prefix=prefix, number=errno.ENOSPC, body=body)
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stderr.readline()
        shown = time.monotonic()
        rest = process.stderr.read()
        process.wait(30)
    finally:
        process.kill()
    assert process.returncode == 2 and rest == ""
    assert line.startswith("error: ") and str(prefix) in line
    assert time.monotonic() - shown < 15  # five seconds on a machine that does nothing else


OUTPUT = """
import pathlib, time
from flyjax.cli import app as cli

app = cli.make_app()

@app.command()
def main():
    print("µ first", flush=True)
    time.sleep(0.5)
    for _ in range(20000):
        print("x" * 10)
    pathlib.Path("end").touch()

cli.run(app)
"""


@pytest.mark.parametrize("output", ["| head -1", ">&- 2>&-", "> /dev/full 2> /dev/full", "> /dev/null 2>&-"])
def test_a_run_whose_output_is_lost_goes_on(tmp_path, root, output):
    (tmp_path / "program.py").write_text(OUTPUT, encoding="utf-8")
    call = f"set -o pipefail; {sys.executable} program.py {output}"
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "end").exists()

"""A script ends, soon and with its exit code, whatever stops it."""

import errno
import os
import subprocess
import sys
import time

import pytest

from flyjax.cli import app

FAILS = """
import os, pathlib, sys, threading, time
import numpy as np
from flyjax.cli import app as cli
from flyjax.training import checkpoint
from flyjax.utils.errors import UserError

app, mkdir, prefix = cli.make_app(), os.mkdir, ""

def no_inode(path, *arguments, **options):
    if os.path.basename(path).startswith(prefix):
        raise OSError({number}, "no", str(path))
    return mkdir(path, *arguments, **options)

def store():
    store = checkpoint.Store(pathlib.Path("store"))
    try:
        for number in range(3):
            store.save(number, {{"x": np.zeros(1000)}})
    finally:
        store.close()

def params():
    checkpoint.save_params(pathlib.Path("params"), {{"x": np.zeros(1000)}})

@app.command()
def main():
    global prefix
    os.mkdir = no_inode
    for prefix, save in (("1.", store), ("default", store), ("params", params)):
        try:
            save()
        except UserError as error:
            print("error:", error, file=sys.stderr)
    threading.Thread(target=time.sleep, args=(300,)).start()
    os.mkdir("params")

cli.run(app)
"""


def test_a_folder_that_cannot_be_made_is_one_line_and_the_process_ends(tmp_path, root):
    """A checkpoint, an item of it, parameters; and beside a thread that would keep the process."""
    program, environment = FAILS.format(number=errno.ENOSPC), os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = [process.stderr.readline() for _ in range(4)]
        shown = time.monotonic()
        rest = process.stderr.read()
        process.wait(30)
    finally:
        process.kill()
    assert process.returncode == 2 and rest == ""
    for prefix, line in zip(("1.", "default", "params", "params"), lines, strict=True):
        assert line.startswith("error: ") and prefix in line
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


CACHED = """
from flyjax.cli import app as cli

app = cli.make_app()

@app.command()
def main(n: int):
    cli.prepare_devices()
    import jax
    for k in range(n):
        jax.jit(lambda x: x * (k + 2.5))(1.0).block_until_ready()

cli.run(app)
"""


def test_a_damaged_cache_of_programs_is_repaired_and_a_lost_one_is_one_line(tmp_path, root):
    (tmp_path / "program.py").write_text(CACHED, encoding="utf-8")
    outside = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = outside | {
        "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip

    def run(n, **more):
        call = [sys.executable, "program.py", str(n)]
        done = subprocess.run(call, cwd=tmp_path, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout == ""
        return done.stderr

    def programs():
        return {path for path in (tmp_path / "cache").rglob("*-cache")}

    assert run(2) == ""
    first, second = sorted(programs())[:2]
    first.write_bytes(b"")
    before = len(programs())
    assert run(4) == "" and len(programs()) == before + 2 and first.stat().st_size > 0
    for path in programs():
        path.write_bytes(b"damaged")
    lines = run(4).splitlines()
    assert len(lines) == 1 and str(first.parent) in lines[0]
    (tmp_path / "file").touch()
    for place in ({"XDG_CACHE_HOME": str(tmp_path / "file")}, {"XDG_CACHE_HOME": "", "HOME": "~"}):
        lines = run(1, **place).splitlines()  # nothing can be written there
        assert len(lines) == 1 and "XDG_CACHE_HOME" in lines[0]
    assert len(run(4, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "x")).splitlines()) <= 1


def test_the_oldest_compiled_programs_are_removed_beyond_the_limit(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(app, "CACHE_BYTES", 25)
    folder = app.compilation_cache()
    folder.mkdir(parents=True)
    for age in range(4):
        program = folder / f"{age}-cache"
        program.write_bytes(b"0123456789")
        os.utime(program, (0, 1000 - age))
    app.enable_compilation_cache()
    assert sorted(path.name for path in folder.iterdir()) == ["0-cache", "1-cache"]


@pytest.mark.parametrize(
    "platform, call", [("cuda", ["meta_loop.py", "--dry-run"]), ("nonsense", ["train.py", "--run", "run"])]
)
def test_a_device_that_is_not_there_is_one_line(tmp_path, root, platform, call):
    if platform == "cuda" and any(os.path.exists(f"/dev/nvidia{k}") for k in range(16)):
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / call[0]), *call[1:]], cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and platform in done.stderr
    assert "JAX_PLATFORMS=cpu" in done.stderr

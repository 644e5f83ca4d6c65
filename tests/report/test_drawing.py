"""Figures drawn in other processes are the same files; none is lost with a process, and none that fails ends a run."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from flyjax.report.figures import drawing, node, traces
from flyjax.report.figures.drawing import Drawing, draw_figures, load_contents, save_contents
from flyjax.report.figures.exports import also_as

NAMES = ("R1", "Mi1", "T4a")


@pytest.fixture
def contents():
    rng = np.random.default_rng(0)
    voltage = np.linspace(-1, 1, 5) * np.ones((3, 1))
    per_neuron, per_edge = rng.normal(size=(4, 6)), rng.normal(size=(3, 9)).astype(np.float32)
    cell_type = np.array([0, 0, 1, 1, 2, 2])
    return {
        "functions": node.Functions(NAMES, voltage, np.maximum(voltage, 0), -voltage, -voltage),
        "embedding": node.Embedding(NAMES, cell_type, rng.normal(size=(6, 2)), ("ARI  0.5", "clusters  –")),
        "recovery": node.Recovery(NAMES, cell_type, *per_edge, *per_neuron, ("R² 1", "", "R² 0.5", "τ")),
        "activity": traces.Activity(NAMES, np.arange(4.0), *rng.normal(size=(2, 4, 3)), rng.random((4, 7)), "R² 1"),
    }


def folder(run_dir, number):
    return run_dir / "nodes" / f"{number:04d}" / "figures"


def ended(pool):
    """Whether no process of it is left, not even as a zombie."""
    return bool(pool._processes) and all(process.returncode is not None for process in pool._processes)


def test_what_is_shown_survives_its_file(contents, tmp_path):
    save_contents(tmp_path / "a.npz", contents)
    found = load_contents(tmp_path / "a.npz")
    assert found.keys() == contents.keys()
    for name, shown in contents.items():
        assert type(found[name]) is type(shown)
        for value, expected in zip(found[name], shown, strict=True):
            assert type(value) is type(expected)
            np.testing.assert_array_equal(value, expected)


def test_processes_draw_the_same_files(contents, tmp_path):
    (tmp_path / "here").mkdir()
    with also_as(["svg"]):
        assert draw_figures(tmp_path / "here", contents) == []
        with Drawing(tmp_path, pytest.fail, n_processes=2) as pool:
            for number in (1, 2, 3):
                pool.add(number, contents)
    for number in (1, 2, 3):
        assert not (tmp_path / "nodes" / f"{number:04d}.figures.npz").exists()
        drawn = {path.name: path.read_bytes() for path in folder(tmp_path, number).iterdir()}
        assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
        assert {"activity.png", "activity.svg", "activity.csv"} < drawn.keys()
    assert ended(pool)


def test_a_process_that_draws_starts_without_jax():
    code = f"import sys, {drawing.__name__}; sys.exit('jax' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_killed_process_loses_no_figure(contents, tmp_path):
    with Drawing(tmp_path, pytest.fail, n_processes=1) as pool:
        pool.add(1, contents)
        pool.wait()
        assert pool.has_news() and not pool.has_news()
        (process,) = pool._processes
        pool.add(1, contents)
        pool._jobs[tmp_path / "nodes" / f"0001{drawing.ENDING}"].result()
        os.kill(process.pid, signal.SIGSTOP)  # so that it does not finish
        pool.add(2, contents)
        assert not pool.has_news()
        os.kill(process.pid, signal.SIGKILL)
        pool.wait()
        assert (folder(tmp_path, 2) / "recovery.png").is_file() and pool.has_news()
    assert ended(pool)


def test_without_another_process_this_one_draws(contents, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with Drawing(tmp_path, pytest.fail, n_processes=1) as pool:
        pool.add(1, contents)
    assert len(list(folder(tmp_path, 1).iterdir())) == len(contents)


def test_a_figure_that_fails_is_a_warning_and_is_tried_again(contents, tmp_path, monkeypatch):
    warnings = []
    with monkeypatch.context() as patch:

        def fails(path, shown):
            raise ZeroDivisionError("no scale")

        patch.setitem(drawing.FIGURES, "embedding", (node.Embedding, fails))
        with Drawing(tmp_path, warnings.append, n_processes=0) as pool:
            pool.add(7, contents)
    assert len(warnings) == 1 and "embedding.png" in warnings[0] and "no scale" in warnings[0]
    assert {p.stem for p in folder(tmp_path, 7).iterdir()} == contents.keys() - {"embedding"}
    with Drawing(tmp_path, pytest.fail, n_processes=0):
        pass
    assert (folder(tmp_path, 7) / "embedding.png").is_file()
    assert not list((tmp_path / "nodes").glob("*.npz"))


def test_a_damaged_file_is_a_warning(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "0003.figures.npz").write_bytes(b"PK nothing")
    warnings = []
    Drawing(tmp_path, warnings.append, n_processes=0).wait()
    assert len(warnings) == 1 and "0003.figures.npz" in warnings[0]


@pytest.mark.parametrize("killed_before", [False, True])
def test_an_interrupt_waits_for_what_is_being_drawn(contents, tmp_path, killed_before):
    """And leaves what it did not begin to whoever continues the run: another process may have done so already."""
    (tmp_path / "nodes").mkdir()
    if killed_before:
        save_contents(tmp_path / "nodes" / "0001.figures.npz", contents)
    with pytest.raises(KeyboardInterrupt), Drawing(tmp_path, pytest.fail, n_processes=1) as pool:
        pool.add(2, contents)
        raise KeyboardInterrupt
    assert (folder(tmp_path, 2) / "functions.png").is_file()
    assert (tmp_path / "nodes" / "0001.figures.npz").exists() == killed_before and not folder(tmp_path, 1).exists()
    assert ended(pool) and not [t for t in threading.enumerate() if t.name.startswith("drawing")]


def test_processes_do_not_outlive_a_killed_run(contents, tmp_path):
    save_contents(tmp_path / "a.npz", contents)
    code = (
        "import os, signal, sys, pathlib\n"
        "from flyjax.report.figures.drawing import Drawing, load_contents\n"
        "pool = Drawing(sys.argv[1], n_processes=1)\n"
        "pool.add(1, load_contents(pathlib.Path(sys.argv[1], 'a.npz')))\n"
        "pool.wait()\n"
        "print(pool._processes[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == -signal.SIGKILL
    for _ in range(200):
        if not os.path.exists(f"/proc/{int(found.stdout)}"):
            return
        threading.Event().wait(0.05)
    pytest.fail("the process is still there")

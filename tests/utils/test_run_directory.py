"""Run directories: what flyjax did not make is refused and stays as it is; what a kill left behind is removed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from flyjax.utils import array_store, run_directory
from flyjax.utils.atomic_io import PARTIAL
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import LOCK, MARKER, STAMP, RunDirectory


def tree(folder):
    """Every entry of a folder with its content, links as links."""
    out = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        out[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return out


def refused(path, kind="search"):
    with pytest.raises(UserError) as error:
        RunDirectory(path, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


def opened(path, kind="search"):
    RunDirectory(path, kind).close()


@pytest.mark.parametrize(
    "files",
    [
        {"checkpoints/model.pt": "x"},
        {"recordings/a.npy": "x"},
        {"nodes/0001/metrics.json": "{}"},
        {"journal.jsonl": '{"event": "run_started"}\n'},
        {"journal.jsonl": ""},
        {"history.jsonl": "{}\n"},
        {"config.yaml": "simulation:\nmodel:\ntraining:\nsearch:\nsweep:\n", "checkpoints/model.pt": "x"},
        {"notes.txt": "x"},
        {".lock": "x"},
        {"user_input.md": "x", "thesis.tex": "x"},
        {MARKER: "{}"},
        {MARKER: "nothing"},
        {MARKER: '{"schema": 99, "kind": "search"}'},
    ],
)
@pytest.mark.parametrize("kind", ["search", "sweep", "recovery"])
def test_a_directory_of_others_is_refused_and_stays(tmp_path, files, kind):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    assert str(tmp_path) in refused(tmp_path, kind)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/", "x" * 300, "a\0b", "file", "file/below"])
def test_a_name_that_cannot_be_a_run_directory_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "a").mkdir()
    refused(name)
    assert sorted(tree(tmp_path)) == ["a", "file"]


def test_a_link_as_run_directory_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    refused(tmp_path / "run")
    assert tree(tmp_path / "real") == {}
    opened(tmp_path / "run" / "below")  # a parent may be a link


@pytest.mark.parametrize(
    "name", ["config.yaml", "user_input.md", "nodes", "nodes/0001/figures", MARKER, LOCK, "deep/x"]
)
@pytest.mark.parametrize("target", ["secret", "folder", "nowhere"])
def test_a_link_in_a_run_directory_is_refused(tmp_path, name, target):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "folder").mkdir()
    run = tmp_path / "run"
    opened(run)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / target)
    before = tree(tmp_path)
    refused(run)
    assert tree(tmp_path) == before


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    opened(tmp_path)
    os.mkfifo(tmp_path / "journal.jsonl")
    assert "journal.jsonl" in refused(tmp_path)
    (tmp_path / MARKER).unlink()
    os.mkfifo(tmp_path / MARKER)
    refused(tmp_path)


def test_a_new_directory_is_marked_and_belongs_to_one_kind_of_run(tmp_path):
    opened(tmp_path / "new" / "run", "sweep")
    facts = json.loads((tmp_path / "new" / "run" / MARKER).read_text())
    assert facts["kind"] == "sweep" and facts["schema"] == 1 and facts["flyjax"]
    opened(tmp_path / "new" / "run", "sweep")
    assert "sweep" in refused(tmp_path / "new" / "run", "train")


def test_facts_are_kept(tmp_path):
    with RunDirectory(tmp_path, "sweep") as run:
        run.note(finished=True)
    with RunDirectory(tmp_path, "sweep") as run:
        assert run.facts["finished"] is True


def old_sweep(folder):
    store = folder / "recordings" / "0123456789abcdef"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    sections = "".join(f"{name}: {{}}\n" for name in ("simulation", "model", "training", "search", "sweep"))
    (folder / "config.yaml").write_text(sections)
    (folder / "nodes" / "0001").mkdir(parents=True)
    (folder / "nodes" / "0001" / "config.yaml").write_text("node: 1\nseeds: []\n")
    (folder / "nodes" / "0002").mkdir(parents=True)
    (folder / "nodes" / "0002" / "mine.txt").write_text("x")
    (folder / "checkpoints" / "0123456789abcdef" / "250").mkdir(parents=True)
    (folder / "checkpoints" / "planned_0123456789abcdef.json").write_text("{}")
    (folder / "checkpoints" / "mine").mkdir(parents=True)
    (folder / "checkpoints" / "mine" / "model.pt").write_text("x")


def test_a_sweep_of_a_version_without_markers_goes_on(tmp_path):
    old_sweep(tmp_path)
    opened(tmp_path, "sweep")
    run_directory.own(tmp_path / "nodes" / "0001")
    with pytest.raises(UserError, match="0002"):
        run_directory.own(tmp_path / "nodes" / "0002")
    run_directory.remove_checkpoints(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["mine"]
    (tmp_path / MARKER).unlink()
    (tmp_path / "thesis.tex").write_text("x")
    refused(tmp_path, "sweep")


def test_only_folders_that_flyjax_made_are_removed(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run_directory.own(ours)
    run_directory.own(ours)
    (ours / "250" / "default").mkdir(parents=True)
    (ours / "file").write_text("x")
    theirs.mkdir()
    (theirs / "model.pt").write_text("x")
    with pytest.raises(UserError, match="theirs"):
        run_directory.own(theirs)
    (tmp_path / "link").symlink_to(ours)
    for name in ("ours", "theirs", "link", "absent"):
        if name == "link":
            run_directory.own(ours)
            (ours / "file").write_text("x")
        run_directory.remove(tmp_path / name)
    assert (theirs / "model.pt").is_file() and (ours / "file").is_file() and (tmp_path / "link").is_symlink()
    (tmp_path / "link").unlink()
    run_directory.remove(ours)
    assert not ours.exists()


def test_a_folder_whose_removal_was_interrupted_can_still_be_removed(tmp_path, monkeypatch):
    folder = run_directory.own(tmp_path / "0123")
    for name in "abc":
        (folder / name).mkdir()

    def killed(path, **options):
        os.rmdir(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_directory.remove(folder)
    assert (folder / STAMP).is_file()
    run_directory.remove(folder)
    assert not folder.exists()


def test_a_second_user_is_refused_and_the_lock_of_a_dead_one_is_not(tmp_path):
    code = """
import sys
from flyjax.utils.run_directory import RunDirectory
run = RunDirectory(sys.argv[1], "sweep")
print("open", flush=True)
sys.stdin.read()
"""
    run = tmp_path / "run"
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        assert str(run) in refused(run, "sweep")
        process.send_signal(signal.SIGKILL)
    opened(run, "sweep")


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    code = """
import os, signal, sys
import numpy as np
from flyjax.utils import array_store
from flyjax.utils.run_directory import RunDirectory
run = RunDirectory(sys.argv[1], "sweep")
array_store.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
array_store.write_store(run.path / "recordings" / "0123456789abcdef", {"voltage": np.ones((100, 10))}, {})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL and any((tmp_path / "recordings").iterdir())
    (tmp_path / "protocol").mkdir()
    for pid in (2**30, os.getpid()):
        (tmp_path / "protocol" / PARTIAL.format(pid, "block_001.md")).write_text("half")
    (tmp_path / PARTIAL.format(os.getppid(), "report.html")).write_text("being written by another process")
    (tmp_path / "recordings" / "mine.npy").write_text("x")
    opened(tmp_path, "sweep")
    assert [p.name for p in (tmp_path / "recordings").iterdir()] == ["mine.npy"]
    assert not any((tmp_path / "protocol").iterdir())
    assert (tmp_path / PARTIAL.format(os.getppid(), "report.html")).is_file()


def test_scratch_in_use_stays(tmp_path):
    with run_directory.scratch(tmp_path) as folder:
        run_directory.sweep_scratch(tmp_path)
        assert folder.is_dir()
    assert not any(tmp_path.iterdir())


def store(path, key):
    array_store.write_store(path, {"voltage": np.ones((1000, 10))}, {"cache_key": key})


def test_only_own_stores_are_evicted_and_those_being_written_count(tmp_path):
    for name, key in (("a", "a"), ("b", "b"), ("mine", None), ("copy", "a")):
        store(tmp_path / name, key)
    size = array_store.store_bytes(tmp_path / "a")
    array_store.evict(tmp_path, 2.5 * size, keep=tmp_path / "b")
    assert (tmp_path / "a").is_dir()
    with run_directory.scratch(tmp_path) as folder:
        (folder / "part").write_bytes(b"0" * size)
        array_store.evict(tmp_path, 2.5 * size, keep=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    array_store.evict(tmp_path, 0, keep=tmp_path / "b")
    assert {p.name for p in tmp_path.iterdir()} == {"b", "mine", "copy"}

"""Draw the figures of nodes in processes of their own, while the next nodes are trained.

What the figures of a node show lies in nodes/NNNN.figures.npz until they are drawn. A node is finished with that file,
so what a killed run left is drawn later. The processes take jobs from a pipe and answer on another; they need neither
JAX nor the recordings. Unlike those of multiprocessing they do not import the main script of the run, and do not
outlive a run that is killed.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, NamedTuple, Self

import numpy as np

from flyjax.report.figures import exports, node, traces
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.system import cores

#: The figures of a node by the name of their file: what each shows, and what draws it.
FIGURES: dict[str, tuple[Any, Callable[[Path, Any], Path]]] = {
    "activity": (traces.Activity, traces.activity_figure),
    "light": (node.StimulusField, node.stimulus_field_figure),
    "recovery": (node.Recovery, node.recovery_figure),
    "embedding": (node.Embedding, node.embedding_figure),
    "functions": (node.Functions, node.functions_figure),
}
ENDING = ".figures.npz"
#: Processes at most; each takes 0.1 GB, and they draw faster than nodes are trained.
MAX_PROCESSES = 4
#: Of the processes, so that the training goes first.
NICENESS = 10
#: The first line tells a process where this one finds its modules.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    f"from {__name__} import serve; serve(sys.stdin, sys.stdout)"
)


def draw_figures(folder: Path, contents: Mapping[str, Any]) -> list[str]:
    """Draw the figures of a node into a folder. **Returns:** a line for each that could not be drawn."""
    problems = []
    for name, shown in contents.items():
        try:
            FIGURES[name][1](folder / f"{name}.png", shown)
        except Exception as error:  # whatever it is, the node is worth more than its figure
            problems.append(f"{folder / name}.png could not be drawn: {type(error).__name__}: {error}")
    return problems


def save_contents(path: Path, contents: Mapping[str, NamedTuple]) -> None:
    """Write what figures show as one file of arrays."""
    file = io.BytesIO()
    arrays = {f"{name}/{k}": v for name, shown in contents.items() for k, v in shown._asdict().items()}
    np.savez(file, allow_pickle=False, **arrays)
    write_atomic(path, file.getvalue())


def load_contents(path: Path) -> dict[str, Any]:
    """Read what `save_contents` wrote."""

    def value(found: np.ndarray) -> Any:
        if found.dtype.kind == "U":
            return tuple(found.tolist()) if found.ndim else str(found)
        return found

    with np.load(path, allow_pickle=False) as arrays:
        names = dict.fromkeys(key.partition("/")[0] for key in arrays)
        return {
            name: kind(*(value(arrays[f"{name}/{field}"]) for field in kind._fields))
            for name in names
            for kind, _ in [FIGURES[name]]
        }


def _draw_file(path: Path) -> list[str]:
    """Draw what lies in NNNN.figures.npz into NNNN/figures, and remove the file unless there were problems."""
    try:
        problems = draw_figures(path.with_name(path.name.removesuffix(ENDING)) / "figures", load_contents(path))
    except Exception as error:
        problems = [f"{path} cannot be read: {type(error).__name__}: {error}"] * path.exists()
    if not problems:
        path.unlink(missing_ok=True)
    return problems


def serve(jobs: IO[str], answers: IO[str]) -> None:
    """Draw what each line of `jobs` names and answer with the problems, until `jobs` ends."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    for line in jobs:
        path, formats = json.loads(line)
        with exports.also_as(formats):
            print(json.dumps(_draw_file(Path(path))), file=answers, flush=True)


def _start() -> subprocess.Popen[str]:
    """A process that serves. In a session of its own, Ctrl-C in the terminal does not reach it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    print(json.dumps([*map(str, sys.path)]), file=process.stdin, flush=True)
    return process


class Drawing:
    """Draws the figures of the nodes of a run.

    As a context: its end waits for the figures in progress, and draws those that an earlier process left.

    **Arguments:**

    - `run_dir`: holds nodes/.
    - `warn`: receives a line for every figure that could not be drawn. A run that continues tries again.
    - `n_processes`: by default one per two cores, at most `MAX_PROCESSES`. With 0 this process draws at once.
    """

    def __init__(self, run_dir: str | Path, warn: Callable[[str], Any] = warnings.warn, n_processes: int | None = None):
        self._nodes, self._warn = Path(run_dir) / "nodes", warn
        n = min(MAX_PROCESSES, max(1, cores() // 2)) if n_processes is None else n_processes
        self._threads = ThreadPoolExecutor(n, "drawing") if n else None
        self._jobs: dict[Path, Future[list[str] | None]] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._failed: set[Path] = set()
        self._has_news = False

    def add(self, node: int, contents: Mapping[str, NamedTuple]) -> None:
        """Draw the figures of a node."""
        path = self._nodes / f"{node:04d}{ENDING}"
        save_contents(path, contents)
        if self._threads is None:
            self._finish(path, _draw_file(path))
        else:
            self._jobs[path] = self._threads.submit(self._elsewhere, path, exports.formats())

    def _elsewhere(self, path: Path, formats: Sequence[str]) -> list[str] | None:
        """What another process could not draw; None where there is no other process, or it was lost."""
        try:
            try:
                process = self._idle.get_nowait()
            except Empty:
                process = _start()
                self._processes.append(process)
            assert process.stdin is not None and process.stdout is not None
            print(json.dumps([str(path.absolute()), formats]), file=process.stdin, flush=True)
            problems: list[str] = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            return None
        self._idle.put(process)
        return problems

    def _finish(self, path: Path, problems: list[str]) -> None:
        self._has_news = True
        if problems:
            self._failed.add(path)
        for line in problems:
            self._warn(line)

    def _take(self, path: Path) -> None:
        problems = self._jobs[path].result()
        del self._jobs[path]
        self._finish(path, _draw_file(path) if problems is None else problems)

    def has_news(self) -> bool:
        """Whether figures were finished since it last said so, and none is in progress."""
        for path in [path for path, job in self._jobs.items() if job.done()]:
            self._take(path)
        if self._jobs:
            return False
        news, self._has_news = self._has_news, False
        return news

    def wait(self) -> None:
        """Wait for the figures in progress, and draw those that an earlier process left."""
        self._wait_for_own()
        for path in sorted({*self._nodes.glob(f"[0-9]*{ENDING}")} - self._failed):
            self._finish(path, _draw_file(path))

    def _wait_for_own(self) -> None:
        for path in list(self._jobs):
            self._take(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.wait()
            else:
                self._wait_for_own()  # the run directory may be another process's
        finally:
            self._close()

    def _close(self) -> None:
        """End all processes. What they did not draw lies in its file."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for process in self._processes:
                process.kill()
            self._threads.shutdown()
        for process in self._processes:
            with suppress(OSError), process:
                pass  # closes the pipes and waits

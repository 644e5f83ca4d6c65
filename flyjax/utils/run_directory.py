"""Directories that flyjax writes into: made, opened, locked, swept, and nothing deleted but what flyjax wrote.

A run directory holds a marker file. One that holds anything else instead is refused before anything is written, as is
a link or a device anywhere in it. Folders inside it that are deleted or replaced as a whole (a node's, a training's
checkpoints) carry a stamp; without one they belong to somebody else.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from flyjax import __version__
from flyjax.utils.atomic_io import PARTIAL, write_atomic
from flyjax.utils.errors import UserError

MARKER, LOCK, STAMP = ".flyjax-run.json", ".lock", ".flyjax"
SCHEMA = 1
JOURNAL, USER_INPUT = "journal.jsonl", "user_input.md"  # of a search
#: What a sweep of a version without markers wrote.
_OLD_SWEEP = {
    "config.yaml", "nodes", "recordings", "checkpoints", "history.jsonl", "results.csv", "results.md", "parallel.png",
    "tensorboard",
}  # fmt: skip
_SCRATCH = ".flyjax-scratch-"
#: The option that names a directory of this kind, where it is not --run.
_OPTION = {"recovery": "--work", "comparison": "--cache", "simulation": "--out"}


def run_path(given: Path | None, name: str) -> Path:
    """The run directory that a call names; by default runs/<name>."""
    return Path("runs") / name if given is None else given


def node_folder(run_dir: str | Path, node: int) -> Path:
    """nodes/NNNN of a run."""
    return Path(run_dir) / "nodes" / f"{node:04d}"


def checkpoint_folder(run_dir: str | Path) -> Path:
    """The checkpoints of the trainings in progress."""
    return Path(run_dir) / "checkpoints"


# --- what is flyjax's ---


def own(folder: Path, make: bool = True) -> Path:
    """A folder that flyjax may replace and delete: a new one, or one that it made earlier.

    **Raises:** `UserError` where it holds files of others.
    """
    if folder.is_symlink() or not (folder / STAMP).is_file():
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UserError(f"{folder} was not made by flyjax: move it elsewhere, or choose another --run")
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STAMP).touch()
    return folder


def remove(folder: Path) -> None:
    """Remove a folder if flyjax made it; the stamp goes last, so that a kill leaves the rest removable."""
    stamp = folder / STAMP
    if folder.is_symlink() or not stamp.is_file():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != stamp:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        stamp.unlink()
        folder.rmdir()


def remove_checkpoints(run_dir: str | Path) -> None:
    """Remove the checkpoints, which nothing needs once the results are recorded."""
    with suppress(OSError):  # there are none, or files of others remain
        for folder in checkpoint_folder(run_dir).iterdir():
            remove(folder)
        checkpoint_folder(run_dir).rmdir()


def refuse_links(folder: str | Path) -> list[Path]:
    """The files of a folder.

    **Raises:** `UserError` where one is a link, a pipe or a device: writing through it would change what it points to.
    """
    files, folders = [], [Path(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry))
                    elif entry.is_file(follow_symlinks=False):
                        files.append(Path(entry))
                    else:
                        raise UserError(
                            f"{entry.path} is a link or a device, which flyjax does not write through: replace it "
                            "with a copy of what it points to"
                        )
        except FileNotFoundError:  # removed meanwhile by the process that uses the directory
            continue
    return files


# --- scratch, which a killed process leaves behind ---


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder to write something in that is moved to its place when it is complete; removed at the end.

    As long as the process lives it has a lock beside the folder.
    """
    folder = parent / f"{_SCRATCH}{uuid.uuid4().hex}"
    with FileLock(f"{folder}.lock"):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.lock").unlink(missing_ok=True)


def sweep_scratch(parent: Path) -> None:
    """Remove the scratch folders of processes that were killed."""
    for path in parent.glob(f"{_SCRATCH}*.lock"):
        with suppress(Timeout, OSError), FileLock(path, timeout=0):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def scratch_bytes(parent: Path) -> int:
    """Disk use of the scratch folders in a folder."""
    return sum(p.stat().st_size for p in parent.glob(f"{_SCRATCH}*/**/*") if p.is_file())


def _sweep_partials(files: list[Path]) -> None:
    """Remove the half-written files of processes that were killed."""
    for path in files:
        if found := re.fullmatch(PARTIAL.format(r"(\d+)", ".*"), path.name):
            number = int(found[1])
            if number == os.getpid() or not Path("/proc", str(number)).exists():
                path.unlink(missing_ok=True)


# --- run directories ---


def _first_line(path: Path) -> dict[str, Any]:
    """The JSON object in the first line of a file; empty where there is none."""
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        with open(path, "rb") as file:
            found = json.loads(file.readline(50_000_000))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kinds_without_marker(path: Path, names: set[str]) -> tuple[str, ...]:
    """What kind of run directory a version without markers made this; empty for directories of others."""
    first = _first_line(path / JOURNAL)
    if first.get("event") == "run_started" and "schema" in first and {"experiment", "protocol"} <= first.keys():
        return ("search",)
    if names <= {"rows.jsonl", "trainings"} and {"key", "row"} <= _first_line(path / "rows.jsonl").keys():
        return ("comparison",)
    recorded = any((path / "recordings").glob("[0-9a-f]*/manifest.json"))
    if recorded and names <= {"recordings", "checkpoints"}:
        return ("recovery",)
    if recorded and names <= _OLD_SWEEP and (path / "config.yaml").is_file():
        sections = re.findall(r"^(\w+):", (path / "config.yaml").read_text("utf-8", "replace"), re.M)
        if {"simulation", "model", "training", "search", "sweep"} <= {*sections}:
            return "sweep", "train"
    return ()


def _stamp_old_folders(path: Path) -> None:
    """Stamp the nodes and checkpoints of a directory that a version without markers made."""
    for folder in (path / "nodes").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if (folder / "config.yaml").read_text("utf-8").startswith(f"node: {int(folder.name)}\n"):
                (folder / STAMP).touch()
    for folder in checkpoint_folder(path).glob("*"):
        if re.fullmatch(r"planned_[0-9a-f]+\.json", folder.name):  # plans are in folders today
            folder.unlink()
        inside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        if re.fullmatch("[0-9a-f]{16}", folder.name) and all(n.isdigit() or "orbax" in n for n in inside):
            (folder / STAMP).touch()


def _facts(path: Path, kind: str) -> dict[str, Any] | None:
    """What the marker holds; None in a new directory.

    **Raises:** `UserError` in a directory of others, or of another kind of run.
    """
    names = {entry.name for entry in path.iterdir() if not re.fullmatch(PARTIAL.format(r"\d+", ".*"), entry.name)}
    own_input = {USER_INPUT} if kind == "search" else set()  # instructions may be written before the run begins
    if names <= {LOCK, *own_input} and not ((path / LOCK).exists() and (path / LOCK).stat().st_size):
        return None
    facts = _first_line(path / MARKER)
    if facts.get("schema", SCHEMA) != SCHEMA:
        raise _unusable(path, kind, f"its {MARKER} was written by a later version of flyjax")
    found = (facts["kind"],) if "kind" in facts else _kinds_without_marker(path, names - {MARKER, LOCK})
    if not found:
        example = min(names - {MARKER, LOCK}, default=LOCK)
        raise _unusable(path, kind, f"it holds {example} and was not made by flyjax, nor is it empty")
    if kind not in found:
        raise _unusable(path, kind, f"it holds a run of another kind ({found[0]}, not {kind})")
    return facts


def _unusable(path: Path, kind: str, reason: object) -> UserError:
    return UserError(f"cannot use the run directory {path}: {reason}; choose another {_OPTION.get(kind, '--run')}")


def check(path: str | Path, kind: str) -> None:
    """Check that a directory is a run directory of this kind or can become one; writes nothing.

    **Raises:** `UserError` with the reason.
    """
    path = Path(path)
    if path.name in ("", "..") or "\0" in path.name:
        raise _unusable(path, kind, "it needs a name of its own")
    try:
        if path.is_symlink():
            raise _unusable(path, kind, "it is a link")
        if path.exists():
            if not path.is_dir():
                raise _unusable(path, kind, "it is a file")
            _facts(path, kind)
            refuse_links(path)
        else:
            (path / MARKER).exists()  # a name that is too long
        existing = next((p for p in (path, *path.parents) if p.exists()), Path("."))
        if not existing.is_dir():
            raise _unusable(path, kind, f"{existing} is a file")
        if not os.access(existing, os.W_OK):
            raise _unusable(path, kind, f"{existing} is not writable")
    except UserError:
        raise
    except OSError as error:
        raise _unusable(path, kind, error.strerror) from None


def identity(path: str | Path) -> str:
    """A name of a run directory that no other has; a new one where it has no marker."""
    return str(_first_line(Path(path) / MARKER).get("id", uuid.uuid4().hex[:12]))


class RunDirectory:
    """An open run directory; one process at a time has it.

    **Arguments:**

    - `path`: is made where it does not exist.
    - `kind`: of run, for example `search`.

    **Raises:** `UserError` for a directory that is in use or not flyjax's, a link, or a name that cannot be used.
    """

    def __init__(self, path: str | Path, kind: str):
        check(path, kind)
        self.path, self._lock = Path(path), FileLock(Path(path) / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise _unusable(self.path, kind, "it is in use by another process: wait for it, or stop it") from None
        except OSError as error:
            raise _unusable(self.path, kind, error.strerror) from None
        try:
            facts = _facts(self.path, kind)
            if facts == {}:
                _stamp_old_folders(self.path)
            self.facts = facts or {}
            self.note(schema=SCHEMA, kind=kind, id=self.facts.get("id", uuid.uuid4().hex[:12]))
            _sweep_partials(refuse_links(self.path))
            sweep_scratch(self.path / "recordings")
        except BaseException:
            self.close()
            raise

    def note(self, **facts: Any) -> None:
        """Add facts to the marker."""
        self.facts = {"flyjax": __version__, **self.facts, **facts}
        try:
            write_atomic(self.path / MARKER, json.dumps(self.facts) + "\n", sync=True)
        except OSError as error:
            raise _unusable(self.path, self.facts["kind"], error.strerror) from None

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

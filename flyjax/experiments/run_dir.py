"""Folders of a run directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flyjax.utils.errors import UserError


def _not_possible(run_dir: Path, reason: str | None) -> UserError:
    return UserError(f"cannot make the run directory {run_dir}: {reason}; choose another --run")


def check_run_dir(run_dir: Path) -> None:
    """Check that a run directory exists or can be made.

    **Raises:** `UserError` where a file is in the way, or the folder cannot be written.
    """
    existing = next((p for p in (Path(run_dir), *Path(run_dir).parents) if p.exists()), Path("."))
    if not existing.is_dir():
        raise _not_possible(run_dir, f"{existing} is a file")
    if not os.access(existing, os.W_OK):
        raise _not_possible(run_dir, f"{existing} is not writable")


def make_run_dir(run_dir: Path) -> None:
    """Make a run directory unless it exists.

    **Raises:** `UserError` where that is not possible.
    """
    check_run_dir(run_dir)
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_possible(run_dir, error.strerror) from None


def node_folder(run_dir: Path, node: int) -> Path:
    """nodes/NNNN of a run."""
    return Path(run_dir) / "nodes" / f"{node:04d}"


def checkpoint_folder(run_dir: Path) -> Path:
    """The checkpoints of the trainings in progress."""
    return Path(run_dir) / "checkpoints"


def remove_checkpoints(run_dir: Path) -> None:
    """Remove the checkpoints, which nothing needs once the results are recorded."""
    shutil.rmtree(checkpoint_folder(run_dir), ignore_errors=True)

"""What every script shares: the repository on the path, and errors a user can act on."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def prepare_devices() -> None:
    """One XLA device per CPU core, so that candidates are sharded over the cores.

    Without effect where an accelerator is found or XLA_FLAGS already says how many.
    """
    flag = "--xla_force_host_platform_device_count"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={os.cpu_count() or 1}".strip()


def run(app) -> None:
    """Run a typer app: bad input is one line and exit code 2, Ctrl-C one line and 130."""
    from flyjax.errors import UserError

    # Libraries that log every checkpoint would drown the progress bar.
    for name in ("orbax", "absl", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as end:
        # Typer turns Ctrl-C into this before it gets here.
        if end.code == 130:
            print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise

"""What every script shares: the repository on the path, and errors a user can act on."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def commit() -> str:
    """The git commit of the code, with -dirty where flyjax/ or scripts/ differ from it; 'unknown' outside a checkout."""

    def git(*what: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *what], capture_output=True, text=True)

    try:
        asked = git("rev-parse", "--short=12", "HEAD")
        if asked.returncode != 0:
            return "unknown"
        changed = git("status", "--porcelain", "--", "flyjax", "scripts").stdout.strip()
    except OSError:  # no git
        return "unknown"
    return asked.stdout.strip() + ("-dirty" if changed else "")


def compiled_folder() -> Path:
    """Where compiled programs are kept between runs: a folder of the user's cache, one per kind of processor.

    Homes are shared by machines whose processors differ, and a program made for one may not run on another.
    """
    from flyjax.utils.environment import cache_dir

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:  # not Linux
        kind = platform.processor()
    return cache_dir() / "compiled" / hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]


def keep_compiled() -> None:
    """Keep compiled programs between runs (JAX's persistent cache, 1 GB at most, the least recently used go first).

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in (
        "0",
        "false",
    ):
        return
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: everything works, compiling takes its time
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(10**9))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def prepare_devices() -> None:
    """One XLA device per CPU core, so that candidates are sharded over the cores, and compiled programs kept.

    Without effect where an accelerator is found or XLA_FLAGS already says how many.
    """
    keep_compiled()
    flag = "--xla_force_host_platform_device_count"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={os.cpu_count() or 1}".strip()


def quiet_libraries() -> None:
    """Our own warnings once, as plain lines; libraries that log every checkpoint would drown the progress bar."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    for name in ("orbax", "absl"):  # a failed save is raised as well: no need of a page for every thread
        logging.getLogger(name).setLevel(logging.CRITICAL)
    own = logging.getLogger("flyjax")
    own.propagate = False  # libraries give the root a handler of its own
    own.addHandler(logging.lastResort)  # to sys.stderr as it is then: a live display may stand in for it


def run(app) -> None:
    """Run a typer app: bad input is one line and exit code 2, Ctrl-C one line and 130."""
    from flyjax.utils.errors import mendable
    from flyjax.utils.signals import stoppable

    quiet_libraries()
    try:
        with stoppable():
            app(standalone_mode=True)
    except KeyboardInterrupt:  # one that got lost until now
        _stopped()
        raise SystemExit(130) from None
    except SystemExit as end:
        # Typer turns Ctrl-C into this before it gets here.
        if end.code == 130:
            _stopped()
        raise
    except Exception as error:
        told = mendable(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(2) from None


def _stopped() -> None:
    print("\nstopped; the same command goes on from here", file=sys.stderr)

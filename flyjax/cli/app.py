"""What the scripts share: devices, the cache of compiled programs, logging and exit codes."""

import errno
import functools
import hashlib
import io
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import typer

from flyjax.utils.environment import cache_dir, has_home
from flyjax.utils.errors import user_message
from flyjax.utils.secrets import RedactedStream
from flyjax.utils.signals import interruptible

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
#: A failed process ends after so many seconds even where a library's threads have not.
PATIENCE_S = 4.0
#: Bytes of compiled programs that are kept, the newest first.
CACHE_BYTES = 10**9


def commit() -> str:
    """The git commit of the code, with -dirty if flyjax/ or scripts/ differ from it; 'unknown' outside a checkout."""
    git = functools.partial(subprocess.check_output, cwd=ROOT, stderr=subprocess.DEVNULL, encoding="utf-8")
    try:
        changed = git(["git", "status", "--porcelain", "--", "flyjax", "scripts"]).strip()
        return git(["git", "rev-parse", "--short=12", "HEAD"]).strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def compilation_cache() -> Path:
    """The folder of compiled programs, one per kind of processor.

    Machines with different processors may share a home, and a program compiled for one may not run on another.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:  # not Linux
        kind = platform.processor()
    return cache_dir() / "compiled" / hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]


def _newest_first(entry: tuple[os.stat_result, Path]) -> float:
    return -entry[0].st_mtime


def _tell_jax(folder: Path) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    jax.config.update("jax_compilation_cache_dir", str(folder))
    seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    cache.reset_cache()  # the first compilation has set the old one up


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs in JAX's persistent cache, 1 GB at most.

    Scripts do this by themselves; in Python call it once. JAX_COMPILATION_CACHE_DIR names another folder, which may
    grow; JAX_ENABLE_COMPILATION_CACHE=false disables it.
    """
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false"):
        return
    # Most of the time goes into many programs that compile in less than JAX's limit of 1 s.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(given) if given else compilation_cache()
    try:
        if not given:
            if not has_home():
                raise PermissionError(errno.EACCES, "no home, and what others can write is not run")
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, "not writable")
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        kept = 0
        # Not by JAX's own limit: it lists the folder for every program that it stores.
        for status, program in sorted(((f.stat(), f) for f in folder.glob("*-cache")), key=_newest_first):
            kept += status.st_size
            if not status.st_size or (kept > CACHE_BYTES and not given):  # JAX stores nothing more beside a damaged one
                program.unlink(missing_ok=True)
        if "jax" in sys.modules:  # it has read its environment
            _tell_jax(folder)
    except OSError as error:
        log.warning(
            "warning: compiled programs cannot be kept in %s (%s), so that every start compiles them: set "
            "XDG_CACHE_HOME to a folder of yours",
            folder,
            error.strerror,
        )


def prepare_devices() -> None:
    """Make one XLA device per CPU core, over which candidates are sharded, and enable the compilation cache.

    To be called before JAX starts. No effect on accelerators, or where XLA_FLAGS already sets the number.
    """
    enable_compilation_cache()
    flag = "--xla_force_host_platform_device_count"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={os.cpu_count() or 1}".strip()


def configure_logging() -> None:
    """Print warnings of flyjax once, as plain lines, and silence libraries that log every checkpoint."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # A failed save raises an exception as well, and where there is no home, matplotlib lists the fonts anew.
    for name in ("orbax", "absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.showwarning = _show_once()
    own = logging.getLogger("flyjax")
    own.propagate = False  # libraries add a handler to the root logger
    assert logging.lastResort is not None
    own.addHandler(logging.lastResort)  # writes to the current sys.stderr, which a live display may replace


def _show_once() -> Callable[..., None]:
    """Shows Python's warnings as plain lines, one of a kind: libraries repeat them with other details."""
    shown = set()

    def show(message, category, *place, **options) -> None:
        text = " ".join(str(message).split())
        if (kind := text[:40]) not in shown:
            shown.add(kind)
            remedy = ""
            if "compilation cache" in text and (folder := os.environ.get("JAX_COMPILATION_CACHE_DIR")):
                remedy = f"; nothing is lost, but remove {folder} if it stays so"
            log.warning("warning: %s%s", text[:200], remedy)

    return show


def make_app(rich_markup_mode=None) -> typer.Typer:
    """A typer app with the settings of all scripts."""
    return typer.Typer(add_completion=False, rich_markup_mode=rich_markup_mode, pretty_exceptions_enable=False)


def _leave(code: int, text: str = "") -> None:
    """End the process where it is one of several, which learn of the end and its reason."""
    if processes := sys.modules.get("flyjax.utils.distributed"):  # it imports JAX: only where that was used
        processes.leave(code, text)


def _lost(error: BaseException | None = None) -> str:
    """Which process was lost, and by that caused an error or a signal; empty where none was."""
    processes = sys.modules.get("flyjax.utils.distributed")
    return processes.lost(error) if processes else ""


def _end_soon(code: int, text: str) -> None:
    """End the process `PATIENCE_S` after its main thread, although other threads would keep it."""
    _leave(code, text)

    def end() -> None:
        threading.main_thread().join()
        time.sleep(PATIENCE_S)
        if any(thread.is_alive() and not thread.daemon for thread in threading.enumerate()):
            os._exit(code)

    threading.Thread(target=end, daemon=True).start()


class _Output(io.FileIO):
    """Standard output or error that may lose its reader: a closed terminal, or `| head`. The run goes on without."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _keep_output() -> None:
    for name, original in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if original is None:  # closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif getattr(sys, name) is original:  # not captured
            buffer = io.BufferedWriter(_Output(original.fileno(), "w", closefd=False))
            lines = name == "stderr" or original.isatty()
            text = io.TextIOWrapper(buffer, original.encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, name, text)


def run(app: typer.Typer) -> None:
    """Run a typer app: bad input is one line and exit code 2, a signal one line and 128 + its number.

    A process of several ends with the code of the one that ended the run, or with `distributed.LOST`.
    """
    _keep_output()
    configure_logging()
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    try:
        with interruptible() as interrupt:
            app(standalone_mode=True)
    except KeyboardInterrupt:
        pass
    except SystemExit as end:
        if end.code != 130 and not interrupt.number:  # 130 is typer's exit code of an interrupt
            _leave(end.code if isinstance(end.code, int) else 0)
            raise
    except Exception as error:
        message = user_message(error) or _lost(error)
        if message:
            print(f"error: {message}", file=sys.stderr)
            _end_soon(2, message)
            raise SystemExit(2) from None
        if not interrupt.number:  # compiled code, such as matplotlib's, makes an error of its own of an interrupt
            _end_soon(1, type(error).__name__)
            raise
    number = interrupt.number or signal.SIGINT
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    print(f"error: {_lost()}" if _lost() else f"\nstopped{by}; run the same command again to continue", file=sys.stderr)
    _end_soon(128 + number, f"stopped{by}")
    raise SystemExit(128 + number)

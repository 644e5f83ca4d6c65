"""Four CPU devices and strict promotion, set before jax starts."""

import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
# The programs of tests run for a moment, so that compiling them is most of the work. "false" tests optimised programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# What one process has compiled is read by the others: the second worker, and the scripts and notebooks of the tests.
# Programs with diffrax's checks of its arguments call back into Python and would not be kept.
os.environ.setdefault("EQX_ON_ERROR", "nan")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flyjax-compiled-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# A test never talks to the real service, whatever the developer's environment holds.
os.environ.pop("ANTHROPIC_API_KEY", None)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker takes whole files as long as it can, so that a module's fixtures are made once."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers made with the real flyvis."""
    folder = ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden beside the checkout: numbers of the real flyvis are not at hand")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def script(root, monkeypatch, capsys):
    """`scripts/NAME.py ARGUMENTS` in this process, which has imported everything; (exit code, output, errors)."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    own = logging.getLogger("flyjax")
    levels = {name: logging.getLogger(name).level for name in ("orbax", "absl", "jax._src.xla_bridge")}
    before = own.propagate, list(own.handlers)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module = importlib.import_module(name)
        with pytest.raises(SystemExit) as end:
            module.run(module.app)
        return end.value.code or 0, *capsys.readouterr()

    yield call
    own.propagate, own.handlers[:] = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)

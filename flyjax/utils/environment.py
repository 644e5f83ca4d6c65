"""The environment variables that flyjax reads; no other module looks at the environment."""

import os
import tempfile
from pathlib import Path

API_KEY = "ANTHROPIC_API_KEY"


def api_key() -> str:
    """The key of the language model's service, or an empty string."""
    return os.environ.get(API_KEY, "").strip()


def data_root() -> Path | None:
    """FLYJAX_DATA: the folder of videos, optic flow and flyvis models."""
    given = os.environ.get("FLYJAX_DATA")
    return expanded(given) if given else None


def flyvis_root() -> Path | None:
    """FLYVIS_ROOT_DIR: where the flyvis package keeps its models."""
    given = os.environ.get("FLYVIS_ROOT_DIR")
    return expanded(given) if given else None


def expanded(path: str | Path) -> Path:
    """A path with the user's folder for ~, where there is one: a container may have neither HOME nor a user."""
    return Path(os.path.expanduser(path))


def has_home() -> bool:
    """Whether the user has a folder for caches."""
    return bool(os.environ.get("XDG_CACHE_HOME")) or os.path.expanduser("~") != "~"


def cache_dir() -> Path:
    """The user's cache folder of flyjax, compiled programs and downloaded models; a temporary one without a home."""
    default = os.path.join(os.path.expanduser("~"), ".cache") if has_home() else tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "flyjax"


def jax_platforms() -> str:
    """JAX_PLATFORMS: the kinds of device that JAX is to use; empty for what there is."""
    return os.environ.get("JAX_PLATFORMS", "")


def one_core() -> dict[str, str]:
    """The environment of a process in which JAX's CPU device is a single one, its products with one thread."""
    flags = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
    return os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}

"""This machine: cores, memory, devices and package versions."""

import importlib.metadata
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "optax", "jraph", "diffrax", "orbax-checkpoint", "anthropic", "numpy")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_ram() -> int:
    """Bytes that this process may still allocate, on the machine or in its container."""
    known = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):  # not Linux
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 * 10**9
        known.append(pages // 2)
    try:
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current")
        )
        if limit != "max":
            known.append(int(limit) - int(used))
    except (OSError, ValueError):  # no cgroup v2
        pass
    return max(0, min(known))


def peak_memory_gb() -> float:
    """Peak memory of this process, GB; NaN where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in PACKAGES}


def devices() -> dict[str, Any]:
    """Devices, machine and versions, for the journal and the report."""
    import jax

    first = jax.local_devices()[0]
    return {
        "platform": first.platform,
        "device_kind": first.device_kind,
        "n_devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def hardware() -> str:
    """Cores and processor in one line, for tables of measurements."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"

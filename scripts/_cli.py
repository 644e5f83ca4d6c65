"""Put the checkout on the path, so that the scripts run without an installation."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flyjax.cli.app import commit, make_app, prepare_devices, run  # noqa: E402

__all__ = ["ROOT", "commit", "make_app", "prepare_devices", "run"]

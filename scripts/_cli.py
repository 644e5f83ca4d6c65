"""Put the checkout on the path, so that the scripts run without an installation."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  before anything that an older Python cannot read or lacks
    sys.stderr.write("error: flyjax needs Python 3.11 or newer, this is {}.{}\n".format(*sys.version_info))
    sys.exit(2)

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flyjax.cli.app import commit, make_app, prepare_devices, run  # noqa: E402

__all__ = ["ROOT", "commit", "make_app", "prepare_devices", "run"]

"""`python -m flyjax --version`: the versions of flyjax and its packages, and the devices."""

import argparse

from flyjax import __version__
from flyjax.utils.system import devices, hardware


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m flyjax", epilog="The commands are in scripts/, see docs/.")
    parser.add_argument("--version", action="store_true", help="print versions and devices")
    if not parser.parse_args().version:
        parser.print_help()
        return
    found = devices()
    print(f"flyjax {__version__}, Python {found['python']}")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    print(f"{found['n_devices']} x {found['device_kind']} ({found['platform']}); {hardware()}")


if __name__ == "__main__":
    main()

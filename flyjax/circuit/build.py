"""The connectome that a configuration names: the fly's at an extent, another file's, or that of two tables."""

from functools import lru_cache
from numbers import Integral
from pathlib import Path

from flyjax.circuit import tables
from flyjax.circuit.connectome import CONNECTOME_FILE, CONNECTOME_SHA256, Connectome, assemble, read_specs
from flyjax.utils.environment import expanded
from flyjax.utils.errors import UserError

MAX_EXTENT = 15


@lru_cache(maxsize=4)
def _packaged_connectome(extent: int) -> Connectome:
    return assemble(read_specs(CONNECTOME_FILE, CONNECTOME_SHA256), extent)


def build_connectome(extent: int = 8, path: str | Path | None = None) -> Connectome:
    """The network on a hexagonal lattice of 1 + 3 extent (extent + 1) columns.

    Reproduces flyvis 1.2.0 with `fib25-fib19_v2.2.json` and hull filling (`n_syn_fill=1`):
    13,741 neurons and 434,112 edges at extent 8. Repeated calls return the same object.

    **Arguments:**

    - `extent`: hexagonal radius in columns, 0 to 15.
    - `path`: another connectome file of the same format, or a folder with tables of neurons and edges
        (`flyjax.circuit.tables`); by default the packaged file, whose SHA-256 is verified.

    **Raises:** `UserError` if the extent is not an integer in 0..15, or the file is missing,
    changed or not a connectome.
    """
    if isinstance(extent, bool) or not isinstance(extent, Integral) or not 0 <= extent <= MAX_EXTENT:
        raise UserError(f"extent must be an integer from 0 to {MAX_EXTENT}, got {extent!r}")
    if path is None:
        return _packaged_connectome(int(extent))
    path = expanded(path)
    if path.is_dir():
        return tables.cached_tables(path, int(extent), tables.content(path))
    return assemble(read_specs(path), int(extent))

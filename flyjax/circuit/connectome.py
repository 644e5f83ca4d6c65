"""The fly's visual system as a graph: neurons on a hexagonal lattice, and edges.

The stencils of the connectome file, one per pair of cell types, are repeated over a lattice of columns; edges that
would leave it are dropped.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from flyjax.circuit.connectome_file import ConnectomeSpecs, packaged_specs, read_specs
from flyjax.circuit.hexgrid import lattice
from flyjax.utils.errors import UserError

MAX_EXTENT = 15


@dataclass(frozen=True, eq=False)
class Connectome:
    """A network of identified neurons. Arrays are read-only; equality is that of the content.

    Neurons are ordered by type (file order), inside a type by column (u, then v). Edges are
    sorted by (receiver, sender) and their node pairs are unique. Type pairs and offset keys
    are the same at every extent; which of them occur among the edges depends on it.
    """

    extent: int
    cell_types: tuple[str, ...]  #: names of the 65 types
    input_types: tuple[str, ...]  #: types that receive luminance, R1..R8
    output_types: tuple[str, ...]  #: types that a flyvis decoder reads
    columns: Int32[np.ndarray, "n_col 2"]  #: (u, v) of each column
    cell_type: Int32[np.ndarray, " N"]
    column: Int32[np.ndarray, " N"]  #: column of each neuron
    u: Int32[np.ndarray, " N"]
    v: Int32[np.ndarray, " N"]
    senders: Int32[np.ndarray, " E"]
    receivers: Int32[np.ndarray, " E"]
    edge_pair: Int32[np.ndarray, " E"]  #: row of `pairs`
    offset_key: Int32[np.ndarray, " E"]  #: row of `keys`
    sign: Float32[np.ndarray, " E"]  #: -1, +1
    n_syn: Float32[np.ndarray, " E"]  #: synapses
    pairs: Int32[np.ndarray, "P 2"]  #: (source type, target type)
    pair_sign: Float32[np.ndarray, " P"]
    keys: Int32[np.ndarray, "K 4"]  #: (source type, target type, du, dv), target minus source
    key_pair: Int32[np.ndarray, " K"]
    key_n_syn: Float32[np.ndarray, " K"]
    inputs: Int32[np.ndarray, " n_in"]  #: neurons that receive luminance
    input_column: Int32[np.ndarray, " n_in"]  #: whose luminance they receive

    @property
    def n_neurons(self) -> int:
        return len(self.cell_type)

    @property
    def n_edges(self) -> int:
        return len(self.senders)

    @property
    def n_columns(self) -> int:
        return len(self.columns)

    @property
    def n_types(self) -> int:
        return len(self.cell_types)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits, equal for circuits of equal content."""
        digest = hashlib.sha256()
        for value in (getattr(self, field.name) for field in fields(self)):
            digest.update(repr(getattr(value, "shape", value)).encode())
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else b"")
        return digest.hexdigest()[:16]

    def __eq__(self, other) -> bool:
        return isinstance(other, Connectome) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def central(self) -> Int32[np.ndarray, " n_types"]:
        """The neuron of each type in column (0, 0)."""
        return np.flatnonzero((self.u == 0) & (self.v == 0)).astype(np.int32)

    @property
    def node_pairs(self) -> Int64[np.ndarray, " E"]:
        """sender * n_neurons + receiver of each edge: one number per pair of neurons."""
        return self.senders.astype(np.int64) * self.n_neurons + self.receivers

    def __repr__(self) -> str:
        return f"Connectome(extent={self.extent}, {self.n_neurons:,} neurons, {self.n_edges:,} edges)"


def _assemble(specs: ConnectomeSpecs, extent: int) -> Connectome:
    columns = lattice(extent)
    n_col, n_types = len(columns), len(specs.cell_types)
    stride = specs.strides[:, None, :]  # (types, 1, 2)
    present = np.where(stride > 0, columns % np.maximum(stride, 1) == 0, columns == 0).all(axis=2)
    cell_type, column = (a.astype(np.int32) for a in np.nonzero(present))

    # node[type, column]; the extra column n_col is "outside the lattice".
    node = np.full((n_types, n_col + 1), -1, np.int32)
    node[cell_type, column] = np.arange(len(cell_type), dtype=np.int32)
    # Padded on every side by the longest offset, so that no shifted index wraps.
    reach = int(np.abs(specs.keys[:, 2:]).max(initial=0))
    pad, side = extent + reach, 2 * (extent + reach) + 1
    grid = np.full((side, side), n_col, np.int32)
    grid[columns[:, 0] + pad, columns[:, 1] + pad] = np.arange(n_col, dtype=np.int32)

    source, target, du, dv = specs.keys.T
    shifted = grid[columns[:, 0] + du[:, None] + pad, columns[:, 1] + dv[:, None] + pad]  # (keys, n_col)
    senders = node[source[:, None], np.arange(n_col)]
    receivers = node[target[:, None], shifted]
    key, at = np.nonzero((senders >= 0) & (receivers >= 0))
    senders, receivers = senders[key, at], receivers[key, at]
    order = np.argsort(receivers.astype(np.int64) * len(cell_type) + senders, kind="stable")
    senders, receivers, key = senders[order], receivers[order], key[order].astype(np.int32)

    edge_pair = specs.key_pair[key]
    receives = np.isin(cell_type, [specs.cell_types.index(name) for name in specs.input_types])
    inputs = np.flatnonzero(receives).astype(np.int32)
    arrays = dict(
        columns=columns,
        cell_type=cell_type,
        column=column,
        u=columns[column, 0],
        v=columns[column, 1],
        senders=senders,
        receivers=receivers,
        edge_pair=edge_pair,
        offset_key=key,
        sign=specs.pair_sign[edge_pair],
        n_syn=specs.key_n_syn[key],
        pairs=specs.pairs,
        pair_sign=specs.pair_sign,
        keys=specs.keys,
        key_pair=specs.key_pair,
        key_n_syn=specs.key_n_syn,
        inputs=inputs,
        input_column=column[inputs],
    )
    for array in arrays.values():
        array.setflags(write=False)
    return Connectome(
        extent=extent,
        cell_types=specs.cell_types,
        input_types=specs.input_types,
        output_types=specs.output_types,
        **arrays,
    )


@lru_cache(maxsize=4)
def _packaged_connectome(extent: int) -> Connectome:
    return _assemble(packaged_specs(), extent)


def build_connectome(extent: int = 8, path: str | Path | None = None) -> Connectome:
    """The network on a hexagonal lattice of 1 + 3 extent (extent + 1) columns.

    Reproduces flyvis 1.2.0 with `fib25-fib19_v2.2.json` and hull filling (`n_syn_fill=1`):
    13,741 neurons and 434,112 edges at extent 8. Repeated calls return the same object.

    **Arguments:**

    - `extent`: hexagonal radius in columns, 0 to 15.
    - `path`: another connectome file of the same format; by default the packaged one, whose SHA-256 is verified.

    **Raises:** `UserError` if the extent is not an integer in 0..15, or the file is missing,
    changed or not a connectome.
    """
    if isinstance(extent, bool) or not isinstance(extent, Integral) or not 0 <= extent <= MAX_EXTENT:
        raise UserError(f"extent must be an integer from 0 to {MAX_EXTENT}, got {extent!r}")
    if path is None:
        return _packaged_connectome(int(extent))
    return _assemble(read_specs(Path(path), None), int(extent))

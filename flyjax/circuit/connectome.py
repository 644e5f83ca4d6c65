"""The fly's visual system as a graph: neurons on a hexagonal lattice, and edges.

The connectome file of flyvis (Lappalainen et al. 2024, Nature) lists per pair of cell types with how many synapses a
neuron contacts its neighbours at each hexagonal offset. These stencils are repeated over a lattice of columns; edges
that would leave it are dropped.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from flyjax.circuit.hexgrid import lattice
from flyjax.utils.errors import UserError, reading

CONNECTOME_FILE = Path(__file__).parent / "data" / "fib25-fib19_v2.2.json"
CONNECTOME_SHA256 = "bfbb0766251ff09e22723d0ebbf7b14793e70b3ae8ad0eea64eac9d28223351a"


_MAX_OFFSET = 1_000  # columns; the largest lattice has a diameter of 31
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class ConnectomeSpecs:
    """The tables of a connectome file, valid at any extent; fields as in `Connectome`."""

    cell_types: tuple[str, ...]
    strides: Int32[np.ndarray, "n_types 2"]  #: 0 means a single neuron in column (0, 0)
    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    pairs: Int32[np.ndarray, "P 2"]
    pair_sign: Float32[np.ndarray, " P"]
    keys: Int32[np.ndarray, "K 4"]
    key_pair: Int32[np.ndarray, " K"]
    key_n_syn: Float32[np.ndarray, " K"]


def _convex_hull(points: np.ndarray) -> list[tuple[int, int]]:
    """Counter-clockwise hull without collinear vertices (Andrew's monotone chain)."""
    ordered = sorted({(int(x), int(y)) for x, y in points})

    def chain(sequence):
        hull: list[tuple[int, int]] = []
        for x, y in sequence:
            while len(hull) >= 2:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    return chain(ordered) + chain(reversed(ordered))


def fill_hull(offsets: Int32[np.ndarray, "n 2"]) -> Int32[np.ndarray, "m 2"]:
    """Lattice points inside the convex hull of the listed offsets (du, dv) that are not listed, du-major.

    Which points on the hull's border count follows the even-odd crossing rule that flyvis uses; another rule would
    give other edges.
    """
    hull = _convex_hull(offsets)
    low, high = offsets.min(axis=0), offsets.max(axis=0)
    x, y = (a.ravel() for a in np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high)), indexing="ij"))
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(hull, hull[1:] + hull[:1]):
        above0, above1 = y0 >= y, y1 >= y
        crosses = ((y1 - y) * (x0 - x1) >= (x1 - x) * (y0 - y1)) == above1
        inside ^= (above0 != above1) & crosses
    listed = {(int(a), int(b)) for a, b in offsets}
    unlisted = [p for p in zip(x[inside].tolist(), y[inside].tolist()) if p not in listed]
    return np.array(unlisted, np.int32).reshape(-1, 2)


def _stride(name: str, pattern) -> tuple[int, int]:
    match pattern:
        case ["stride", [int(su), int(sv)]] if su > 0 and sv > 0:
            return su, sv
        case ["tile", int(n)] if n > 0:
            return n, n
        case "single" | ["single"] | ["single", _]:
            return 0, 0
    raise ValueError(f"{name} has the pattern {pattern!r}; known are stride, tile and single")


def _parse(data: dict) -> ConnectomeSpecs:
    names = tuple(node["name"] for node in data["nodes"])
    index = {name: k for k, name in enumerate(names)}
    strides = np.array([_stride(node["name"], node["pattern"]) for node in data["nodes"]], np.int32)
    pairs, pair_sign, keys, key_n_syn = [], [], [], []
    for spec in data["edges"]:
        pair = index[spec["src"]], index[spec["tar"]]
        listed = np.array([offset for offset, _ in spec["offsets"]], np.int32).reshape(-1, 2)
        if np.abs(listed).max(initial=0) > _MAX_OFFSET:
            raise ValueError(f"an offset of more than {_MAX_OFFSET} columns")
        filled = fill_hull(listed) if len(listed) >= 3 else np.zeros((0, 2), np.int32)
        offsets = np.concatenate([listed, filled])
        counts = np.array([n for _, n in spec["offsets"]] + [1] * len(filled), np.float32)
        # An offset between two strided types is hit only where the common divisor of the strides divides it.
        common = np.gcd(strides[pair[0]], strides[pair[1]])
        possible = np.where(common == 0, offsets == 0, offsets % np.maximum(common, 1) == 0).all(axis=1)
        if possible.any():
            pairs.append(pair)
            pair_sign.append(spec["alpha"])
            keys += [(len(pairs) - 1, *pair, *offset) for offset in offsets[possible].tolist()]
            key_n_syn += counts[possible].tolist()
    # A file of some of the cell types may still list the others.
    inputs, outputs = (tuple(n for n in data[key] if n in index) for key in ("input_units", "output_units"))
    table = np.array(keys, np.int32).reshape(-1, 5)
    if not all(isinstance(name, str) for name in names) or len(index) != len(names):
        raise ValueError("names of cell types are not unique texts")
    if not keys or not inputs:
        raise ValueError("it has no edges, or none of input_units is one of its cell types")
    if not np.isfinite(key_n_syn).all() or min(key_n_syn) < 0 or not set(pair_sign) <= {-1, 1}:
        raise ValueError("numbers of synapses must be finite and at least 0, alpha -1 or 1")
    if len(set(pairs)) != len(pairs):
        raise ValueError("a pair of cell types is listed twice")
    return ConnectomeSpecs(
        cell_types=names,
        strides=strides,
        input_types=inputs,
        output_types=outputs,
        pairs=np.array(pairs, np.int32),
        pair_sign=np.array(pair_sign, np.float32),
        keys=table[:, 1:],
        key_pair=table[:, 0],
        key_n_syn=np.array(key_n_syn, np.float32),
    )


def read_specs(path: Path, sha256: str | None = None) -> ConnectomeSpecs:
    """Read a connectome file and verify its checksum, where one is given.

    **Raises:** `UserError` if it is missing, changed or not a connectome.
    """
    if not path.is_file():
        remedy = "reinstall flyjax or take it from the flyvis 1.2.0 wheel" if sha256 else "give another path"
        raise UserError(f"no connectome file {path}: {remedy}")
    with reading(path, "not a flyvis connectome file; give another one"):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        text = path.read_bytes()
        if sha256 and (found := hashlib.sha256(text).hexdigest()) != sha256:
            raise UserError(
                f"{path} was changed (SHA-256 {found[:12]}…, expected {sha256[:12]}…): restore it (git checkout) or "
                "take it from the flyvis 1.2.0 wheel"
            )
        return _parse(json.loads(text))


@dataclass(frozen=True, eq=False)
class Connectome:
    """A network of identified neurons. Arrays are read-only; equality is that of the content.

    In the fly neurons are ordered by type (file order), inside a type by column (u, then v). Edges are
    sorted by (receiver, sender) and their node pairs are unique. Type pairs and offset keys
    are the same at every extent; which of them occur among the edges depends on it.

    A circuit from tables (`flyjax.circuit.tables`) keeps the order of its neurons. Its columns are those of the eye
    that it looks through; `column` is -1 for a neuron without a place in it, and every edge is a key of its own.
    """

    extent: int
    cell_types: tuple[str, ...]  #: names of the types, 65 in the fly
    input_types: tuple[str, ...]  #: types that receive luminance, R1..R8 in the fly
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
    ids: tuple[str, ...] = ()  #: of the neurons, in a circuit from tables

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
    def is_lattice(self) -> bool:
        """Whether it is the fly's, whose edges repeat from column to column, and not a circuit from tables."""
        return not self.ids

    @property
    def has_columns(self) -> bool:
        """Whether every neuron has a column and shares it with no other of its type, so that a type is a map."""
        places = self.cell_type.astype(np.int64) * self.n_columns + self.column
        return bool((self.column >= 0).all()) and len(np.unique(places)) == self.n_neurons

    @cached_property
    def central(self) -> Int32[np.ndarray, " n_types"]:
        """The neuron of each type in column (0, 0), or the one nearest to it; without places the first of the type."""
        distance = np.maximum.reduce([np.abs(self.u), np.abs(self.v), np.abs(self.u + self.v)])
        order = np.lexsort((distance, self.column < 0, self.cell_type))
        return order[np.unique(self.cell_type[order], return_index=True)[1]].astype(np.int32)

    @property
    def node_pairs(self) -> Int64[np.ndarray, " E"]:
        """sender * n_neurons + receiver of each edge: one number per pair of neurons."""
        return self.senders.astype(np.int64) * self.n_neurons + self.receivers

    def __repr__(self) -> str:
        return f"Connectome(extent={self.extent}, {self.n_neurons:,} neurons, {self.n_edges:,} edges)"


def assemble(specs: ConnectomeSpecs, extent: int) -> Connectome:
    """The tables of a connectome file on the lattice of an extent."""
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

"""A connectome of one's own from two tables, and parameters from tables or arrays.

A folder holds `neurons` and `edges` (or `connections`, as Codex names its export of FlyWire) as .csv, .csv.gz or
.parquet. Columns, with the names that Codex gives them in brackets; others are ignored:

    neurons   id (root_id), type (primary_type); input, u and v or x and y where there are any
    edges     pre (pre_root_id), post (post_root_id), count (syn_count), sign or nt_type; rows that differ in neuropil
              are added up

**How a stimulus reaches the neurons.** Light falls on the hexagonal eye of `extent` rings, whatever the circuit.
`input` is empty or 0 for a neuron that sees none of it. A neuron with a position (u, v in columns of the eye, or x to
the right and y down in widths of a column) and an input above 0 sees the nearest column; without a position, input k
sees column k, counted from 1 at the centre outwards. Neurons with the same number see the same.
"""

import csv
import gzip
import hashlib
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int32
from scipy.spatial import cKDTree

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.hexgrid import lattice, positions
from flyjax.circuit.parameters import Parameters
from flyjax.utils.errors import UserError, nearest, reading

#: Other names of columns, those of Codex and of CAVE.
NAMES = {
    "id": ("root_id", "pt_root_id"),
    "type": ("primary_type", "cell_type"),
    "pre": ("pre_root_id", "pre_pt_root_id"),
    "post": ("post_root_id", "post_pt_root_id"),
    "count": ("syn_count", "n_syn"),
}
#: Sign of a synapse by its neurotransmitter. Glutamate inhibits in the fly's visual system; modulators count as
#: excitatory, for want of better.
NT_SIGNS = {"ACH": 1, "GABA": -1, "GLUT": -1, "DA": 1, "SER": 1, "OCT": 1}
SUFFIXES = (".csv", ".csv.gz", ".parquet")


class Table:
    """The columns of a file, as texts or as numbers.

    **Raises:** `UserError` if it cannot be read, is ragged, or has no rows.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading(path, "give a .csv, .csv.gz or .parquet file with a row of names"):
            self.columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
        if not self.columns or not len(next(iter(self.columns.values()))):
            raise UserError(f"{path} has no rows: give one per {'neuron' if 'neurons' in path.name else 'edge'}")

    def name_of(self, column: str) -> str | None:
        """The name that a column has in this file."""
        return next((name for name in (column, *NAMES.get(column, ())) if name in self.columns), None)

    def require(self, column: str) -> np.ndarray:
        """A column. **Raises:** `UserError` where there is none."""
        if (name := self.name_of(column)) is None:
            raise UserError(f"{self.path} lacks the column {column!r}.{nearest(column, self.columns)}")
        return self.columns[name]

    def texts(self, column: str) -> list[str]:
        """A column that is nowhere empty."""
        values = [str(value).strip() for value in self.require(column).tolist()]
        empty = [k for k, value in enumerate(values) if value in ("", "nan", "None")]
        if empty:
            raise self.refuse(empty[0], f"{column} is empty: fill it in or remove the row")
        return values

    def numbers(self, column: str, empty: float | None = None) -> Float64[np.ndarray, " rows"]:
        """A column of finite numbers; `empty` stands for empty ones, where they are allowed."""
        values = self.require(column)
        if values.dtype.kind not in "fiub":
            texts = [str(value).strip() for value in values.tolist()]
            values = np.array([np.nan if t in ("", "None") and empty is not None else _number(t) for t in texts])
            missing = np.array([t in ("", "None") for t in texts])
        else:
            missing = np.isnan(values.astype(np.float64))
        values = values.astype(np.float64)
        if empty is not None:
            values = np.where(missing, empty, values)
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            raise self.refuse(bad[0], f"{column} is no finite number: correct it or remove the row")
        return values

    def refuse(self, row: int, problem: str) -> UserError:
        """The error of a row; the row of names is line 1."""
        return UserError(f"{self.path}, line {row + 2}: {problem}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _csv(path: Path) -> dict[str, np.ndarray]:
    opened: Any = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else None
    with opened or open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        return {}
    ragged = next((k for k, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if ragged is not None:
        raise UserError(f"{path}, line {ragged + 1}: {len(rows[ragged])} values for {len(rows[0])} columns")
    columns = zip(*rows[1:]) if len(rows) > 1 else [()] * len(rows[0])
    return {name.strip(): np.array(values, object) for name, values in zip(rows[0], columns)}


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install pyarrow, or save the table as .csv") from None
    table = pyarrow.parquet.read_table(path)
    # Identifiers of FlyWire need all 64 bits: to_numpy would make floats of integers with gaps.
    return {name: np.array(table[name].to_pylist(), _dtype(table[name])) for name in table.column_names}


def _dtype(column: Any) -> Any:
    import pyarrow.types

    return np.float64 if pyarrow.types.is_floating(column.type) else object


def find_table(folder: Path, *names: str) -> Path:
    """The one file of a folder with one of these names. **Raises:** `UserError` where there is none, or another."""
    found = [path for name in names for s in SUFFIXES if (path := folder / f"{name}{s}").is_file()]
    if len(found) != 1:
        has = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder} needs one table {' or '.join(names)} ({', '.join(SUFFIXES)}), it has {has}")
    return found[0]


def _ids(table: Table) -> dict[str, int]:
    """Row of each neuron by its id."""
    index: dict[str, int] = {}
    for row, name in enumerate(table.texts("id")):
        if index.setdefault(name, row) != row:
            raise table.refuse(row, f"the id {name} is listed twice: remove one of the rows")
    return index


def _ends(table: Table, index: dict[str, int], column: str) -> Int32[np.ndarray, " rows"]:
    """The neurons that a column names."""
    names = table.texts(column)
    ends = np.array([index.get(name, -1) for name in names], np.int32)
    if (unknown := np.flatnonzero(ends < 0)).size:
        row = int(unknown[0])
        raise table.refuse(row, f"{column} {names[row]} is no id of the neurons: add it there or remove the edge")
    return ends


def _signs(table: Table) -> Float64[np.ndarray, " rows"]:
    """+1 or -1 per row, from `sign` or else from `nt_type`."""
    if table.name_of("sign") is None and table.name_of("nt_type"):
        names = [name.upper() for name in table.texts("nt_type")]
        signs = np.array([NT_SIGNS.get(name, 0) for name in names], np.float64)
        remedy = f"known are {', '.join(NT_SIGNS)}; or give a column sign"
    else:
        signs, remedy = table.numbers("sign"), "it has to be 1 or -1"
        names = [f"{sign:g}" for sign in signs]
    if (bad := np.flatnonzero(np.abs(signs) != 1)).size:
        row = int(bad[0])
        raise table.refuse(row, f"{names[row]} is no sign of a synapse: {remedy}")
    return signs


def _columns(table: Table, extent: int) -> tuple[np.ndarray, np.ndarray]:
    """(input neurons and their columns of the eye, the column nearest to each neuron or -1)."""
    eye, n = lattice(extent), len(next(iter(table.columns.values())))
    nearest_column = np.full(n, -1, np.int32)
    place = ("u", "v") if table.name_of("u") else ("x", "y") if table.name_of("x") else None
    if place:
        first, second = (table.numbers(name, empty=1e9) for name in place)
        known = np.maximum(np.abs(first), np.abs(second)) < 1e9
        x, y = (second, first + second / 2) if place == ("u", "v") else (first, second)
        tree = cKDTree(np.stack(positions(eye), axis=1))
        nearest_column[known] = tree.query(np.stack([x, y], axis=1)[known])[1]
    channel = table.numbers("input", empty=0)
    if (bad := np.flatnonzero((channel < 0) | (channel != np.rint(channel)))).size:
        raise table.refuse(int(bad[0]), "input is the number of a column of the eye from 1, or empty")
    inputs = np.flatnonzero(channel > 0).astype(np.int32)
    if not len(inputs):
        raise UserError(f"{table.path}: no neuron has an input: number those that see the stimulus from 1")
    by_distance = np.argsort(np.maximum.reduce([*np.abs(eye.T), np.abs(eye.sum(axis=1))]), kind="stable")
    number = np.where(nearest_column[inputs] >= 0, 1, channel[inputs]).astype(np.int64)
    if number.max() > len(eye):
        row = int(inputs[np.argmax(number)])
        raise table.refuse(
            row, f"input {number.max()} is beyond the {len(eye)} columns of the eye: raise simulation.extent ({extent})"
        )
    seen = np.where(nearest_column[inputs] >= 0, nearest_column[inputs], by_distance[number - 1]).astype(np.int32)
    nearest_column[inputs] = seen
    return np.stack([inputs, seen]), nearest_column


def read_tables(folder: Path, extent: int) -> Connectome:
    """A connectome from the tables of a folder; neurons keep their order, edges are sorted by (receiver, sender).

    **Raises:** `UserError`, one line with the file and the line in it, for a missing column, an id that is unknown or
    listed twice, a pair of neurons that is listed twice, a sign other than 1 and -1, a count that is no positive
    number, and where no neuron has an input. An edge from a neuron to itself is one like any other.
    """
    neurons, edges = Table(find_table(folder, "neurons")), Table(find_table(folder, "edges", "connections"))
    index = _ids(neurons)
    names = neurons.texts("type")
    cell_types = tuple(dict.fromkeys(names))
    type_index = {name: k for k, name in enumerate(cell_types)}
    cell_type = np.array([type_index[name] for name in names], np.int32)

    senders, receivers = (_ends(edges, index, column) for column in ("pre", "post"))
    count, sign = edges.numbers("count"), _signs(edges)
    if (bad := np.flatnonzero(count <= 0)).size:
        raise edges.refuse(int(bad[0]), f"count {count[bad[0]]:g} is not positive: correct it or remove the edge")
    pair_of_row = receivers.astype(np.int64) * len(index) + senders
    pair, first, row_pair = np.unique(pair_of_row, return_index=True, return_inverse=True)
    if len(pair) < len(pair_of_row) and "neuropil" not in edges.columns:
        row = int(np.setdiff1d(np.arange(len(pair_of_row)), first)[0])
        pre, post = edges.texts("pre")[row], edges.texts("post")[row]
        raise edges.refuse(row, f"the edge {pre} to {post} is listed twice: add up its counts")
    n_syn = np.bincount(row_pair, count)
    sign = np.where(np.bincount(row_pair, sign * count) < 0, -1.0, 1.0)
    senders, receivers = senders[first], receivers[first]

    # A pair of types whose edges have both signs is two pairs.
    ends = np.stack([cell_type[senders], cell_type[receivers]], axis=1)
    pairs, edge_pair = np.unique(np.concatenate([ends, sign[:, None]], axis=1), axis=0, return_inverse=True)
    edge_pair = edge_pair.reshape(-1)
    (inputs, input_column), column = _columns(neurons, extent)
    eye = lattice(extent)
    placed = column >= 0
    arrays: dict[str, Any] = {
        "columns": eye,
        "cell_type": cell_type,
        "column": column,
        "u": np.where(placed, eye[column, 0], 0),
        "v": np.where(placed, eye[column, 1], 0),
        "senders": senders,
        "receivers": receivers,
        "edge_pair": edge_pair,
        # Every edge has a number of synapses of its own: no two share a key.
        "offset_key": np.arange(len(senders)),
        "sign": sign,
        "n_syn": n_syn,
        "pairs": pairs[:, :2],
        "pair_sign": pairs[:, 2],
        "keys": np.concatenate([ends, np.zeros_like(ends)], axis=1),
        "key_pair": edge_pair,
        "key_n_syn": n_syn,
        "inputs": inputs,
        "input_column": input_column,
    }
    floats = ("sign", "n_syn", "pair_sign", "key_n_syn")
    arrays = {name: array.astype(np.float32 if name in floats else np.int32) for name, array in arrays.items()}
    for array in arrays.values():
        array.setflags(write=False)
    input_types = tuple(cell_types[k] for k in np.unique(cell_type[inputs]))
    return Connectome(extent, cell_types, input_types, (), ids=tuple(index), **arrays)


def content(path: Path) -> str:
    """SHA-256 of a file, or of the tables in a folder."""
    digest = hashlib.sha256()
    with reading(path, "give a file, or a folder with tables of neurons and edges"):
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
        for file in files:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def cached_tables(folder: Path, extent: int, digest: str) -> Connectome:
    """`read_tables`, once per content."""
    return read_tables(folder, extent)


def is_table(path: Path) -> bool:
    """Whether a path is a folder of tables, or an .npz with weight, tau and v_rest."""
    if path.is_dir():
        return any(p.name.endswith(SUFFIXES) for p in path.iterdir())
    if path.suffix != ".npz" or not path.is_file():
        return False
    with reading(path), zipfile.ZipFile(path) as archive:
        return "v_rest.npy" in archive.namelist()


def load_parameters(c: Connectome, path: str | Path) -> Parameters:
    """Parameters of one's own: weight (signed), tau (s) and v_rest.

    **Arguments:**

    - `path`: an .npz with weight (E,), tau (N,) and v_rest (N,) in the connectome's order; or, for a connectome from
        tables, a folder (the same or another one) whose table of neurons has the columns id, tau and v_rest, and whose
        table of edges has pre, post and weight.

    **Raises:** `UserError` for a missing name, a wrong shape, a neuron or edge without values, values that are not
    finite, and time constants that are not positive.
    """
    path = Path(path)
    sizes = {"weight": c.n_edges, "tau": c.n_neurons, "v_rest": c.n_neurons}
    if path.is_dir():
        values = _from_tables(c, path)
    else:
        with reading(path, "give an .npz with weight, tau and v_rest"), np.load(path, allow_pickle=False) as stored:
            missing = [name for name in sizes if name not in stored.files]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}: it needs weight, tau and v_rest")
            values = {name: stored[name] for name in sizes}
    for name, n in sizes.items():
        if values[name].shape != (n,):
            raise UserError(f"{path}: {name} has the shape {values[name].shape}, the circuit needs ({n},)")
        if not np.isfinite(values[name]).all():
            raise UserError(f"{path}: {name} contains NaN or infinite values: correct them")
    if (values["tau"] <= 0).any():
        raise UserError(f"{path}: time constants (tau) must be positive, in seconds")
    return Parameters(**{name: jnp.asarray(values[name], jnp.float32) for name in sizes})


def _from_tables(c: Connectome, folder: Path) -> dict[str, np.ndarray]:
    if not c.ids:
        raise UserError(f"{folder}: a folder of parameters goes with simulation.connectome; give an .npz for the fly")
    neurons, edges = Table(find_table(folder, "neurons")), Table(find_table(folder, "edges", "connections"))
    index = {name: k for k, name in enumerate(c.ids)}
    rows, ends = _ends(neurons, index, "id"), [_ends(edges, index, name) for name in ("pre", "post")]
    values = {name: np.full(c.n_neurons, np.nan) for name in ("tau", "v_rest")}
    for name, array in values.items():
        array[rows] = neurons.numbers(name)
    order = np.argsort(c.node_pairs)
    pair = ends[0].astype(np.int64) * c.n_neurons + ends[1]
    at = np.minimum(np.searchsorted(c.node_pairs[order], pair), c.n_edges - 1)
    if (unknown := np.flatnonzero(c.node_pairs[order][at] != pair)).size:
        raise edges.refuse(int(unknown[0]), "the connectome has no such edge: remove it or add it there")
    weight = np.full(c.n_edges, np.nan)
    weight[order[at]] = edges.numbers("weight")
    if np.isnan(weight).any():
        k = int(np.argmax(np.isnan(weight)))
        raise UserError(f"{folder}: the edge {c.ids[c.senders[k]]} to {c.ids[c.receivers[k]]} has no weight: add it")
    if np.isnan(values["tau"]).any():
        raise UserError(f"{folder}: the neuron {c.ids[int(np.argmax(np.isnan(values['tau'])))]} has no tau: add it")
    return values | {"weight": weight}

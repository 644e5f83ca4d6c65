"""Parameters of the circuit: weight per edge, time constant and resting potential per neuron; flyvis' files."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.torch_checkpoint import read_torch_checkpoint, unpacked_sizes
from flyjax.utils.errors import UserError, reading


class Parameters(NamedTuple):
    """Parameters of the ODE, NumPy or JAX arrays."""

    weight: Float32[Any, " E"]  #: signed, per edge in the connectome's order
    tau: Float32[Any, " N"]  #: s
    v_rest: Float32[Any, " N"]


class TypeParameters(NamedTuple):
    """Parameters as flyvis shares them per cell type, type pair and offset; float32, in the connectome's order."""

    bias: Float32[Any, " n_types"]  #: resting potential
    tau: Float32[Any, " n_types"]  #: s
    syn_strength: Float32[Any, " P"]  #: per row of `Connectome.pairs`
    n_syn: Float32[Any, " K"] | None = None  #: per row of `Connectome.keys`; None: the connectome's own


def expand(
    c: Connectome,
    bias: Float32[Any, " n_types"],
    tau: Float32[Any, " n_types"],
    syn_strength: Float32[Any, " P"],
    n_syn: Float32[Any, " K"] | None = None,
) -> Parameters:
    """Parameters per neuron and edge from those shared per type, type pair and offset. Differentiable.

    w = sign * n_syn * syn_strength in that order of float32 products, as flyvis multiplies.

    **Arguments:**

    - `bias`: resting potential per cell type.
    - `tau`: time constant per cell type, s.
    - `syn_strength`: per row of `c.pairs`.
    - `n_syn`: synapse count per row of `c.keys`; by default the connectome's own counts.

    **Raises:** `UserError` for a wrong shape.
    """

    def checked(name, array, n):
        array = jnp.asarray(array, jnp.float32)
        if array.shape != (n,):
            raise UserError(f"{name} has the shape {array.shape}, expected ({n},)")
        return array

    bias, tau = checked("bias", bias, c.n_types), checked("tau", tau, c.n_types)
    syn_strength = checked("syn_strength", syn_strength, len(c.pairs))
    counts = c.key_n_syn if n_syn is None else checked("n_syn", n_syn, len(c.keys))
    return _expand(c.pair_sign[c.key_pair], counts, c.key_pair, c.offset_key, c.cell_type, syn_strength, tau, bias)


@jax.jit
def _expand(sign, counts, key_pair, offset_key, cell_type, syn_strength, tau, bias) -> Parameters:
    # Multiplied per key first: 2,355 products, then one gather.
    per_key = (sign * counts) * syn_strength[key_pair]
    return Parameters(weight=per_key[offset_key], tau=tau[cell_type], v_rest=bias[cell_type])


def _rows(wanted, found, path, kind: str) -> np.ndarray:
    """Row in the file of each wanted key, -1 where the file has none."""
    index = {key: k for k, key in enumerate(found)}
    if len(index) != len(found):
        raise UserError(f"{path}: {kind} are listed twice")
    return np.array([index.get(key, -1) for key in wanted], np.int64)


def _take(values, rows, used, path, kind: str) -> np.ndarray:
    """Values in the connectome's order; a key that the file lacks must not occur in the circuit."""
    if (missing := used & (rows < 0)).any():
        raise UserError(f"{path} lacks {missing.sum()} {kind} of this connectome: it was made for another one")
    return np.where(rows < 0, np.float32(0), np.asarray(values, np.float32)[rows])


def _from_npz(c: Connectome, path: Path) -> TypeParameters:
    with np.load(path, allow_pickle=False) as z:
        data = {key: z[key] for key in z.files}
    needed = ("cell_types", "bias", "time_const", "edge_source_type", "edge_target_type", "edge_syn_strength")
    if missing := [key for key in needed if key not in data]:
        raise UserError(f"{path} is not a flyvis parameter file: it lacks {', '.join(missing)}")
    names = [str(name) for name in data["cell_types"]]
    types = _rows(c.cell_types, names, path, "cell types")
    every = np.ones(c.n_types, bool)
    named = [(c.cell_types[s], c.cell_types[t]) for s, t in c.pairs]
    pairs = _rows(
        named, list(zip(data["edge_source_type"].tolist(), data["edge_target_type"].tolist())), path, "type pairs"
    )
    used = np.isin(np.arange(len(c.pairs)), c.edge_pair)
    if "edge_sign" in data:
        sign = _take(data["edge_sign"], pairs, used, path, "type pairs")
        if (sign != c.pair_sign)[used].any():
            raise UserError(f"{path}: synapse signs differ from the connectome's")
    n_syn = None
    if "offset_syn_count" in data or "offset_log_syn_count" in data:
        source, target = (np.array(names, dtype=object)[data[f"offset_{k}"]] for k in ("source", "target"))
        found = list(zip(source, target, data["offset_du"].tolist(), data["offset_dv"].tolist()))
        wanted = [(c.cell_types[s], c.cell_types[t], du, dv) for s, t, du, dv in c.keys.tolist()]
        keys = _rows(wanted, found, path, "offsets")
        # The stored count is bit-equal to flyvis' own exp; ours may differ in the last bit.
        counts = data["offset_syn_count"] if "offset_syn_count" in data else np.exp(data["offset_log_syn_count"])
        n_syn = _take(counts, keys, np.isin(np.arange(len(c.keys)), c.offset_key), path, "offsets")
    return TypeParameters(
        bias=_take(data["bias"], types, every, path, "cell types"),
        tau=_take(data["time_const"], types, every, path, "cell types"),
        syn_strength=_take(data["edge_syn_strength"], pairs, used, path, "type pairs"),
        n_syn=n_syn,
    )


def _from_torch(c: Connectome, path: Path) -> TypeParameters:
    """An official `best_chkpt`. It has no names: rows follow flyvis' order of first appearance, which is ours."""
    network = read_torch_checkpoint(path).get("network")
    sizes = {
        "nodes_bias": c.n_types,
        "nodes_time_const": c.n_types,
        "edges_sign": len(c.pairs),
        "edges_syn_count": len(c.keys),
        "edges_syn_strength": len(c.pairs),
    }
    if not isinstance(network, dict) or (missing := [key for key in sizes if key not in network]):
        lacks = "network" if not isinstance(network, dict) else ", ".join(missing)
        raise UserError(f"{path} is not a flyvis checkpoint: it lacks {lacks}")
    values = []
    for key, n in sizes.items():
        array = network[key]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != (n,):
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UserError(f"{path}: {key} is {found}, expected float32 ({n},) as in flyvis' models of extent 15")
        values.append(array)
    bias, tau, sign, log_n_syn, syn_strength = values
    if (sign != c.pair_sign).any():
        raise UserError(f"{path}: synapse signs differ from the connectome's")
    return TypeParameters(bias, tau, syn_strength, np.exp(log_n_syn))


def read_flyvis(c: Connectome, path: str | Path) -> TypeParameters:
    """Per-type parameters of a flyvis model, in the connectome's order of types, pairs and offsets.

    **Arguments:**

    - `path`: an official checkpoint (`best_chkpt`, a torch zip; or the model folder with it), or an .npz with the
        names of types, pairs and offsets beside the values.

    **Raises:** `UserError` if the file is missing, of neither kind, refused (see
    `read_torch_checkpoint`), not of this connectome, or contains values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best_chkpt"
    if not path.is_file():
        raise UserError(f"no flyvis parameters at {path}; scripts/fetch_flyvis.py gets the official checkpoints")
    with reading(path, "it is neither a flyvis checkpoint nor an .npz of flyvis parameters, or is torn"):
        with zipfile.ZipFile(path) as archive:
            is_npz = any(name.endswith(".npy") for name in unpacked_sizes(archive))
        types = (_from_npz if is_npz else _from_torch)(c, path)
    for name, array in zip(types._fields, types):
        if array is not None and not np.isfinite(array).all():
            raise UserError(f"{path}: {name} contains NaN or infinite values")
    if (types.tau <= 0).any():
        raise UserError(f"{path}: time constants must be positive")
    return types


def load_flyvis_parameters(c: Connectome, path: str | Path) -> Parameters:
    """Weights, time constants and resting potentials of a flyvis model on this circuit.

    Per-edge weights are within 2 float32 ulp of flyvis', and bit-equal where the file stores the
    synapse counts. The model may have been trained at another extent: parameters are mapped by
    type and offset.

    **Raises:** `UserError`, see `read_flyvis`.
    """
    types = read_flyvis(c, path)
    p = expand(c, types.bias, types.tau, types.syn_strength, n_syn=types.n_syn)
    if not np.isfinite(p.weight).all():
        raise UserError(f"{path}: products of synapse count and strength overflow float32")
    return p

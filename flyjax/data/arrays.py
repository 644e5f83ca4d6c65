"""A recording of one's own as arrays: what may be given, how it is checked, and the circuit that it is of.

By name, with T frames, N neurons, C channels of the stimulus and E edges; all but the first two may be left out:

    voltage      (T, N)  state before each frame; 0 is where a neuron begins to send. Any unit
    dt           ()      interval of the frames, s
    stimulus     (T, C)  what is shown during each frame; (T, N), without `input`, is one input per neuron
    input        (n,)    neurons that see the stimulus; number k sees channel k, or `input_channel`[k]
    derivative   (T, N)  dV/dt, per s; by default (voltage[t + 1] - voltage[t]) / dt, which costs the last frame
    trial        (T,)    number of the trial of each frame: no state follows from another trial's, so mark gaps too
    recorded     (N,)    false for neurons that were not recorded: they and their edges are left out
    pre, post    (E,)    neurons of each edge, from 0. Unknown edges are all pairs of up to 300 neurons
    type, id     (N,)    cell types, and names of the neurons (by default their numbers), texts or whole numbers
    weight, tau, v_rest  true values as far as they are known: per edge, per neuron in s, per neuron
"""

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.format import plural

log = logging.getLogger(__name__)
#: Neurons up to which unknown edges are all pairs: the least squares of every neuron have as many unknowns, 0.2 GB.
ALL_PAIRS_UP_TO = 300
#: A tenth of them would be 16 held-out frames.
MIN_FRAMES = 100
#: Axes of the arrays: T frames, N neurons, E edges; others are free.
SHAPES = {
    "voltage": "TN", "dt": "", "stimulus": "TC", "input": "n", "input_channel": "n", "derivative": "TN", "trial": "T",
    "recorded": "N", "pre": "E", "post": "E", "type": "N", "id": "N", "weight": "E", "tau": "N", "v_rest": "N",
}  # fmt: skip
WHOLE = ("input", "input_channel", "trial", "pre", "post")
TOGETHER = {"post": "pre", "pre": "post", "input": "stimulus", "input_channel": "input", "weight": "pre"}


def _checked(given: dict[str, Any], where: str) -> dict[str, np.ndarray]:
    """The arrays, of consistent shapes, finite where neurons were recorded."""
    for name in given:
        if name not in SHAPES:
            raise UserError(f"{where}: unknown array {name!r}.{nearest(name, SHAPES)} Known: {', '.join(SHAPES)}")
    arrays = {name: np.asarray(value) for name, value in given.items() if value is not None}
    if missing := [name for name in ("voltage", "dt") if name not in arrays]:
        raise UserError(f"{where} lacks {' and '.join(missing)}: voltage is (frames, neurons), dt in s")
    if lone := next((name for name, other in TOGETHER.items() if name in arrays and other not in arrays), None):
        raise UserError(f"{where}: {lone} needs {TOGETHER[lone]}: add it, or leave {lone} out")
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if array.ndim != len(SHAPES[name]):
            raise UserError(f"{where}: {name} has the shape {array.shape}, expected {len(SHAPES[name])} axes")
        kinds = "iub" if name in WHOLE else "b" if name == "recorded" else "iufUST" if name in ("type", "id") else "iuf"
        if array.dtype.kind not in kinds:
            raise UserError(f"{where}: {name} has the type {array.dtype}, expected {_KINDS[kinds]}")
        for axis, n in zip(SHAPES[name], array.shape, strict=True):
            if axis != "C" and sizes.setdefault(axis, n) != n:
                raise UserError(f"{where}: {name} has the shape {array.shape}, the others have {axis} = {sizes[axis]}")
    arrays.setdefault("id", np.arange(sizes["N"]))
    keep = arrays.pop("recorded", np.ones(sizes["N"], bool))
    if not keep.all():
        arrays = _without(arrays, keep)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            at = tuple(np.argwhere(~finite)[0].tolist())
            remedy = "leave those frames out and number what remains by `trial`, or mask neurons by `recorded`"
            raise UserError(
                f"{where}: {name} has {(~finite).sum()} values that are not finite, first at {at}: {remedy}"
            )
    return arrays


_KINDS = {"iub": "whole numbers", "b": "true and false", "iufUST": "texts or numbers", "iuf": "numbers"}


def _without(arrays: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of the recorded neurons, and the edges and inputs among them."""
    number, n = np.cumsum(keep) - 1, len(keep)
    if "stimulus" in arrays and "input" not in arrays and arrays["stimulus"].shape[1] == n:
        arrays["stimulus"] = arrays["stimulus"][:, keep]
    ends = [arrays[name] for name in ("pre", "post") if name in arrays]
    edges = np.all([keep[end.clip(0, n - 1)] for end in ends], axis=0) if ends else None
    inputs = keep[arrays["input"].clip(0, n - 1)] if "input" in arrays else None
    if inputs is not None:
        arrays.setdefault("input_channel", np.arange(len(inputs)))
    kept = {"N": keep, "E": edges, "n": inputs}
    out = {name: a[..., kept[SHAPES[name][-1]]] if SHAPES[name][-1:] in kept else a for name, a in arrays.items()}
    # A number that is no neuron stays out of range, and is refused as such.
    return out | {
        name: np.where((out[name] >= 0) & (out[name] < n), number[out[name].clip(0, n - 1)], n)
        for name in ("pre", "post", "input")
        if name in out
    }


def _numbers(array: np.ndarray, n: int, name: str, what: str, where: str) -> np.ndarray:
    if len(bad := np.flatnonzero((array < 0) | (array >= n))):
        raise UserError(f"{where}: {name}[{bad[0]}] = {array[bad[0]]} is none of the {n} {what}, numbered from 0")
    return array.astype(np.int32)


def _stimulus(arrays: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(stimulus per frame and channel, neurons that see it, the channel of each); a dark channel where none is."""
    n_frames, n = arrays["voltage"].shape
    if "stimulus" not in arrays:
        return np.zeros((n_frames, 1), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32)
    stimulus = arrays["stimulus"].astype(np.float32)
    channels = stimulus.shape[1]
    if "input" not in arrays:
        if channels != n:
            raise UserError(
                f"{where}: stimulus has {channels} channels for {n} neurons: name the neurons that see them (input)"
            )
        seen = np.flatnonzero(stimulus.any(axis=0)).astype(np.int32)
        return (
            (stimulus[:, seen], seen, np.arange(len(seen), dtype=np.int32))
            if len(seen)
            else _stimulus({"voltage": arrays["voltage"]}, where)
        )
    inputs = _numbers(arrays["input"], n, "input", "neurons", where)
    if len(np.unique(inputs)) < len(inputs):
        raise UserError(f"{where}: input lists a neuron twice: add up what it sees into one channel")
    channel = arrays.get("input_channel", np.arange(len(inputs)))
    order = np.argsort(inputs, kind="stable")
    return stimulus, inputs[order], _numbers(channel, channels, "input_channel", "channels", where)[order]


def _edges(arrays: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pre, post, their order in the file), sorted by (post, pre); all pairs of neurons where they are unknown."""
    n = arrays["voltage"].shape[1]
    if "pre" not in arrays:
        if n > ALL_PAIRS_UP_TO:
            raise UserError(
                f"{where} has no edges, and {n} neurons are too many to learn all pairs (at most {ALL_PAIRS_UP_TO}): "
                "give pre and post, for example of neighbours, or fewer neurons (recorded)"
            )
        post, pre = np.nonzero(~np.eye(n, dtype=bool))  # without autapses, which look like the leak
        return pre.astype(np.int32), post.astype(np.int32), np.arange(len(pre))
    pre, post = (_numbers(arrays[name], n, name, "neurons", where) for name in ("pre", "post"))
    pair = post.astype(np.int64) * n + pre
    order = np.argsort(pair, kind="stable")
    if not len(pair):
        raise UserError(f"{where} has no edge between recorded neurons: there is nothing to learn")
    if len(twice := np.flatnonzero(np.diff(pair[order]) == 0)):
        k = order[twice[0] + 1]
        raise UserError(f"{where}: the edge {pre[k]} to {post[k]} is listed twice: remove one")
    return pre[order], post[order], order


def _texts(array: np.ndarray) -> list[str]:
    return [t.decode() if isinstance(t, bytes) else str(t) for t in array.tolist()]


def _types(arrays: dict[str, np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names in the order of their first neurons, and the type of each neuron.

    Where they are unknown every neuron has a type of its own, as far as figures can show that.
    """
    names = _texts(arrays.get("type", arrays["id"]))
    if "type" not in arrays and len(names) > ALL_PAIRS_UP_TO:
        names = ["neuron"] * len(names)
    index = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return tuple(index), np.array([index[name] for name in names], np.int32)


def _connectome(arrays: dict[str, np.ndarray], channels: int, inputs, channel, pre, post, where: str) -> Connectome:
    """A circuit without a lattice: channels stand for columns, and a neuron's place is its number within its type."""
    names, cell_type = _types(arrays)
    n, edges, none = len(cell_type), len(pre), np.zeros((0, 2), np.int32)
    place = np.zeros(n, np.int32)
    for kind in range(len(names)):
        place[cell_type == kind] = np.arange(np.sum(cell_type == kind))
    tables = {
        "columns": np.stack([np.arange(channels), np.zeros(channels)], axis=1).astype(np.int32),
        "cell_type": cell_type, "column": np.full(n, -1, np.int32), "u": place, "v": np.zeros(n, np.int32),
        "senders": pre, "receivers": post,
        "edge_pair": np.full(edges, -1, np.int32), "offset_key": np.full(edges, -1, np.int32),
        "sign": np.zeros(edges, np.float32), "n_syn": np.ones(edges, np.float32),
        "pairs": none, "pair_sign": np.zeros(0, np.float32), "keys": np.zeros((0, 4), np.int32),
        "key_pair": np.zeros(0, np.int32), "key_n_syn": np.zeros(0, np.float32),
        "inputs": inputs, "input_column": channel,
    }  # fmt: skip
    for table in tables.values():
        table.setflags(write=False)
    ids, seeing = tuple(_texts(arrays["id"])), np.unique(cell_type[inputs])
    if len(set(ids)) < n:
        raise UserError(f"{where}: id names two neurons {max(ids, key=ids.count)}: give each a name of its own")
    return Connectome(0, names, tuple(names[k] for k in seeing), (), ids=ids, **tables)


def fields_from_arrays(given: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of the `Recording` that arrays by name make.

    True values that are not known are NaN.

    **Raises:** `UserError`, one line with `where` and the array, for what is unknown, missing, of another shape or
    type, not finite, out of range, listed twice or too short.
    """
    arrays = _checked(given, where)
    n_frames, n = arrays["voltage"].shape
    dt = float(arrays["dt"])
    if not 0 < dt <= 60:
        raise UserError(f"{where}: dt = {dt:g} is no interval of frames: give it in s, above 0 and at most 60")
    if not MIN_FRAMES <= n_frames <= 1_000_000:
        raise UserError(f"{where} has {n_frames:,} frames: a recording has {MIN_FRAMES} to 1,000,000")
    if n < 2:
        raise UserError(f"{where} has {plural(n, 'recorded neuron')}: a circuit has at least 2")
    if "tau" in arrays and not (arrays["tau"] > 0).all():
        raise UserError(f"{where}: time constants (tau) must be positive, in s")
    voltage = arrays["voltage"].astype(np.float32)
    if len(still := np.flatnonzero(np.ptp(voltage, axis=0) == 0)):
        log.warning(
            "%s: %d of %d neurons are constant, first %d: nothing is learned of them", where, len(still), n, still[0]
        )
    stimulus, inputs, channel = _stimulus(arrays, where)
    pre, post, order = _edges(arrays, where)
    connectome = _connectome(arrays, stimulus.shape[1], inputs, channel, pre, post, where)
    ends = np.append(np.flatnonzero(np.diff(arrays.get("trial", np.zeros(n_frames)))) + 1, n_frames)
    # Without a next state in its trial a frame has no difference; a given derivative needs none.
    used = np.ones(n_frames, bool)
    if "derivative" in arrays:
        derivative = arrays["derivative"].astype(np.float32)
        final = voltage[-1] + np.float32(dt) * derivative[-1]
    else:
        used[ends - 1] = False
        derivative, final = np.diff(voltage, axis=0, append=np.float32(0)) / np.float32(dt), voltage[-1]
    lengths = np.diff(np.concatenate([[0], np.cumsum(used)[ends - 1]])).tolist()
    if min(lengths) < 2:
        raise UserError(f"{where}: trial {lengths.index(min(lengths)) + 1} has fewer than 3 frames: leave it out")
    true = {
        name: jnp.asarray(arrays[name].astype(np.float32)[order if name == "weight" else slice(None)])
        if name in arrays
        else jnp.full(size, jnp.nan, jnp.float32)
        for name, size in (("weight", len(pre)), ("tau", n), ("v_rest", n))
    }
    n_used = int(used.sum())
    keep = slice(None) if used.all() else used
    return {
        "voltage": voltage[keep],
        "luminance": stimulus[keep],
        "final": final,
        "connectome": connectome,
        "parameters": Parameters(**true),
        "simulation": Simulation(recording=where, visual_input_type="recording", delta_t=dt, n_frames=n_used),
        "noise_model_level": 0.0,
        "split": "train",
        "seed": 0,
        "visual_input_type": "recording",
        "lengths": lengths,
        "stored_derivative": derivative[keep],
    }

"""The connectome file of flyvis (Lappalainen et al. 2024, Nature): cell types and convolutional stencils.

Per pair of cell types the file lists with how many synapses a neuron contacts its neighbours at each hexagonal offset.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

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
    raise UserError(f"connectome file: {name} has the pattern {pattern!r}; known are stride, tile and single")


def _parse(path: Path, text: bytes) -> ConnectomeSpecs:
    try:
        data = json.loads(text)
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
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a flyvis connectome file: {type(error).__name__}: {error}") from None
    if len(set(pairs)) != len(pairs):
        raise UserError(f"{path}: a pair of cell types is listed twice")
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


def read_specs(path: Path, sha256: str | None) -> ConnectomeSpecs:
    """Read a connectome file and verify its checksum, where one is given.

    **Raises:** `UserError` if it is missing, changed or not a connectome.
    """
    if not path.is_file():
        remedy = "reinstall flyjax or take it from the flyvis 1.2.0 wheel" if sha256 else "give another path"
        raise UserError(f"no connectome file {path}: {remedy}")
    with reading(path, "give another path"):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        text = path.read_bytes()
    if sha256 and (found := hashlib.sha256(text).hexdigest()) != sha256:
        raise UserError(
            f"{path} was changed (SHA-256 {found[:12]}…, expected {sha256[:12]}…): restore it (git checkout) or "
            "take it from the flyvis 1.2.0 wheel"
        )
    return _parse(path, text)


@lru_cache(maxsize=1)
def packaged_specs() -> ConnectomeSpecs:
    """The connectome that comes with flyjax."""
    return read_specs(CONNECTOME_FILE, CONNECTOME_SHA256)

"""The hexagonal lattice of columns: axial coordinates (u, v), positions and symmetries.

Convention (flyvis, Lappalainen et al. 2024): column (u, v) lies at x = v, y = u + v/2 in units of columns, with y
growing downwards as rows of an image do.
"""

import numpy as np
from jaxtyping import Float64, Int, Int32

from flyjax.utils.errors import UserError


def lattice(extent: int) -> Int32[np.ndarray, "n_col 2"]:
    """Columns (u, v) with max(|u|, |v|, |u + v|) <= extent; u ascending, then v."""
    span = np.arange(-extent, extent + 1, dtype=np.int32)
    u, v = (a.ravel() for a in np.meshgrid(span, span, indexing="ij"))
    inside = np.abs(u + v) <= extent
    return np.stack([u[inside], v[inside]], axis=1)


def positions(
    columns: Int[np.ndarray, "n_col 2"],
) -> tuple[Float64[np.ndarray, " n_col"], Float64[np.ndarray, " n_col"]]:
    """x and y of columns (u, v), in columns, y growing downwards."""
    u, v = np.asarray(columns, np.float64).T
    return v, u + v / 2


#: A turn by 60 degrees, and mirror images at the axes 1, 2 and 3 (0: none), as matrices on (u, v).
_TURN = np.array([[0, -1], [1, 1]])
_FLIPS = np.array([[[1, 0], [0, 1]], [[1, 1], [0, -1]], [[-1, 0], [1, 1]], [[0, -1], [-1, 0]]])


def _permutation(columns: Int[np.ndarray, "n_col 2"], matrix: Int[np.ndarray, "2 2"]) -> Int32[np.ndarray, " n_col"]:
    """Index array p such that values[..., p] carries each column's value to its image."""
    columns = np.asarray(columns)
    index = {tuple(column): i for i, column in enumerate(columns.tolist())}
    moved = [index.get(tuple(image), -1) for image in (columns @ matrix.T).tolist()]
    if -1 in moved:
        raise UserError("these columns are no full hexagon: flips and rotations would leave the eye")
    return np.argsort(moved).astype(np.int32)


def rotation(columns: Int[np.ndarray, "n_col 2"], n: int) -> Int32[np.ndarray, " n_col"]:
    """Permutation that turns a hexagonal picture by n * 60 degrees: picture[..., p].

    A value at (u, v) moves to (-v, u + v), n times.

    **Raises:** `UserError` unless the columns are a full hexagon.
    """
    return _permutation(columns, np.linalg.matrix_power(_TURN, n % 6))


def flip(columns: Int[np.ndarray, "n_col 2"], axis: int) -> Int32[np.ndarray, " n_col"]:
    """Permutation that mirrors a hexagonal picture at axis 1, 2 or 3 (0: not at all).

    **Raises:** `UserError` for another axis, or unless the columns are a full hexagon.
    """
    if not 0 <= axis < len(_FLIPS):
        raise UserError(f"flip axes are 0 (none), 1, 2 and 3, got {axis}")
    return _permutation(columns, _FLIPS[axis])


def rotation_matrix(n: int) -> Float64[np.ndarray, "2 2"]:
    """Effect of `rotation` on flow vectors (x right, y up)."""
    angle = n * np.pi / 3
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def flip_matrix(axis: int) -> Float64[np.ndarray, "2 2"]:
    """Effect of `flip` on flow vectors (x right, y up)."""
    if axis == 0:
        return np.eye(2)
    # Mirror lines at 90, -30 and 30 degrees.
    angle = {1: np.pi, 2: -np.pi / 3, 3: np.pi / 3}[axis]
    return np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), -np.cos(angle)]])

"""The message sum where all edges of an offset share their weight: a convolution on the hexagons.

Every cell type lies on a grid of its own, flattened with enough zeros between rows that an offset
(du, dv) is a shift of the flat index. A target type then is a weighted sum of shifted, contiguous
rows, without any index per edge: 2,355 shifts instead of 434,112 reads at extent 8.

`window` reads the rows with a gather of windows; it compiles in a second. `unrolled` writes the
sum out term by term, which XLA fuses into one pass over each target; on a CPU it is 1.2 (one
state) to 3 (eight states) times faster still, and compiles in 5 to 10 s.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome

#: Target types whose numbers of terms lie within this factor share a padded block,
BLOCK_RATIO = 1.3
#: as long as its windows stay in a core's cache.
BLOCK_VALUES = 1 << 17


@dataclass(frozen=True, eq=False)
class Grid:
    """Where neurons lie on the flat grids, and which shifts a target type sums."""

    n_types: int
    size: int  #: L, cells of a type's grid, padding between rows included
    border: int  #: zeros before and after it when it is read
    cell_of_neuron: np.ndarray  #: (N,) flat cell of each neuron in (n_types, L)
    neuron_of_cell: np.ndarray  #: (n_types * L,) neuron of each cell, N where there is none
    column_of_cell: np.ndarray  #: (L,) column of each cell, n_col where there is none
    is_input: np.ndarray  #: (n_types,) 1 for R1..R8
    edge_of_key: np.ndarray  #: (K,) an edge of each offset key, n_edges where none occurs
    start: np.ndarray  #: (K,) where a shifted row starts in the flat, bordered grids
    keys_of_target: tuple[np.ndarray, ...]  #: per target type: keys that occur
    is_regular: bool  #: whether the edges are exactly those of the keys: none added, none removed


@lru_cache(maxsize=8)
def make_grid(c: Connectome) -> Grid:
    """The flat layout of a connectome, made once."""
    source, target, du, dv = c.keys.astype(np.int64).T
    x, side = c.extent, 2 * c.extent + 1
    reach_u, reach_v = (int(np.minimum(np.abs(d), 2 * x).max(initial=0)) for d in (du, dv))
    stride = side + reach_v
    size, border = side * stride, reach_u * stride + reach_v

    cell = (c.u + x) * stride + (c.v + x)
    at = c.cell_type.astype(np.int64) * size + cell
    neuron = np.full(c.n_types * size, c.n_neurons)
    neuron[at] = np.arange(c.n_neurons)
    column = np.full(size, c.n_columns)
    column[(c.columns[:, 0] + x) * stride + c.columns[:, 1] + x] = np.arange(c.n_columns)
    # Offsets longer than the lattice never occur; their shifts would leave the border.
    fits = (np.abs(du) <= 2 * x) & (np.abs(dv) <= 2 * x)
    start = np.where(fits, source * (size + 2 * border) + border - du * stride - dv, 0)

    # The edges are the keys' if each edge is one of its key's and there are as many as there can be.
    occupied = np.zeros((c.n_types, size + 2 * border), bool)
    occupied[c.cell_type, border + cell] = True
    shifted = np.lib.stride_tricks.sliding_window_view(occupied.reshape(-1), size)[start]
    possible = (shifted & occupied[target, border : border + size]).sum(axis=1) * fits
    known = c.offset_key >= 0
    regular = bool(known.all()) and bool((np.bincount(c.offset_key, minlength=len(c.keys)) == possible).all())
    ends = np.stack([c.cell_type[c.senders], c.cell_type[c.receivers]], axis=1)
    steps = np.stack([c.u[c.receivers] - c.u[c.senders], c.v[c.receivers] - c.v[c.senders]], axis=1)
    regular &= bool((c.keys[c.offset_key] == np.concatenate([ends, steps], axis=1)).all())
    # Luminance reaches all neurons of a type, each neuron from its own column.
    regular &= bool((c.input_column == c.column[c.inputs]).all())
    regular &= bool((np.flatnonzero(np.isin(c.cell_type, np.unique(c.cell_type[c.inputs]))) == c.inputs).all())

    edge_of_key = np.full(len(c.keys), c.n_edges)
    edge_of_key[c.offset_key[known]] = np.flatnonzero(known)
    occurs = np.flatnonzero(edge_of_key < c.n_edges)
    return Grid(
        n_types=c.n_types,
        size=size,
        border=border,
        cell_of_neuron=at.astype(np.int32),
        neuron_of_cell=neuron.astype(np.int32),
        column_of_cell=column.astype(np.int32),
        is_input=np.isin(np.arange(c.n_types), c.cell_type[c.inputs]).astype(np.float32),
        edge_of_key=edge_of_key.astype(np.int32),
        # The source lies at target minus offset.
        start=start.astype(np.int32),
        keys_of_target=tuple(occurs[target[occurs] == t] for t in range(c.n_types)),
        is_regular=regular,
    )


def is_regular(c: Connectome) -> bool:
    """Whether the edges are exactly those of a lattice. Of a circuit from tables no grid is laid out."""
    return c.is_lattice and make_grid(c).is_regular


def is_applicable(c: Connectome, weight: np.ndarray) -> bool:
    """Whether edges and weights repeat over the lattice, as in flyvis and in drawn circuits."""
    if not is_regular(c):
        return False
    weight = np.asarray(weight)
    g = make_grid(c)
    return bool((np.append(weight, np.float32(0))[g.edge_of_key][c.offset_key] == weight).all())


def to_grid(g: Grid, x: Float32[Array, "... N B"]) -> Float32[Array, "... n_types L B"]:
    """Neurons to cells; 0 where there is no neuron."""
    padded = jnp.concatenate([x, jnp.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype)], axis=-2)
    return padded[..., g.neuron_of_cell, :].reshape(*x.shape[:-2], g.n_types, g.size, x.shape[-1])


def from_grid(g: Grid, state: Float32[Array, "... n_types L B"]) -> Float32[Array, "... N B"]:
    """Cells to neurons."""
    return state.reshape(*state.shape[:-3], g.n_types * g.size, state.shape[-1])[..., g.cell_of_neuron, :]


def key_weights(g: Grid, weight: Float32[Array, " E"]) -> Float32[Array, " K"]:
    """One weight per offset, 0 for offsets that do not occur."""
    return jnp.append(weight, jnp.zeros((1,), weight.dtype))[g.edge_of_key]


def _bordered(g: Grid, rate) -> jax.Array:
    """Every type's grid between two borders of zeros, (n_types, (L + 2 border) B)."""
    n_states = rate.shape[2]
    flat = rate.reshape(g.n_types, g.size * n_states)
    return jnp.pad(flat, ((0, 0), (g.border * n_states, g.border * n_states)))


def window_sum(
    g: Grid, weight: Float32[Array, " K"], rate: Float32[Array, "n_types L 1"]
) -> Float32[Array, "n_types L 1"]:
    """Shifted rows by a gather of windows, a matrix product per block of target types."""
    flat = _bordered(g, rate).reshape(-1)
    n_terms = np.array([len(keys) for keys in g.keys_of_target])
    order = np.argsort(n_terms, kind="stable")
    rows = lax.GatherDimensionNumbers(offset_dims=(2,), collapsed_slice_dims=(), start_index_map=(0,))
    parts, begin = [], 0
    while begin < g.n_types:
        limit = max(n_terms[order[begin]] * BLOCK_RATIO, n_terms[order[begin]] + 2)
        end = int(np.searchsorted(n_terms[order], limit, side="right"))
        while end - begin > 1 and (end - begin) * n_terms[order[end - 1]] * g.size > BLOCK_VALUES:
            end -= 1
        block = order[begin:end]
        width = int(n_terms[block].max())
        keys = np.zeros((len(block), width), np.int32)
        used = np.zeros((len(block), width), np.float32)
        for row, target in enumerate(block):
            keys[row, : n_terms[target]] = g.keys_of_target[target]
            used[row, : n_terms[target]] = 1
        start = jnp.asarray(g.start[keys] * (used > 0))[..., None]
        shifted = lax.gather(flat, start, rows, (g.size,), mode="promise_in_bounds")
        parts.append(jnp.einsum("td,tdl->tl", weight[keys] * used, shifted))
        begin = end
    position = np.empty(g.n_types, np.int32)
    position[order] = np.arange(g.n_types)
    return jnp.concatenate(parts)[position][..., None]


def unrolled_sum(
    g: Grid, weight: Float32[Array, " K"], rate: Float32[Array, "n_types L B"]
) -> Float32[Array, "n_types L B"]:
    """Term by term: one fused pass over each target type."""
    n_states = rate.shape[2]
    length = g.size * n_states
    # A row per type, then a shift: on one long row XLA's code is half as fast.
    bordered = _bordered(g, rate)
    targets = []
    for keys in g.keys_of_target:
        terms = []
        for key in keys.tolist():
            source, shift = divmod(int(g.start[key]), g.size + 2 * g.border)
            shift *= n_states
            terms.append(weight[key] * lax.slice(bordered[source], (shift,), (shift + length,)))
        while len(terms) > 1:  # a tree keeps the expression shallow
            terms = [a + b for a, b in zip(terms[::2], terms[1::2])] + terms[len(terms) & ~1 :]
        targets.append(terms[0] if terms else jnp.zeros((length,), rate.dtype))
    return jnp.stack(targets).reshape(rate.shape)

"""The message sum where all edges of an offset share their weight: a convolution on the hexagons.

Every cell type lies on a grid of its own, flattened with enough zeros between rows that an offset
(du, dv) is a shift of the flat index. A target type then is a weighted sum of shifted, contiguous
rows, without any index per edge: 2,355 shifts instead of 434,112 reads at extent 8.

The sum is split into partial sums of `TERMS` shifted rows. XLA compiles one of them as a loop over
its cells, in vector instructions, and all others are the same loop with other starts and weights.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome

#: Shifted rows of a partial sum: their pointers fit into the registers of a core.
TERMS = 12


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
    edge_of_term: np.ndarray  #: (R, TERMS) an edge of each term of a partial sum, n_edges where there is none
    start_of_term: np.ndarray  #: (R, TERMS) where its shifted row starts
    parts_of_target: np.ndarray  #: (n_types, P) partial sums that make a target type; the last one is empty
    is_regular: bool  #: whether the edges are exactly those of the keys: none added, none removed


@lru_cache(maxsize=8)
def make_grid(c: Connectome) -> Grid:
    """The flat layout of a connectome, made once."""
    source, target, du, dv = c.keys.astype(np.int64).T
    x = c.extent
    reach_u, reach_v = (int(np.minimum(np.abs(d), 2 * x).max(initial=0)) for d in (du, dv))
    stride = 2 * x + 1 + reach_v
    size, border = 2 * x * stride + 1, reach_u * stride + reach_v

    cell = (c.u + x) * stride + c.v  # the first is (-x, 0)
    at = c.cell_type.astype(np.int64) * size + cell
    neuron = np.full(c.n_types * size, c.n_neurons)
    neuron[at] = np.arange(c.n_neurons)
    column = np.full(size, c.n_columns)
    column[(c.columns[:, 0] + x) * stride + c.columns[:, 1]] = np.arange(c.n_columns)
    # The source lies at target minus offset. Longer offsets than the lattice never occur and would leave the border.
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
    keys = [occurs[target[occurs] == t] for t in range(c.n_types)]
    parts = [[k[i : i + TERMS] for i in range(0, len(k), TERMS)] for k in keys]
    last = np.cumsum([0, *map(len, parts)])
    number = last[:-1, None] + np.arange(max(map(len, parts)))
    terms = np.full((last[-1] + 1, TERMS), len(c.keys))
    for row, part in enumerate(itertools.chain(*parts)):
        terms[row, : len(part)] = part
    return Grid(
        n_types=c.n_types,
        size=size,
        border=border,
        cell_of_neuron=at.astype(np.int32),
        neuron_of_cell=neuron.astype(np.int32),
        column_of_cell=column.astype(np.int32),
        is_input=np.isin(np.arange(c.n_types), c.cell_type[c.inputs]).astype(np.float32),
        edge_of_key=edge_of_key.astype(np.int32),
        edge_of_term=np.append(edge_of_key, c.n_edges)[terms].astype(np.int32),
        start_of_term=np.append(start, 0)[terms].astype(np.int32),
        parts_of_target=np.where(number < last[1:, None], number, last[-1]).astype(np.int32),
        is_regular=regular,
    )


def is_applicable(c: Connectome, weight: np.ndarray) -> bool:
    """Whether edges and weights repeat over the lattice, as in flyvis and in drawn circuits."""
    if not (c.is_lattice and make_grid(c).is_regular):  # of a circuit from tables no grid is laid out
        return False
    weight = np.asarray(weight)
    return bool((np.append(weight, np.float32(0))[make_grid(c).edge_of_key][c.offset_key] == weight).all())


def to_grid(g: Grid, x: Float32[Array, "... N B"]) -> Float32[Array, "... n_types L B"]:
    """Neurons to cells; 0 where there is no neuron."""
    is_neuron, shape = g.neuron_of_cell < x.shape[-2], (*x.shape[:-2], g.n_types, g.size, x.shape[-1])
    neuron = np.where(is_neuron, g.neuron_of_cell, 0)
    if x.shape[-1] == 1:  # XLA reads single numbers faster without an axis for them
        read = x[..., 0].at[..., neuron].get(mode="promise_in_bounds")
        return jnp.where(is_neuron, read, 0).reshape(shape)
    read = x.at[..., neuron, :].get(mode="promise_in_bounds")
    return jnp.where(is_neuron[:, None], read, 0).reshape(shape)


def from_grid(g: Grid, state: Float32[Array, "... n_types L B"]) -> Float32[Array, "... N B"]:
    """Cells to neurons."""
    return state.reshape(*state.shape[:-3], g.n_types * g.size, state.shape[-1])[..., g.cell_of_neuron, :]


def term_weights(g: Grid, weight: Float32[Array, " E"]) -> Float32[Array, "R TERMS"]:
    """One weight per shifted row, 0 in the padding."""
    return jnp.append(weight, jnp.zeros((1,), weight.dtype))[g.edge_of_term]


def window_sum(
    g: Grid, weight: Float32[Array, "R TERMS"], rate: Float32[Array, "n_types L B"]
) -> Float32[Array, "n_types L B"]:
    """Partial sums of shifted rows, then those of each target type."""
    n_states = rate.shape[2]
    length, border = g.size * n_states, g.border * n_states
    # Without the first barrier XLA writes the update as a pad, which is three times as slow; without the second it
    # computes a partial sum anew wherever one is read.
    zeros = lax.optimization_barrier(jnp.zeros((g.n_types, length + 2 * border), rate.dtype))
    flat = lax.dynamic_update_slice(zeros, rate.reshape(g.n_types, length), (0, border)).reshape(-1)
    rows = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))

    def shifted(start):
        return lax.gather(flat, jnp.asarray(n_states * start)[:, None], rows, (length,), mode="promise_in_bounds")

    parts = lax.optimization_barrier(sum(w[:, None] * shifted(start) for w, start in zip(weight.T, g.start_of_term.T)))
    total = sum(parts.at[part].get(mode="promise_in_bounds") for part in g.parts_of_target.T)
    return total.reshape(rate.shape)

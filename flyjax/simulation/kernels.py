"""Kernels of the message sum sum_j w_ij g_j, the one expensive operation of the circuit, and their layouts.

For any weights: `segment` is the plain sorted segment sum. `gather` sorts receivers into buckets of similar in-degree,
each padded with weights 0 to the largest degree in it, so that a bucket is a gather and a row-wise dot product, without
any scatter. `csr` is a sparse-dense product. Segment and gather are differentiable; the gradient of segment compiles in
a second. `window` needs weights that repeat over the lattice (`flyjax.simulation.hex_convolution`).

Message sums per second of one CPU core at extent 8 (`scripts/benchmark.py simulate` measures whole steps):
segment 800, gather 1,600, csr 4,800 (8 states) to 10,900 (32), window 18,000 (1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.simulation import hex_convolution
from flyjax.utils.errors import UserError, nearest

#: States that shifted rows advance at once, at most: partial sums of more do not fit into a core's cache.
WINDOW_STATES = 8
#: States from which XLA's sparse product has a fast path on a CPU: four times as fast with 8 as with 1.
CSR_STATES = 8
#: Neuron updates (steps x sequences x neurons) from which a longer compilation pays.
_SHORT = 1e7
#: Neurons from which shifted rows are long enough (extent 2), and from which they pay for any number of steps (5).
_SMALL, _LARGE = 1000, 5000
#: A bucket spans in-degrees within this factor: more buckets pad less but cost a kernel each.
BUCKET_RATIO = 1.25


class Buckets(NamedTuple):
    """Index arrays of the padded gather; a pytree, so it can be passed to a compiled function."""

    senders: tuple[jax.Array, ...]  #: per bucket (receivers, degree): whose rate to read
    edges: tuple[jax.Array, ...]  #: per bucket (receivers, degree): edge, or n_edges for padding
    position: jax.Array  #: (N,) row of each neuron in the stacked buckets


class Edges(NamedTuple):
    """Edges by receiver, as the connectome sorts them."""

    senders: jax.Array  #: (E,)
    receivers: jax.Array  #: (E,)
    starts: jax.Array  #: (N + 1,) first edge of each receiver


@lru_cache(maxsize=8)
def buckets(c: Connectome) -> Buckets:
    """The gather plan of a connectome, made once."""
    n_neurons, n_edges = c.n_neurons, c.n_edges
    degree = np.bincount(c.receivers, minlength=n_neurons)
    first = np.concatenate([[0], np.cumsum(degree)])[:-1]
    by_degree = np.argsort(degree, kind="stable")
    sorted_degree = degree[by_degree]
    padded_senders = np.append(c.senders, np.int32(0))
    bucket_senders, bucket_edges = [], []
    start = 0
    while start < n_neurons:
        limit = max(int(sorted_degree[start] * BUCKET_RATIO), sorted_degree[start] + 2)
        stop = int(np.searchsorted(sorted_degree, limit, side="right"))
        rows, slot = by_degree[start:stop], np.arange(int(sorted_degree[stop - 1]))
        edge = np.where(slot < degree[rows][:, None], first[rows][:, None] + slot, n_edges)
        bucket_edges.append(edge.astype(np.int32))
        bucket_senders.append(padded_senders[edge])
        start = stop
    position = np.empty(n_neurons, np.int32)
    position[by_degree] = np.arange(n_neurons, dtype=np.int32)
    with jax.ensure_compile_time_eval():
        return Buckets(
            tuple(map(jnp.asarray, bucket_senders)), tuple(map(jnp.asarray, bucket_edges)), jnp.asarray(position)
        )


@lru_cache(maxsize=8)
def edges(c: Connectome) -> Edges:
    """The edge list of a connectome on the device, made once."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(c.receivers, minlength=c.n_neurons))]).astype(np.int32)
    with jax.ensure_compile_time_eval():
        return Edges(jnp.asarray(c.senders), jnp.asarray(c.receivers), jnp.asarray(starts))


def pack_weights(plan: Buckets, weight: Float32[Array, " E"]) -> tuple[jax.Array, ...]:
    """Weights in bucket order, 0 in the padding; once per simulation, not per step."""
    padded = jnp.append(weight, jnp.zeros((1,), weight.dtype))
    return tuple(padded[edges] for edges in plan.edges)


def gather_sum(plan: Buckets, weight: tuple[jax.Array, ...], rate: Float32[Array, "N B"]) -> Float32[Array, "N B"]:
    """sum over edges into i of w_ij rate_j, for B independent states."""
    n_states = rate.shape[1]
    if n_states == 1:
        # One-dimensional operands: XLA's CPU gather is several times slower with a trailing 1.
        flat = rate[:, 0]
        reads = [flat.at[senders].get(mode="promise_in_bounds") for senders in plan.senders]
        total = jnp.concatenate([jnp.einsum("nd,nd->n", w, r) for w, r in zip(weight, reads)])
        return total[plan.position][:, None]
    parts = []
    for senders, w in zip(plan.senders, weight):
        read = rate.at[senders.reshape(-1)].get(mode="promise_in_bounds").reshape(*senders.shape, n_states)
        parts.append(jnp.einsum("nd,ndb->nb", w, read))
    return jnp.concatenate(parts)[plan.position]


def segment_sum(plan: Edges, weight: Float32[Array, " E"], rate: Float32[Array, "N B"]) -> Float32[Array, "N B"]:
    """The same as a sorted segment sum."""
    read = weight[:, None] * rate.at[plan.senders].get(mode="promise_in_bounds")
    return jax.ops.segment_sum(read, plan.receivers, rate.shape[0], indices_are_sorted=True)


def csr_sum(plan: Edges, weight: Float32[Array, " E"], rate: Float32[Array, "N B"]) -> Float32[Array, "N B"]:
    """The same as a product of a sparse matrix; not differentiable."""
    n, n_states = rate.shape
    padded = jnp.pad(rate, ((0, 0), (0, max(CSR_STATES - n_states, 0))))
    return (sparse.BCSR((weight, plan.senders, plan.starts), shape=(n, n)) @ padded)[:, :n_states]


SUMS: dict[str, Callable] = {
    "segment": segment_sum,
    "gather": gather_sum,
    "csr": csr_sum,
    "window": hex_convolution.window_sum,
}
KERNELS = tuple(SUMS)


@dataclass(frozen=True)
class Kernel:
    """A message sum by name and its layout; hashable, so that it can be a static argument.

    Outside, states are (..., N, B) with the B independent states last. Most kernels keep that inside; `window` has one
    grid per cell type, (..., n_types, L, B), see `flyjax.simulation.hex_convolution`.
    """

    name: str
    c: Connectome

    @property
    def _grid(self) -> hex_convolution.Grid | None:
        return hex_convolution.make_grid(self.c) if self.name == "window" else None

    def plan(self) -> tuple:
        """Index arrays to pass into the compiled function (as constants they would slow compilation)."""
        if self._grid:
            return ()
        return buckets(self.c) if self.name == "gather" else edges(self.c)

    def pack_weights(self, plan, weight: Float32[Array, " E"]):
        """Weights in the kernel's order; once per rollout."""
        if self._grid:
            return hex_convolution.term_weights(self._grid, weight)
        return pack_weights(plan, weight) if self.name == "gather" else weight

    def sum(self, plan, weight, rate: Float32[Array, "N B"]) -> Float32[Array, "N B"]:
        """sum_j w_ij rate_j, of packed weights and rates in the kernel's layout."""
        return SUMS[self.name](self._grid or plan, weight, rate)

    def to_layout(self, x: Float32[Array, "... N B"]) -> jax.Array:
        """Into the kernel's layout."""
        return hex_convolution.to_grid(self._grid, x) if self._grid else x

    def from_layout(self, x: jax.Array) -> Float32[Array, "... N B"]:
        """Out of the kernel's layout."""
        return hex_convolution.from_grid(self._grid, x) if self._grid else x

    def pack_stimulus(self, luminance: Float32[Array, "... n_col B"]) -> jax.Array:
        """Luminance in the kernel's layout, still one value per column; for all frames at once."""
        dark = jnp.zeros((*luminance.shape[:-2], 1, luminance.shape[-1]), luminance.dtype)
        padded = jnp.concatenate([luminance, dark], axis=-2)
        return padded[..., self._grid.column_of_cell, :] if self._grid else padded

    def inject_input(self, stimulus: jax.Array) -> jax.Array:
        """One frame of `pack_stimulus` as the external input of every neuron, 0 but for R1..R8."""
        if self._grid:
            return jnp.asarray(self._grid.is_input)[:, None, None] * stimulus[None]
        slot = np.full(self.c.n_neurons, self.c.n_columns, np.int32)
        slot[self.c.inputs] = self.c.input_column
        return stimulus[slot]


def choose(c: Connectome, weight, traced: bool, n_steps: int, n_states: int, name: str = "auto") -> Kernel:
    """The fastest kernel for this circuit and this much work, or the one asked for.

    **Arguments:**

    - `weight`: (E,), read only where it is not `traced`.
    - `n_states`: independent sequences at once.

    **Raises:** `UserError` for an unknown name, or a kernel that cannot do what is asked.
    """
    if name not in ("auto", *KERNELS):
        raise UserError(f"no kernel {name!r}.{nearest(name, KERNELS)} Known: auto, {', '.join(KERNELS)}.")
    if name != "auto":
        if name not in ("segment", "gather") and traced:
            raise UserError(f"kernel {name!r} is not differentiable and runs outside jit only: use 'segment' or 'auto'")
        if name == "window" and not hex_convolution.is_applicable(c, weight):
            raise UserError(f"kernel {name!r} needs weights that repeat over the lattice: use 'gather' or 'auto'")
        return Kernel(name, c)
    if jax.default_backend() != "cpu":
        return Kernel("gather", c)  # no atomic additions: the same bits in every run
    if traced:
        return Kernel("segment", c)
    short = n_steps * n_states * c.n_neurons < _SHORT
    rows = c.n_neurons > (_LARGE if short else _SMALL) and n_states <= WINDOW_STATES
    if rows and hex_convolution.is_applicable(c, weight):
        return Kernel("window", c)
    if n_states >= CSR_STATES:
        return Kernel("csr", c)
    return Kernel("segment" if short else "gather", c)

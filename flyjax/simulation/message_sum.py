"""The message sum sum_j w_ij g_j for any weights: the one expensive operation of the circuit.

`gather`: receivers are sorted into buckets of similar in-degree, each padded to the largest degree in it, so that
a bucket is a gather and a row-wise dot product, without any scatter. Padding has weight 0. `segment`: the plain
sorted segment sum, half as fast, but its gradient compiles in a second. `csr`: a sparse-dense product, faster from
about 8 states at a time on a CPU. Where weights repeat over the lattice, `flyjax.simulation.hex_convolution` is
faster than all three.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome

#: A bucket spans in-degrees within this factor: more buckets pad less but cost a kernel each.
BUCKET_RATIO = 1.25
#: States from which XLA's sparse product has a fast path on a CPU: four times as fast with 8 as with 1.
CSR_STATES = 8


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

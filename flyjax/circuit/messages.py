"""The message sum sum_j w_ij g_j: the one expensive operation of the circuit.

Receivers are sorted into buckets of similar in-degree, each padded to the largest degree in it;
a bucket is a gather and a row sum, without any scatter. Padding points at a slot of weight 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome

#: A bucket spans in-degrees within this factor: more buckets pad less but cost a kernel each.
BUCKET_RATIO = 1.25


class Buckets(NamedTuple):
    """Index arrays of the padded gather; a pytree, so it can be passed to a compiled function."""

    senders: tuple[jax.Array, ...]  #: per bucket (receivers, degree): whose rate to read
    edges: tuple[jax.Array, ...]  #: per bucket (receivers, degree): edge, or n_edges for padding
    position: jax.Array  #: (N,) row of each neuron in the stacked buckets


def _build(senders, receivers, n_neurons: int) -> Buckets:
    n_edges = len(senders)
    degree = np.bincount(receivers, minlength=n_neurons)
    first = np.concatenate([[0], np.cumsum(degree)])[:-1]  # edges are sorted by receiver
    by_degree = np.argsort(degree, kind="stable")
    sorted_degree = degree[by_degree]
    bucket_senders, bucket_edges = [], []
    start = 0
    while start < n_neurons:
        limit = max(int(sorted_degree[start] * BUCKET_RATIO), sorted_degree[start] + 2)
        stop = int(np.searchsorted(sorted_degree, limit, side="right"))
        rows, width = by_degree[start:stop], int(sorted_degree[stop - 1])
        slot = np.arange(width)
        used = slot < degree[rows][:, None]
        edges = np.where(used, first[rows][:, None] + slot, n_edges)
        bucket_edges.append(edges.astype(np.int32))
        bucket_senders.append(np.append(senders, 0)[edges].astype(np.int32))
        start = stop
    position = np.empty(n_neurons, np.int32)
    position[by_degree] = np.arange(n_neurons, dtype=np.int32)
    return Buckets(tuple(map(jnp.asarray, bucket_senders)), tuple(map(jnp.asarray, bucket_edges)), jnp.asarray(position))


@lru_cache(maxsize=8)
def buckets(c: Connectome) -> Buckets:
    """The gather plan of a connectome, made once."""
    with jax.ensure_compile_time_eval():
        return _build(c.senders, c.receivers, c.n_neurons)


def pack(plan: Buckets, weight: Float32[Array, " E"]) -> tuple[jax.Array, ...]:
    """Weights in bucket order, 0 in the padding; once per simulation, not per step."""
    padded = jnp.append(weight, jnp.zeros((1,), weight.dtype))
    return tuple(padded[edges][..., None] for edges in plan.edges)


def message_sum(
    plan: Buckets, packed: tuple[jax.Array, ...], rate: Float32[Array, "N B"]
) -> Float32[Array, "N B"]:
    """sum over edges into i of w_ij rate_j, for B independent states (last axis)."""
    rows = [(w * rate[senders]).sum(axis=1) for senders, w in zip(plan.senders, packed)]
    return jnp.concatenate(rows)[plan.position]

"""Row-wise functions of large arrays, evaluated in segments that stay in cache.

A network's activations over all neurons and frames are tens of megabytes per layer: writing and
reading them back costs a CPU more time than the matrix products. Cut into segments of a few thousand
rows, forward and backward pass of one segment meet in cache. Two forms:

- `mapped`: plain values; the backward pass evaluates each segment again.
- `square_sum`: the sum of squares of the values, as a norm needs it. Its gradient is known up to one
  scalar while the segment is still in cache, so it is computed there and then: nothing is stored and
  nothing is evaluated twice.

A function here maps (shared, rows) to an array with the leading axis of `rows`, each row of it
depending on the same row of `rows` alone; `shared` and `rows` are pytrees of arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Rows (neurons x frames) of one segment. CPU: 4,096 x 80 floats are 1.3 MB, about one core's second-level
#: cache; halves and quarters measured within 10 %. Accelerators need large segments; theirs bounds memory alone.
CPU_ROWS, ACCELERATOR_ROWS = 4096, 1 << 20

Function = Callable[[Any, Any], Array]


def segment_rows(backend: str) -> int:
    """Rows of one segment on a backend ('cpu', 'gpu', …)."""
    return CPU_ROWS if backend == "cpu" else ACCELERATOR_ROWS


def n_segments(n_rows: int, segment_rows: int) -> int:
    """Segments for so many rows: one below twice `segment_rows`."""
    return 1 if n_rows < 2 * segment_rows else -(-n_rows // segment_rows)


def _cut(rows, n_segments: int):
    """(n, …) -> (n_segments, ceil(n / n_segments), …), padded with zeros at the end."""

    def cut(x):
        length = -(-len(x) // n_segments)
        padded = jnp.pad(x, [(0, length * n_segments - len(x))] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(n_segments, length, *x.shape[1:])

    return jax.tree.map(cut, rows)


def _join(segments, n: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], segments)


def _length(rows) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def mapped(function: Function, n_segments: int, shared, rows) -> Array:
    """function(shared, rows), one segment at a time."""
    if n_segments == 1:
        return function(shared, rows)
    one = jax.checkpoint(lambda segment: function(shared, segment), prevent_cse=False)
    return _join(jax.lax.map(one, _cut(rows, n_segments)), _length(rows))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def square_sum(function: Function, n_segments: int, shared, rows, fixed) -> Float[Array, ""]:
    """Sum of function(shared, (rows, fixed)) ** 2, differentiable in `shared` and `rows`, not in `fixed`."""
    return jnp.sum(jnp.square(mapped(function, n_segments, shared, (rows, fixed))))


def _forward(function: Function, n_segments: int, shared, rows, fixed):
    n = _length((rows, fixed))

    def one(shared, rows, fixed, valid=None):
        value, pullback = jax.vjp(lambda s, r: function(s, (r, fixed)), shared, rows)
        if valid is not None:
            value = value * valid.reshape(-1, *[1] * (value.ndim - 1))
        d_shared, d_rows = pullback(value)
        return jnp.sum(jnp.square(value)), d_shared, d_rows

    if n_segments == 1:
        total, *gradients = one(shared, rows, fixed)
        return total, tuple(gradients)

    def add(sums, segment):
        total, d_shared, d_rows = one(shared, *segment)
        return jax.tree.map(jnp.add, sums, (total, d_shared)), d_rows

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, shared)
    (total, d_shared), d_rows = jax.lax.scan(add, zero, _cut((rows, fixed, jnp.ones(n)), n_segments))
    return total, (d_shared, _join(d_rows, n))


def _backward(function, n_segments, gradients, cotangent):
    d_shared, d_rows = jax.tree.map(lambda g: 2.0 * cotangent * g, gradients)
    return d_shared, d_rows, None


square_sum.defvjp(_forward, _backward)

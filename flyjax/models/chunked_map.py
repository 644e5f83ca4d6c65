"""Row-wise functions of large arrays, evaluated in pieces that stay in cache.

A network's activations over all neurons and frames are tens of megabytes per layer: writing and
reading them back costs a CPU more time than the matrix products. Cut into pieces of a few thousand
rows, forward and backward pass of one piece meet in cache. Two forms:

- `mapped`: plain values; the backward pass evaluates each piece again.
- `square_sum`: the sum of squares of the values, as a norm needs it. Its gradient is known up to one
  scalar while the piece is still in cache, so it is taken there and then: nothing is stored and
  nothing is evaluated twice.

A function here maps (shared, rows) to an array with the leading axis of `rows`, each row of it
depending on the same row of `rows` alone; `shared` and `rows` are pytrees of arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

#: Rows (neurons x frames) of one piece. CPU: 4,096 x 80 floats are 1.3 MB, about one core's second-level
#: cache; halves and quarters measured within 10 %. Accelerators want large pieces; theirs bounds memory alone.
CPU_ROWS, ACCELERATOR_ROWS = 4096, 1 << 20

Function = Callable[[Any, Any], jax.Array]


def n_pieces(n_rows: int) -> int:
    """Pieces for so many rows on the default backend; at least 2 x the wanted size, or it is not cut."""
    size = CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    return 1 if n_rows < 2 * size else -(-n_rows // size)


def _length(rows) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _cut(rows, pieces: int):
    """(n, …) -> (pieces, ceil(n / pieces), …), the end filled with zeros."""
    n = _length(rows)
    each = -(-n // pieces)

    def cut(x):
        padded = jnp.pad(x, [(0, each * pieces - n)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(pieces, each, *x.shape[1:])

    return jax.tree.map(cut, rows)


def _join(pieces, n: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], pieces)


def mapped(function: Function, pieces: int, shared, rows) -> jax.Array:
    """function(shared, rows), a piece at a time."""
    if pieces == 1:
        return function(shared, rows)
    one = jax.checkpoint(lambda piece: function(shared, piece), prevent_cse=False)
    return _join(jax.lax.map(one, _cut(rows, pieces)), _length(rows))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def square_sum(function: Function, pieces: int, shared, rows, fixed) -> jax.Array:
    """Sum of function(shared, (rows, fixed)) ** 2, with its gradient for `shared` and `rows`.

    `fixed` are rows too, but get no gradient.
    """
    return jnp.sum(jnp.square(mapped(function, pieces, shared, (rows, fixed))))


def _valid(n: int, pieces: int):
    return _cut(jnp.ones(n), pieces)


def _along(valid, value):
    return valid.reshape(-1, *[1] * (value.ndim - 1))


def _forward(function: Function, pieces: int, shared, rows, fixed):
    n = _length((rows, fixed))

    def one(shared, rows, fixed, valid=None):
        value, pull = jax.vjp(lambda s, r: function(s, (r, fixed)), shared, rows)
        if valid is not None:
            value = value * _along(valid, value)
        d_shared, d_rows = pull(value)
        return jnp.sum(jnp.square(value)), d_shared, d_rows

    if pieces == 1:
        total, d_shared, d_rows = one(shared, rows, fixed)
        return total, (d_shared, d_rows)

    def add(sums, piece):
        total, d_shared, d_rows = one(shared, *piece)
        return jax.tree.map(jnp.add, sums, (total, d_shared)), d_rows

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, shared)
    (total, d_shared), d_rows = jax.lax.scan(add, start, (*_cut((rows, fixed), pieces), _valid(n, pieces)))
    return total, (d_shared, _join(d_rows, n))


def _backward(function, pieces, gradients, cotangent):
    d_shared, d_rows = jax.tree.map(lambda g: 2.0 * cotangent * g, gradients)
    return d_shared, d_rows, None


square_sum.defvjp(_forward, _backward)

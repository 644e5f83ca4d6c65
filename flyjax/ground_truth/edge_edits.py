"""Circuits with additional or missing edges: as a learner is given them, or after a lesion."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.utils.errors import UserError

_PER_EDGE = ("senders", "receivers", "edge_pair", "offset_key", "sign", "n_syn")


def _with_edges(c: Connectome, p: Parameters, fields: dict[str, Any], weight) -> tuple[Connectome, Parameters]:
    """The circuit with these edges, sorted by (receiver, sender)."""
    order = np.argsort(fields["receivers"].astype(np.int64) * c.n_neurons + fields["senders"], kind="stable")
    fields = {name: values[order] for name, values in fields.items()}
    for values in fields.values():
        values.setflags(write=False)
    return dataclasses.replace(c, **fields), p._replace(weight=np.asarray(weight, np.float32)[order])


def without_edges(
    c: Connectome, p: Parameters, share: float, seed: int
) -> tuple[Connectome, Parameters, Int[np.ndarray, " remaining"]]:
    """The circuit without a random share of its edges, and the numbers of the remaining ones in `c`.

    **Raises:** `UserError` unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"a share of edges to remove lies in 0 <= share < 1, got {share}")
    removed = np.random.default_rng([seed, 1]).permutation(c.n_edges)[: round(share * c.n_edges)]
    remaining = np.setdiff1d(np.arange(c.n_edges), removed)
    fields = {name: getattr(c, name)[remaining] for name in _PER_EDGE}
    return *_with_edges(c, p, fields, np.asarray(p.weight)[remaining]), remaining


def with_null_edges(
    c: Connectome, p: Parameters, share: float, seed: int, kind: str = "per_source", forbidden=()
) -> tuple[Connectome, Parameters]:
    """The circuit with `share` times as many null edges, which do not exist: their weight is 0.

    **Arguments:**

    - `kind`: 'per_source' adds to every neuron in proportion to its own out-degree, 'random' anywhere. No pair is
        connected twice; where a neuron runs out of targets it has fewer.
    - `forbidden`: pairs, sender * n_neurons + receiver, that must not be added.

    In the result such edges have `edge_pair` and `offset_key` -1, `sign` and `n_syn` 0.

    **Raises:** `UserError` for a negative share or an unknown kind.
    """
    if share < 0 or kind not in ("per_source", "random"):
        raise UserError(f"null edges need a share >= 0, 'per_source' or 'random'; got {share}, {kind!r}")
    rng, n = np.random.default_rng([seed, 2]), c.n_neurons
    taken = np.union1d(c.node_pairs, np.asarray(forbidden, np.int64))
    if kind == "per_source":
        wanted = np.rint(np.bincount(c.senders, minlength=n) * share).astype(np.int64)
    else:
        wanted = np.bincount(rng.integers(0, n, round(share * c.n_edges)), minlength=n)
    first = np.searchsorted(taken, np.arange(n + 1, dtype=np.int64) * n)
    sources, chosen = np.flatnonzero(wanted), [np.zeros(0, np.int64)]
    for j in sources:
        free = np.ones(n, bool)
        free[taken[first[j] : first[j + 1]] - j * n] = False
        targets = np.flatnonzero(free)
        chosen.append(rng.choice(targets, min(wanted[j], len(targets)), replace=False))
    senders = np.repeat(sources, np.fromiter(map(len, chosen[1:]), np.int64))
    receivers = np.concatenate(chosen)
    null: dict[str, Any] = dict(senders=senders, receivers=receivers, edge_pair=-1, offset_key=-1, sign=0, n_syn=0)
    fields = {}
    for name in _PER_EDGE:
        own = getattr(c, name)
        fields[name] = np.concatenate([own, np.broadcast_to(null[name], senders.shape).astype(own.dtype)])
    return _with_edges(c, p, fields, np.concatenate([np.asarray(p.weight), np.zeros(len(senders), np.float32)]))

"""Circuits with edges too many or too few: what a learner is told, or what a lesion leaves."""

from __future__ import annotations

import dataclasses

import numpy as np

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.utils.errors import UserError


def _with_edges(c: Connectome, p: Parameters, fields: dict[str, np.ndarray], weight) -> tuple[Connectome, Parameters]:
    order = np.argsort(fields["receivers"].astype(np.int64) * c.n_neurons + fields["senders"], kind="stable")
    fields = {name: values[order] for name, values in fields.items()}
    for values in fields.values():
        values.setflags(write=False)
    return dataclasses.replace(c, **fields), p._replace(weight=np.asarray(weight, np.float32)[order])


_PER_EDGE = ("senders", "receivers", "edge_pair", "offset_key", "sign", "n_syn")


def without_edges(c: Connectome, p: Parameters, share: float, seed: int) -> tuple[Connectome, Parameters, np.ndarray]:
    """The circuit without a random share of its edges, and the numbers (E',) of those that are left.

    **Raises:** `UserError` unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"a share of edges to remove lies in 0 <= share < 1, got {share}")
    lost = np.random.default_rng([seed, 1]).permutation(c.n_edges)[: round(share * c.n_edges)]
    kept = np.setdiff1d(np.arange(c.n_edges), lost)
    # A subset keeps the order by (receiver, sender).
    return *_with_edges(c, p, {n: getattr(c, n)[kept] for n in _PER_EDGE}, np.asarray(p.weight)[kept]), kept


def with_null_edges(
    c: Connectome, p: Parameters, share: float, seed: int, kind: str = "per_source", forbidden=()
) -> tuple[Connectome, Parameters]:
    """The circuit with `share` times as many edges again that do not exist: their weight is 0.

    Args:
        kind: 'per_source' adds to every neuron in proportion to its own out-degree, 'random'
            anywhere. No pair is connected twice; where a neuron runs out of targets it has fewer.
        forbidden: pairs, sender * n_neurons + receiver, that must not be added.

    In the result such edges have `edge_pair` and `offset_key` -1, `sign` and `n_syn` 0.

    **Raises:** `UserError` for a negative share or an unknown kind.
    """
    if share < 0 or kind not in ("per_source", "random"):
        raise UserError(f"null edges need a share >= 0, 'per_source' or 'random'; got {share}, {kind!r}")
    rng, n = np.random.default_rng([seed, 2]), c.n_neurons
    taken = np.union1d(c.senders.astype(np.int64) * n + c.receivers, np.asarray(forbidden, np.int64))
    if kind == "per_source":
        wanted = np.rint(np.bincount(c.senders, minlength=n) * share).astype(np.int64)
    else:
        wanted = np.bincount(rng.integers(0, n, round(share * c.n_edges)), minlength=n)
    first = np.searchsorted(taken, np.arange(n + 1, dtype=np.int64) * n)
    senders, receivers = [], []
    for j in np.flatnonzero(wanted):
        free = np.ones(n, bool)
        free[taken[first[j] : first[j + 1]] - j * n] = False
        targets = np.flatnonzero(free)
        chosen = rng.choice(targets, min(wanted[j], len(targets)), replace=False)
        senders.append(np.full(len(chosen), j))
        receivers.append(chosen)
    senders = np.concatenate([np.zeros(0, np.int64), *senders])
    receivers = np.concatenate([np.zeros(0, np.int64), *receivers])
    null = dict(senders=senders, receivers=receivers, edge_pair=-1, offset_key=-1, sign=0, n_syn=0)
    fields = {}
    for name in _PER_EDGE:
        own = getattr(c, name)
        fields[name] = np.concatenate([own, np.broadcast_to(null[name], senders.shape).astype(own.dtype)])
    return _with_edges(c, p, fields, np.concatenate([np.asarray(p.weight), np.zeros(len(senders), np.float32)]))

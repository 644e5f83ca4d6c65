"""Receivers that share sources, put together: one table of products serves all of a group.

Neighbouring neurons listen to much the same sources, so the products of their regressors overlap, and matrix products
run two to three times as fast on tables of 100 rows as on the 35 of a typical neuron. Grouping is exact: every
neuron's own table is cut out of its group's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from flyjax.recovery.readout import per_recording

#: What a row costs, in products: fetching it, and the lower speed on small tables (measured in float64: 0.02 us a
#: product and 1,000 frames, 1.6 us a row).
ROW = 80.0
#: What a table costs beside its size, in the same unit.
TABLE = 750.0
#: No further round of merging that saves less than this share.
WORTH = 0.01
MAX_ROWS = 400


class Group(NamedTuple):
    """Receivers solved from one table, and all their sources."""

    members: np.ndarray
    sources: np.ndarray
    rows: list[np.ndarray]  #: of each member: where its sources, in the order of its edges, stand among `sources`


def _merge(label: np.ndarray, connectome, n_own: int) -> tuple[np.ndarray, float, float]:
    """One round: every group joins the one it saves most with, where that is mutual. Labels, cost before, saved."""
    n_groups = int(label.max()) + 1
    shape = (n_groups, connectome.n_neurons)
    ones = np.ones(len(connectome.senders), np.float32)
    hears = sp.csr_matrix((ones, (label[connectome.receivers], connectome.senders)), shape=shape)
    hears.sum_duplicates()
    hears.data[:] = 1.0
    rows = np.diff(hears.indptr) + (n_own + 1) * np.bincount(label, minlength=n_groups) + 1.0
    cost = rows**2 + ROW * rows + TABLE
    shared = (hears @ hears.T).tocoo()
    upper = shared.row < shared.col
    a, b, both = shared.row[upper], shared.col[upper], shared.data[upper]
    joint = rows[a] + rows[b] - 1.0 - both
    saved = cost[a] + cost[b] - (joint**2 + ROW * joint + TABLE)
    order = np.flatnonzero((saved > 0) & (joint <= MAX_ROWS))
    order = order[np.argsort(-saved[order], kind="stable")]
    a, b, saved = a[order], b[order], saved[order]
    # A pair merges where it is the best of both: at the first place where either occurs.
    place = np.arange(len(a))
    first = np.full(n_groups, len(a))
    np.minimum.at(first, a, place)
    np.minimum.at(first, b, place)
    mutual = (first[a] == place) & (first[b] == place)
    joined = np.arange(n_groups)
    joined[b[mutual]] = a[mutual]
    return np.unique(joined[label], return_inverse=True)[1], float(cost.sum()), float(saved[mutual].sum())


@per_recording
def groups(connectome, n_own: int) -> list[Group]:
    """Groups of receivers, the largest tables first; found once per connectome.

    Args:
        n_own: columns that every neuron has for itself beside its target and the shared constant.
    """
    label = np.arange(connectome.n_neurons)
    cost, saved = 1.0, 1.0
    while saved > WORTH * cost:
        label, cost, saved = _merge(label, connectome, n_own)
    first = np.searchsorted(connectome.receivers, np.arange(connectome.n_neurons + 1))
    order = np.argsort(label, kind="stable")
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        heard = [connectome.senders[first[i] : first[i + 1]] for i in members]
        sources, where = np.unique(np.concatenate(heard), return_inverse=True)
        found.append(Group(members, sources, np.split(where, np.cumsum([len(h) for h in heard])[:-1])))
    return sorted(found, key=lambda g: -(len(g.sources) + (n_own + 1) * len(g.members)))

"""Groups of receivers with common sources, whose tables of products are computed together.

Neighbouring neurons have mostly the same sources, so the products of their regressors overlap, and matrix products
run two to three times as fast on tables of 100 rows as on the 35 of a typical neuron. Grouping is exact: every
neuron's own table is a part of its group's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from flyjax.recovery.samples import per_recording

#: Cost of a row, in products: gathering it, and the lower speed on small tables (measured in float64: 0.02 us a
#: product and 1,000 frames, 1.6 us a row).
ROW = 80.0
#: Cost of a table beside its size, in the same unit.
TABLE = 750.0
#: Merging ends when a round saves less than this share of the cost.
MIN_SAVING = 0.01
MAX_ROWS = 400


class Group(NamedTuple):
    """Receivers that share one table: all their sources, own columns and target of each member, the constant."""

    members: Int[np.ndarray, " M"]
    sources: Int[np.ndarray, " S"]
    source_rows: list[np.ndarray]  #: per member: positions of its sources, in the order of its edges, in `sources`

    def size(self, n_own: int) -> int:
        """Rows of the table."""
        return len(self.sources) + (n_own + 1) * len(self.members) + 1

    def member_rows(self, n_own: int) -> list[np.ndarray]:
        """Rows of each member's own table: sources, own columns, the constant, the target."""
        starts = len(self.sources) + (n_own + 1) * np.arange(len(self.members))
        own, constant = np.arange(n_own), self.size(n_own) - 1
        return [
            np.concatenate([rows, start + own, [constant, start + n_own]])
            for rows, start in zip(self.source_rows, starts, strict=True)
        ]


def _merge(label: np.ndarray, connectome, n_own: int) -> tuple[np.ndarray, float, float]:
    """One round in which pairs of groups merge that save most with each other: labels, cost before, saving."""
    n_groups = int(label.max()) + 1
    shape = (n_groups, connectome.n_neurons)
    ones = np.ones(len(connectome.senders), np.float32)
    has_source = sp.csr_matrix((ones, (label[connectome.receivers], connectome.senders)), shape=shape)
    has_source.sum_duplicates()
    has_source.data[:] = 1.0
    rows = np.diff(has_source.indptr) + (n_own + 1) * np.bincount(label, minlength=n_groups) + 1.0
    cost = rows**2 + ROW * rows + TABLE
    shared = sp.triu(has_source @ has_source.T, k=1, format="coo")
    a, b = shared.row, shared.col
    joint = rows[a] + rows[b] - 1.0 - shared.data
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
def receiver_groups(connectome, n_own: int) -> list[Group]:
    """Groups of receivers, the largest tables first; computed once per connectome.

    `n_own` is the number of columns that every neuron has for itself beside its target and the shared constant.
    """
    label = np.arange(connectome.n_neurons)
    cost, saved = 1.0, 1.0
    while saved > MIN_SAVING * cost:
        label, cost, saved = _merge(label, connectome, n_own)
    first = np.searchsorted(connectome.receivers, np.arange(connectome.n_neurons + 1))
    order = np.argsort(label, kind="stable")
    groups = []
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        senders = [connectome.senders[first[i] : first[i + 1]] for i in members]
        sources, position = np.unique(np.concatenate(senders), return_inverse=True)
        groups.append(Group(members, sources, np.split(position, np.cumsum([len(s) for s in senders])[:-1])))
    return sorted(groups, key=lambda group: -group.size(n_own))

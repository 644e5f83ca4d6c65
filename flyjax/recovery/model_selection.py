"""Which of several networks would have been chosen without the truth, and what that costs.

A real recording has no W to compare with: held-out prediction and the loss are all there is. Published searches choose
on the ground truth; this says how much of their result is that choice. Only networks of one simulation compare: another
stimulus is easier or harder to predict. The loss itself is a norm over batch and neurons and grows with the noise of the
recording, so it is taken as `final_error` (`flyjax.training.halving.relative_error`, which halving ranks by).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

#: What can be seen without the truth, and whether more is better.
BLIND = {"test_R2": True, "one_step_R2": True, "final_error": False}


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):  # ties share their mean rank
        ranks[values == value] = ranks[values == value].mean()
    return ranks


def selection(networks: Mapping[Hashable, Mapping], target: str = "connectivity_R2") -> list[dict]:
    """Rows: chosen on the truth, then on each blind metric.

    Args:
        networks: metrics by the name of a node or seed, of one simulation; those without `target` are left out.
        target: the metric of the truth.

    **Returns:** per row `chosen_on`, `chosen`, `value` of `target` there, `lost` against the best, `rank` by
    `target` (1 is best), `of` networks that have both, and `spearman` of the criterion with `target` (None below three
    networks, or where one of them is constant).
    """
    known = {name: m for name, m in networks.items() if m.get(target) is not None}
    if not known:
        return []
    best = max(m[target] for m in known.values())
    rows = []
    for criterion, more in {target: True, **BLIND}.items():
        names = [name for name, m in known.items() if m.get(criterion) is not None]
        if not names:
            continue
        truth = np.array([known[name][target] for name in names])
        seen = np.array([known[name][criterion] for name in names]) * (1 if more else -1)
        chosen = int(np.argmax(seen))
        a, b = _ranks(truth), _ranks(seen)
        related = len(names) >= 3 and a.std() > 0 and b.std() > 0
        rows.append(
            {
                "chosen_on": criterion, "chosen": names[chosen], "value": float(truth[chosen]), "lost": float(best - truth[chosen]),
                "rank": int(np.sum(truth > truth[chosen])) + 1, "of": len(names),
                "spearman": float(np.corrcoef(a, b)[0, 1]) if related else None,
            }
        )  # fmt: skip
    return rows

"""Which of several networks each criterion would choose, and what choosing without ground truth costs.

A real recording has no W to compare with, only held-out prediction and the loss, while published searches choose on the
ground truth. Only networks of one simulation compare: another stimulus is easier or harder to predict. The loss is a
norm over batch and neurons and grows with the noise of the recording, so it is taken as `final_error`
(`flyjax.training.sweep.relative_error`, which successive halving ranks by).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from flyjax.utils.metric_names import BLIND_CRITERIA


def selection(networks: Mapping[Any, Mapping], target: str = "connectivity_R2") -> list[dict]:
    """Rows: the choice on the ground truth, then on each criterion that needs none.

    **Arguments:**

    - `networks`: metrics by the name of a node or seed, of one simulation; those without `target` are left out.
    - `target`: the metric of the ground truth.

    **Returns:**

    Per row `chosen_on`, `chosen`, `value` of `target` there, `regret` (best value less this one), `rank` by `target`
    (1 is best), `of` networks that have both metrics, and `spearman` correlation of the criterion with `target` (None
    below three networks, or where one of them is constant).
    """
    known = {name: m for name, m in networks.items() if m.get(target) is not None}
    rows = []
    for criterion, more_is_better in {target: True, **BLIND_CRITERIA}.items():
        names = [name for name, m in known.items() if m.get(criterion) is not None]
        if not names:
            continue
        truth = np.array([known[name][target] for name in names])
        score = np.array([known[name][criterion] for name in names]) * (1 if more_is_better else -1)
        best = int(np.argmax(score))
        varies = len(names) >= 3 and truth.std() > 0 and score.std() > 0
        rows.append(
            {
                "chosen_on": criterion,
                "chosen": names[best],
                "value": float(truth[best]),
                "regret": float(max(m[target] for m in known.values()) - truth[best]),
                "rank": int(np.sum(truth > truth[best])) + 1,
                "of": len(names),
                "spearman": float(spearmanr(truth, score).statistic) if varies else None,
            }
        )
    return rows

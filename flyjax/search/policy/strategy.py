"""Which strategy each of the K slots follows, by the strategy table of the run's protocol.

`deal` reads the rules as data: an edited row changes what comes next.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import numpy as np

from flyjax.search.journal.state import Node, State
from flyjax.search.policy.ucb import (
    Scored,
    best_node,
    branching_rate,
    improvement_rate,
    plateau,
    quarter,
    reruns,
    rewards,
    scores,
    successes,
    trained_iterations,
)
from flyjax.search.proposals.types import ROOT
from flyjax.search.protocol.document import Rules
from flyjax.search.protocol.rule_table import Condition, Rule

#: Of several rows that hold the slots go in this order; the Default row takes what is left.
ORDER = ("robustness-test", "failure-probe", "explore", "force-branch")
_OPS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}


@dataclass(frozen=True)
class Slot:
    """One proposal to make: from which parent, by which strategy, because of which row."""

    strategy: str
    parent: int | str
    because: str
    factor: float = 10.0


def holds(condition: Condition, state: State, block: int, n_iter_block: int) -> bool:
    """Whether a condition holds in a block; what cannot be measured does not hold."""
    if condition.last_block:
        block, condition = block - 1, replace(condition, last_block=False)
    test, values = _OPS[condition.op], rewards(state, block)
    match condition.kind:
        case "default":
            return True
        case "successes":
            return _run(values, test, condition.value) >= condition.iterations(n_iter_block)
        case "branching":
            rate = branching_rate(state, block, quarter(n_iter_block))
            return rate is not None and test(rate, condition.value)
        case "improvement":
            rate = improvement_rate(values)
            return rate is not None and test(rate, condition.value)
        case "plateau":
            return plateau(values, condition.value) >= condition.count
        case "good_config" | "best":
            best = best_node(state, block)
            return best is not None and test(best.reward, condition.value)
    raise ValueError(f"unknown condition {condition.kind!r}")


def _run(values, test, threshold) -> int:
    # `>=` is the common case and the one the measures use.
    if test is operator.ge:
        return successes(values, threshold)
    count = 0
    while count < len(values) and test(values[-1 - count], threshold):
        count += 1
    return count


def recent_nodes(state: State, block: int, window: int) -> list[Node]:
    """Nodes of the block's last `window` trained iterations."""
    recent = trained_iterations(state, block)[-window:]
    return [state.nodes[i] for number in recent for i in state.iterations[number].nodes]


def _slot(row: Rule, state: State, block: int, n_iter_block: int, ranked: list[Scored], rng) -> Slot | None:
    """The slot a row asks for; None where its action has nothing to act on."""
    window, top, text = quarter(n_iter_block), ranked[0].node.id, row.text.strip()
    if row.strategy == "robustness-test":
        best = best_node(state, block)
        if best is None or len(reruns(state, best)) > 1:
            return None
        return Slot(row.strategy, best.id, text)
    recent = recent_nodes(state, block, window)
    if row.strategy in ("failure-probe", "force-branch") and any(n.strategy == row.strategy for n in recent):
        return None  # else a condition that holds for a whole block would leave nothing to exploit at K = 1
    if row.strategy == "failure-probe":
        return Slot(row.strategy, top, text, row.factor)
    if row.strategy == "explore":
        late = {n.id for n in recent}
        older = [s.node.id for s in ranked if s.node.id not in late]
        return Slot(row.strategy, older[0], text) if older else None
    if row.strategy == "force-branch":
        last = state.chosen(trained_iterations(state, block)[-1]).id
        others = [s.node.id for s in ranked[: row.top] if s.node.id != last]
        return Slot(row.strategy, others[int(rng.integers(len(others)))], text) if others else None
    return Slot(row.strategy, top, text)


def deal(
    rules: Rules, state: State, block: int, k: int, *, n_iter_block: int, ucb_c: float, rng: np.random.Generator
) -> list[Slot]:
    """K slots for the iteration after the block's newest one.

    One slot for every strategy with a row that holds, in the order of `ORDER` (of several such rows the
    first that has something to act on), and the highest UCB node for the rest. A block without trained
    nodes gives `root` to all.
    """
    ranked = scores(state, block, ucb_c)
    if not ranked:
        return [Slot("exploit", ROOT, "a block begins at its root")] * k
    slots = []
    for strategy in (*ORDER, "exploit"):
        rows = (r for r in rules.usable if r.strategy == strategy and not r.is_default)
        rows = (r for r in rows if all(holds(c, state, block, n_iter_block) for c in r.conditions))
        slot = next((s for r in rows if (s := _slot(r, state, block, n_iter_block, ranked, rng))), None)
        if slot is not None and len(slots) < k:
            slots.append(slot)
    default = next((r.text.strip() for r in rules.usable if r.is_default), "Default")
    return slots + [Slot("exploit", ranked[0].node.id, default)] * (k - len(slots))

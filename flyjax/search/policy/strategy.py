"""Which strategy each of the K slots follows, by the strategy table of the run's protocol.

`assign_slots` reads the rules as data: an edited row changes what comes next.
"""

import operator
from dataclasses import dataclass, replace

import numpy as np

from flyjax.search.journal.state import State
from flyjax.search.policy.measures import (
    best_node,
    branching_rate,
    consecutive,
    improvement_rate,
    iteration_rewards,
    plateau,
    quarter,
    reruns,
    trained_iterations,
)
from flyjax.search.policy.ucb import Scored, scores
from flyjax.search.proposals.types import ROOT
from flyjax.search.protocol.document import Rules
from flyjax.search.protocol.rule_table import Condition, Rule

#: Of several rows that hold the slots go in this order; the Default row takes the rest.
ORDER = ("robustness-test", "failure-probe", "explore", "force-branch")
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}


@dataclass(frozen=True)
class Slot:
    """One proposal to make: from which parent and by which strategy."""

    strategy: str
    parent: int | str
    factor: float = 10.0  # of a failure-probe
    anywhere: bool = False  # whether the mutation may lead anywhere in the ranges


def condition_holds(condition: Condition, state: State, block: int, n_iter_block: int) -> bool:
    """Whether a condition holds in a block; what cannot be measured does not hold."""
    if condition.last_block:
        block, condition = block - 1, replace(condition, last_block=False)
    values = iteration_rewards(state, block)
    measured: float | None
    match condition.kind:
        case "default":
            return True
        case "plateau":
            return plateau(values, condition.value) >= (condition.count or 0)
        case "successes":
            run = consecutive(values, lambda value: _OPERATORS[condition.op](value, condition.value))
            return run >= condition.iterations(n_iter_block)
        case "branching":
            measured = branching_rate(state, block, quarter(n_iter_block))
        case "improvement":
            measured = improvement_rate(values)
        case _:  # good_config, best
            best = best_node(state, block)
            measured = None if best is None else best.reward
    return measured is not None and _OPERATORS[condition.op](measured, condition.value)


def _slot(
    row: Rule, state: State, block: int, n_iter_block: int, ranked: list[Scored], rng: np.random.Generator
) -> Slot | None:
    """The slot that a row asks for; None where its action has nothing to act on."""
    done = trained_iterations(state, block)
    recent = [state.nodes[i] for number in done[-quarter(n_iter_block) :] for i in state.iterations[number].nodes]
    if row.strategy in ("failure-probe", "force-branch") and any(n.strategy == row.strategy for n in recent):
        return None  # else a condition that holds for a whole block would leave nothing to exploit at K = 1
    candidates = [s.node.id for s in ranked]
    match row.strategy:
        case "robustness-test":
            best = best_node(state, block)
            return None if best is None or len(reruns(state, best)) > 1 else Slot(row.strategy, best.id)
        case "failure-probe":
            return Slot(row.strategy, candidates[0], row.factor)
        case "explore":
            newer = {n.id for n in recent}
            candidates = [i for i in candidates if i not in newer][:1]
        case "force-branch":
            last = state.chosen(done[-1]).id
            candidates = [i for i in candidates[: row.top] if i != last]
            return Slot(row.strategy, candidates[int(rng.integers(len(candidates)))]) if candidates else None
    return Slot(row.strategy, candidates[0]) if candidates else None


def assign_slots(
    rules: Rules, state: State, block: int, k: int, *, n_iter_block: int, ucb_c: float, rng: np.random.Generator
) -> list[Slot]:
    """K slots for the iteration after the block's newest one.

    One slot for every strategy with a row that holds, in the order of `ORDER` (of several such rows the first that
    has something to act on), and the node of the highest UCB for the rest. A block without trained nodes gives
    `root` to all.
    """
    ranked = scores(state, block, ucb_c)
    if not ranked:
        return [Slot("exploit", ROOT)] * k
    slots: list[Slot] = []
    for strategy in (*ORDER, "exploit"):
        rows = (r for r in rules.usable if r.strategy == strategy and not r.is_default)
        rows = (r for r in rows if all(condition_holds(c, state, block, n_iter_block) for c in r.conditions))
        slot = next((s for r in rows if (s := _slot(r, state, block, n_iter_block, ranked, rng))), None)
        if slot is not None and len(slots) < k:
            slots.append(slot)
    return slots + [Slot("exploit", ranked[0].node.id)] * (k - len(slots))

"""What the rules of a search are evaluated by: branching, improvement, plateau, success and noise.

Measures are block-local and count trained nodes only. Windows count iterations; an iteration's R2 is the reward
of the node that its step chose (before the step: of its best node).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from flyjax.search.journal.state import Node, State
from flyjax.search.policy.ucb import score


def comparable_rewards(nodes: Iterable[Node]) -> dict[int, float]:
    """Node id -> reward for comparisons: a failed node counts 0, as in UCB, but never more than the worst reward.

    An R2 can be negative (of a held-out prediction, for example), and no result is not better than a bad one.
    """
    nodes = list(nodes)
    failed = min([0.0, *(score(n) for n in nodes if n.reward is not None)])
    return {n.id: failed if n.reward is None else score(n) for n in nodes}


def quarter(n_iter_block: int) -> int:
    """n_iter_block / 4 as the protocol means it: max(2, ceil(n / 4)) iterations."""
    return max(2, math.ceil(n_iter_block / 4))


def trained_iterations(state: State, block: int) -> list[int]:
    """Numbers of the block's iterations whose nodes are all trained."""
    if block not in state.blocks:
        return []
    running = state.pending.number if state.pending else None
    return [i for i in state.blocks[block].iterations if i != running]


def iteration_rewards(state: State, block: int) -> list[float]:
    """R2 of each trained iteration of the block, in order (`comparable_rewards`)."""
    reward = comparable_rewards(state.block_nodes(block))
    return [reward[state.chosen(i).id] for i in trained_iterations(state, block)]


# --- measures of a list of rewards ---


def consecutive(values: Sequence[float], holds: Callable[[float], bool]) -> int:
    """How many values at the end satisfy a condition without interruption."""
    return sum(1 for _ in takewhile(holds, reversed(values)))


def successes(values: Sequence[float], threshold: float = 0.9) -> int:
    """How many values at the end are >= threshold."""
    return consecutive(values, lambda value: value >= threshold)


def plateau(values: Sequence[float], tolerance: float = 0.05) -> int:
    """How many values at the end fit into one band of +- tolerance."""
    # 1e-9: a band of exactly +- tolerance counts, whatever the rounding.
    bands = (max(values[-n:]) - min(values[-n:]) for n in range(1, len(values) + 1))
    return sum(1 for _ in takewhile(lambda width: width <= 2 * tolerance + 1e-9, bands))


def _gains(values: Sequence[float]) -> list[float]:
    """What each value (after the first) adds to the best before it."""
    return [v - max(values[:k]) for k, v in enumerate(values) if k]


def improvement_rate(values: Sequence[float]) -> float | None:
    """Share of iterations (after the first) whose R2 exceeds all before them."""
    gains = _gains(values)
    return sum(gain > 0 for gain in gains) / len(gains) if gains else None


# --- measures of a block or a run ---


def branching_rate(state: State, block: int, window: int) -> float | None:
    """Share of the last `window` iterations whose chosen node's parent is not the node chosen just before.

    The block's first iteration has none before it and is not counted.
    """
    recent = list(pairwise(trained_iterations(state, block)))[-window:]
    if not recent:
        return None
    return sum(state.chosen(b).parent != state.chosen(a).id for a, b in recent) / len(recent)


@dataclass(frozen=True)
class Measures:
    """The measures of a block. Rates are None where no iteration could be counted."""

    branching: float | None  # share of the last n/4 iterations that left the sequential path
    improvement: float | None  # share of iterations above the best of the block before them
    plateau: int  # iterations at the end that stay within +- 0.05 of each other
    successes: int  # consecutive iterations at the end with R2 >= 0.9
    best: float | None
    noise: int = 0  # improvements that are within the noise

    def describe(self) -> str:
        """The measures in one line, as the log and the prompt quote them."""

        def share(x: float | None) -> str:
            return "not measurable" if x is None else f"{x:.0%}"

        return (
            f"branching rate {share(self.branching)}, improvement rate {share(self.improvement)}"
            f"{f' ({self.noise} of the improvements noise)' if self.noise else ''}, "
            f"plateau {self.plateau} iteration{'' if self.plateau == 1 else 's'}"
        )


def measure(state: State, block: int) -> Measures:
    """All measures of a block in its present state."""
    values, clear = iteration_rewards(state, block), clear_gain(state, block)
    return Measures(
        branching_rate(state, block, quarter(state.n_iter_block)),
        improvement_rate(values),
        plateau(values),
        successes(values),
        max((score(n) for n in state.block_nodes(block) if n.reward is not None), default=None),
        sum(0 < gain <= clear for gain in _gains(values)),
    )


def iterations_without_improvement(state: State) -> int:
    """Trained iterations at the end of the run since the last improvement beyond noise.

    An iteration improves where its best node exceeds, by more than `clear_gain`, what its block had reached;
    the first of a block is compared with what the run had reached.
    """
    count, run_best, reward = 0, -math.inf, comparable_rewards(state.nodes.values())
    for block in sorted(state.blocks):
        clear, best = clear_gain(state, block), run_best
        for number in trained_iterations(state, block):
            top = max(reward[i] for i in state.iterations[number].nodes)
            improved = top > best + clear
            count = 0 if improved else count + 1
            # A value within noise of the best does not move it: small steps add up to an improvement.
            best = top if improved or number == state.blocks[block].iterations[0] else best
            run_best = max(run_best, best)
    return count


# --- the best node and the noise ---


def best_node(state: State, block: int | None = None) -> Node | None:
    """The node of the highest reward, of a block or of the run; of equal rewards the older node."""
    nodes = state.nodes.values() if block is None else state.block_nodes(block)
    return max((n for n in nodes if n.reward is not None), key=lambda n: (n.reward, -n.id), default=None)


def best_configuration(nodes: Iterable[Node]) -> Node | None:
    """The newest node of the configuration with the best mean reward over its repetitions within a block.

    One lucky draw loses to a configuration that is as good when it is run again.
    """
    pools: dict[tuple, list[Node]] = {}
    trained = [node for node in nodes if node.status != "running"]
    for node in trained:
        pools.setdefault((node.block, *sorted(node.config.items())), []).append(node)
    reward = comparable_rewards(trained)
    best = max(pools.values(), key=lambda p: (sum(reward[n.id] for n in p) / len(p), -p[0].id), default=None)
    return best[-1] if best and any(n.reward is not None for n in best) else None


def reruns(state: State, node: Node) -> list[Node]:
    """The block's trained nodes with exactly this node's configuration, itself among them."""
    return [n for n in state.block_nodes(node.block) if n.config == node.config]


def noise_floor(state: State, block: int) -> float | None:
    """Standard deviation of the reward over repetitions of one configuration; None where none was repeated."""
    return noise_estimate(state, block)[0]


def clear_gain(state: State, block: int) -> float:
    """An improvement has to exceed this to be more than noise: twice the noise floor, 0 where none is known."""
    return 2 * (noise_floor(state, block) or 0.0)


def noise_estimate(state: State, block: int) -> tuple[float | None, int]:
    """The noise floor of a block and its degrees of freedom.

    Pooled over all configurations that ran more than once: seeds of one node (the root has two), robustness-tests.
    A node with a failed seed is left out: how often a configuration fails says nothing on the spread of the others.
    """
    squares, freedom = 0.0, 0
    repeated: dict[tuple, list[float]] = {}
    for node in state.block_nodes(block):
        if node.spread.get("failed_seeds"):
            continue
        if "std" in node.spread:
            squares += (node.spread["n"] - 1) * node.spread["std"] ** 2
            freedom += int(node.spread["n"]) - 1
        if node.reward is not None:
            repeated.setdefault(tuple(sorted(node.config.items())), []).append(node.reward)
    for values in repeated.values():
        mean = sum(values) / len(values)
        squares += sum((v - mean) ** 2 for v in values)
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else None), freedom

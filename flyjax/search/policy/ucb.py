"""The tree of a block: visits, UCB scores and the measures that rules are judged by.

Everything is block-local and counts trained nodes only. Windows count iterations; an iteration's
R2 is the reward of the node its step chose (before the step: of its best node).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flyjax.search.journal.state import Node, State

UCB_FORMULA = "UCB = R2 + c * sqrt(ln(N_total) / visits)"


def score(node: Node) -> float:
    """The reward as UCB counts it: 0 for a node that failed or has no finite objective."""
    return node.reward if node.reward is not None and math.isfinite(node.reward) else 0.0


def worths(nodes: Iterable[Node]) -> dict[int, float]:
    """Node id -> reward, for comparisons: a failed node's is 0 as in UCB, and never above the worst that has one.

    An R2 can be negative (held-out prediction, say), and no result is not better than a bad one.
    """
    nodes = list(nodes)
    failed = min([0.0, *(score(n) for n in nodes if n.reward is not None)])
    return {n.id: failed if n.reward is None else score(n) for n in nodes}


def ucb(r2: float, visits: int, n_total: int, c: float = 1.414) -> float:
    """R2 + c sqrt(ln(N_total) / visits), the one formula of every score, prompt and report."""
    return r2 + c * math.sqrt(math.log(max(n_total, 1)) / max(visits, 1))


def quarter(n_iter_block: int) -> int:
    """n_iter_block / 4 as the protocol means it: max(2, ceil(n / 4)) iterations."""
    return max(2, math.ceil(n_iter_block / 4))


def visits(nodes: list[Node]) -> dict[int, int]:
    """How often each node or a descendant of it was explored, within the given nodes."""
    known = {n.id: n for n in nodes}
    count = dict.fromkeys(known, 0)
    for node in nodes:
        seen, here = set(), node.id
        while here in known and here not in seen:
            seen.add(here)
            count[here] += 1
            here = known[here].parent
    return count


@dataclass(frozen=True)
class Scored:
    """A node with its place in the tree."""

    node: Node
    ucb: float
    visits: int
    current: bool

    @property
    def line(self) -> str:
        mark = " [CURRENT]" if self.current else ""
        return (
            f"Node {self.node.id}: UCB={self.ucb:.3f}, parent={self.node.parent}, "
            f"visits={self.visits}, R2={score(self.node):.3f}{mark}"
        )


def scores(state: State, block: int, c: float = 1.414) -> list[Scored]:
    """The block's trained nodes by descending UCB; of equal ones the older first."""
    nodes = state.block_nodes(block)
    count, newest = visits(nodes), max((n.iteration for n in nodes), default=0)
    out = [Scored(n, ucb(score(n), count[n.id], len(nodes), c), count[n.id], n.iteration == newest) for n in nodes]
    return sorted(out, key=lambda s: (-s.ucb, s.node.id))


def ucb_lines(state: State, c: float = 1.414) -> list[str]:
    """The lines of ucb_scores.txt; none where a block's last iteration is trained, or none of its nodes."""
    newest = state.iteration
    if newest is None:
        return []
    n_iter_block = state.experiment.get("search", {}).get("n_iter_block", 12)
    if newest.iter_in_block >= n_iter_block and state.pending is None:
        return []
    return [s.line for s in scores(state, newest.block, c)]


@dataclass(frozen=True)
class Measures:
    """What a block's rules are judged by. Rates are None where nothing could be counted."""

    branching: float | None  # share of the last n/4 iterations that left the sequential path
    improvement: float | None  # share of iterations above the best of the block before them
    plateau: int  # iterations at the end that stay within +- tolerance of each other
    successes: int  # consecutive iterations at the end with R2 >= threshold
    best: float | None
    noise: int = 0  # of the improvements, those that are noise

    def describe(self) -> str:
        def share(x):
            return "not measurable" if x is None else f"{x:.0%}"

        return (
            f"branching rate {share(self.branching)}, improvement rate {share(self.improvement)}"
            f"{f' ({self.noise} of the improvements noise)' if self.noise else ''}, "
            f"plateau {self.plateau} iteration{'' if self.plateau == 1 else 's'}"
        )


def trained_iterations(state: State, block: int) -> list[int]:
    """Numbers of the block's iterations whose nodes are all trained."""
    if block not in state.blocks:
        return []
    running = state.pending.number if state.pending else None
    return [i for i in state.blocks[block].iterations if i != running]


def rewards(state: State, block: int) -> list[float]:
    """R2 of each trained iteration of the block, in order; what failed is worth no more than the worst (`worths`)."""
    worth = worths(state.block_nodes(block))
    return [worth[state.chosen(i).id] for i in trained_iterations(state, block)]


def successes(values: list[float], threshold: float = 0.9) -> int:
    """How many values at the end are >= threshold."""
    count = 0
    for value in reversed(values):
        if value < threshold:
            break
        count += 1
    return count


def plateau(values: list[float], tolerance: float = 0.05) -> int:
    """How many values at the end fit into one band of +- tolerance."""
    count, low, high = 0, math.inf, -math.inf
    for value in reversed(values):
        low, high = min(low, value), max(high, value)
        # 1e-9: a band of exactly +- tolerance counts, whatever the rounding.
        if high - low > 2 * tolerance + 1e-9:
            break
        count += 1
    return count


def branching_rate(state: State, block: int, window: int) -> float | None:
    """Share of the last `window` iterations whose chosen node's parent is not the node chosen just before.

    The block's first iteration has nothing before it and is not counted.
    """
    done = trained_iterations(state, block)
    pairs = [(a, b) for a, b in zip(done, done[1:])]
    recent = [(a, b) for a, b in pairs if b in done[-window:]]
    if not recent:
        return None
    return sum(state.chosen(b).parent != state.chosen(a).id for a, b in recent) / len(recent)


def improvement_rate(values: list[float]) -> float | None:
    """Share of iterations (after the first) whose R2 exceeds all before them."""
    gains = _gains(values)
    return sum(gain > 0 for gain in gains) / len(gains) if gains else None


def _gains(values: list[float]) -> list[float]:
    """What each value (after the first) adds to the best before it."""
    return [v - max(values[:k]) for k, v in enumerate(values) if k]


def clear_gain(state: State, block: int) -> float:
    """An improvement has to exceed this to be more than noise: twice the noise floor, 0 where none is known."""
    return 2 * (noise_floor(state, block) or 0.0)


def measure(state: State, block: int, *, threshold: float = 0.9, tolerance: float = 0.05) -> Measures:
    """All measures of a block as it stands."""
    values = rewards(state, block)
    n_iter_block = state.experiment.get("search", {}).get("n_iter_block", 12)
    return Measures(
        branching_rate(state, block, quarter(n_iter_block)),
        improvement_rate(values),
        plateau(values, tolerance),
        successes(values, threshold),
        max((score(n) for n in state.block_nodes(block) if n.reward is not None), default=None),
        sum(0 < gain <= clear_gain(state, block) for gain in _gains(values)),
    )


def stale(state: State) -> int:
    """Trained iterations at the end of the run since the last improvement beyond noise.

    An iteration improves where its best node exceeds, by more than `clear_gain`, what its block had reached;
    the first of a block is compared with what the run had reached.
    """
    count, run_best, worth = 0, -math.inf, worths(state.nodes.values())
    for block in sorted(state.blocks):
        clear, best = clear_gain(state, block), run_best
        for number in trained_iterations(state, block):
            top = max(worth[i] for i in state.iterations[number].nodes)
            improved = top > best + clear
            count = 0 if improved else count + 1
            # What stays within noise of the best does not move it: small steps add up to an improvement.
            best = top if improved or number == state.blocks[block].iterations[0] else best
            run_best = max(run_best, best)
    return count


def best_node(state: State, block: int | None = None) -> Node | None:
    """The node of the highest reward, of a block or of the run; of equal ones the older."""
    nodes = state.nodes.values() if block is None else state.block_nodes(block)
    scored = [n for n in nodes if n.reward is not None]
    return max(scored, key=lambda n: (n.reward, -n.id), default=None)


def best_configuration(state: State) -> Node | None:
    """The newest node of the configuration whose repetitions within a block have the best mean reward.

    One lucky draw loses to a configuration that held when it was run again.
    """
    pools: dict[tuple, list[Node]] = {}
    for node in state.nodes.values():
        if node.status != "running":
            pools.setdefault((node.block, *sorted(node.config.items())), []).append(node)
    worth = worths(state.nodes.values())
    best = max(pools.values(), key=lambda p: (sum(worth[n.id] for n in p) / len(p), -p[0].id), default=None)
    return best[-1] if best and any(n.reward is not None for n in best) else None


def reruns(state: State, node: Node) -> list[Node]:
    """The block's trained nodes with exactly this node's configuration, itself among them."""
    return [n for n in state.block_nodes(node.block) if n.config == node.config]


def noise_floor(state: State, block: int) -> float | None:
    """Standard deviation of the reward over repetitions of one configuration of the block; None where none ran twice."""
    return noise_estimate(state, block)[0]


def noise_estimate(state: State, block: int) -> tuple[float | None, int]:
    """(noise floor, degrees of freedom behind it).

    Pooled over all configurations that ran more than once (the root's seeds, others', robustness-tests). An improvement below twice this value is noise (`clear_gain`). Nodes that lost
    a seed are left out: how often a configuration fails says nothing on the spread of the others.
    """
    squares, freedom, twins = 0.0, 0, {}
    for node in state.block_nodes(block):
        if node.spread.get("lost"):
            continue
        n, std = node.spread.get("n", 0), node.spread.get("std")
        if std is not None:
            squares, freedom = squares + (n - 1) * std**2, freedom + n - 1
        if node.reward is not None:
            twins.setdefault(tuple(sorted(node.config.items())), []).append(node.reward)
    for values in twins.values():
        mean = sum(values) / len(values)
        squares += sum((v - mean) ** 2 for v in values)
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else None), freedom

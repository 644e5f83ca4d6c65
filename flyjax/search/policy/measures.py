"""What the rules of a search are evaluated by: branching, improvement, plateau, success and noise.

Measures are block-local and count trained nodes only. Windows count iterations; an iteration's R2 is the reward
of the node that its step chose (before the step: of its best node).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from flyjax.search.journal.state import Node, State
from flyjax.search.policy.ucb import score
from flyjax.search.proposals.types import ROOT

COMPARABLE = 0.05  # rewards of configurations whose repetitions are pooled differ by less


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


def plateau(values: Sequence[float], tolerance: float = 0.05) -> int:
    """How many values at the end fit into one band of +- tolerance."""
    # 1e-9: a band of exactly +- tolerance counts, whatever the rounding.
    bands = (max(values[-n:]) - min(values[-n:]) for n in range(1, len(values) + 1))
    return sum(1 for _ in takewhile(lambda width: width <= 2 * tolerance + 1e-9, bands))


def improvement_rate(values: Sequence[float]) -> float | None:
    """Share of iterations (after the first) whose R2 exceeds all before them."""
    return sum(v > max(values[:k]) for k, v in enumerate(values) if k) / (len(values) - 1) if values[1:] else None


def chance_of_improvements(iterations: int) -> list[float]:
    """Probability of 0, 1, ... improvements if nothing changes: of equal draws the k-th is the best with 1/k."""
    out = [1.0]
    for k in range(2, iterations + 1):
        out = [stay * (1 - 1 / k) + more / k for stay, more in zip([*out, 0.0], [0.0, *out], strict=True)]
    return out


# --- measures of a block or a run ---


def _left_path(state: State, block: int) -> list[bool]:
    """Of each iteration after the block's first: its chosen node's parent is not the node chosen just before."""
    chosen = [state.chosen(number) for number in trained_iterations(state, block)]
    return [after.parent != before.id for before, after in pairwise(chosen)]


def branching_rate(state: State, block: int, window: int) -> float | None:
    """Share of the last `window` iterations that left the sequential path; the block's first is not counted."""
    recent = _left_path(state, block)[-window:]
    return sum(recent) / len(recent) if recent else None


@dataclass(frozen=True)
class Measures:
    """The measures of a block. Rates are None where no iteration could be counted.

    Each comes with the probability of such a value by chance. Improvements: if all iterations are draws of one
    distribution (`chance_of_improvements`). A sequential path, a plateau: if each iteration were as likely to leave
    it as to stay.
    """

    branching: float | None  # share of the last n/4 iterations that left the sequential path
    improvement: float | None  # share of iterations above the best of the block before them
    plateau: int  # iterations at the end that stay within +- 0.05 of each other
    successes: int  # consecutive iterations at the end with R2 >= 0.9
    best: float | None
    iterations: int = 0
    noise: int = 0  # improvements that are within the noise
    p_sequential: float = 1.0  # of as many sequential iterations at the block's end
    p_few: float = 1.0  # of as few improvements
    p_many: float = 1.0  # of as many improvements beyond noise
    p_plateau: float = 1.0

    def describe(self) -> str:
        """The measures in one line, as the log and the prompt quote them."""

        def share(x: float | None) -> str:
            return "not measurable" if x is None else f"{x:.0%}"

        noise = f", {self.noise} of the improvements noise" if self.noise else ""
        return (
            f"{self.iterations} iteration{'' if self.iterations == 1 else 's'}: "
            f"branching rate {share(self.branching)} (p {self.p_sequential:.2g}), "
            f"improvement rate {share(self.improvement)} (p {min(self.p_few, self.p_many):.2g}{noise}), "
            f"plateau {self.plateau} iteration{'' if self.plateau == 1 else 's'} (p {self.p_plateau:.2g}); "
            "p is the probability by chance"
        )


def measure(state: State, block: int) -> Measures:
    """All measures of a block in its present state."""
    values = iteration_rewards(state, block)
    chosen = [state.chosen(number) for number in trained_iterations(state, block)]
    improved = noise = 0
    for k in range(1, len(values)):
        best = max(range(k), key=values.__getitem__)
        improved += (gain := values[k] - values[best]) > 0
        noise += 0 < gain <= clear_gain(state, block, chosen[best], chosen[k])
    chances, stuck = chance_of_improvements(len(values)), plateau(values)
    return Measures(
        branching_rate(state, block, quarter(state.n_iter_block)),
        improvement_rate(values),
        stuck,
        consecutive(values, lambda value: value >= 0.9),
        max((score(n) for n in state.block_nodes(block) if n.reward is not None), default=None),
        iterations=len(values),
        noise=noise,
        p_sequential=0.5 ** consecutive([float(left) for left in _left_path(state, block)], lambda left: not left),
        p_few=sum(chances[: improved + 1]),
        p_many=sum(chances[improved - noise :]),
        p_plateau=0.5 ** max(0, stuck - 1),
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


def _seeds(node: Node) -> int:
    return int(node.spread.get("n", 1))


def _repetitions(state: State, block: int) -> list[tuple[list[Node], float, float, int]]:
    """(nodes, mean, sum of squares, degrees of freedom) of each configuration of a block that was trained repeatedly.

    The squares are those of all seeds, within a node and between nodes. A node with a failed seed is left out: how
    often a configuration fails says nothing on the spread of the others.
    """
    groups: dict[tuple, list[Node]] = {}
    for node in state.block_nodes(block):
        if node.reward is not None and not node.spread.get("failed_seeds"):
            groups.setdefault(tuple(sorted(node.config.items())), []).append(node)
    out = []
    for nodes in groups.values():
        known = [(_seeds(n), n.reward or 0.0, n.spread.get("std", 0.0)) for n in nodes]
        count = sum(n for n, _, _ in known)
        mean = sum(n * reward for n, reward, _ in known) / count
        squares = sum((n - 1) * std**2 + n * (reward - mean) ** 2 for n, reward, std in known)
        out.append((nodes, mean, squares, count - 1))
    return [found for found in out if found[-1]]


def noise_estimate(state: State, block: int) -> tuple[float | None, int]:
    """The noise floor of a block and its degrees of freedom.

    It is the standard deviation of a node's reward, the mean over its seeds, over repetitions of one configuration;
    None where none was repeated. Pooled over the best repeated configuration and those within `COMPARABLE` of it:
    poor configurations spread more. The root is used only where nothing else was repeated.
    """
    found = _repetitions(state, block)
    found = [f for f in found if all(n.strategy != ROOT for n in f[0])] or found
    best = max((mean for _, mean, _, _ in found), default=0.0)
    found = [f for f in found if f[1] >= best - COMPARABLE]
    freedom = sum(f[-1] for f in found)
    per_node = state.experiment.get("training", {}).get("n_seeds", 1)
    floor = math.sqrt(sum(squares for _, _, squares, _ in found) / freedom / per_node) if freedom else None
    return floor, freedom


def noise_floor(state: State, block: int) -> float | None:
    """The noise of a reward in a block (`noise_estimate`)."""
    return noise_estimate(state, block)[0]


def clear_gain(state: State, block: int, *nodes: Node) -> float:
    """An improvement has to exceed this to be more than noise; 0 where nothing was repeated.

    Twice the noise floor, or twice the noise of one of the compared `nodes` where its own repetitions spread more.
    """
    compared = {node.id for node in nodes}
    own = [
        math.sqrt(squares / freedom / _seeds(node))
        for same, _, squares, freedom in _repetitions(state, block)
        for node in same
        if node.id in compared
    ]
    return 2 * max([noise_floor(state, block) or 0.0, *own])

"""UCB scores of a block's nodes. A block is one tree: visits and N_total count its trained nodes alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flyjax.search.journal.state import Node, State

UCB_FORMULA = "UCB = R2 + c * sqrt(ln(N_total) / visits)"


def score(node: Node) -> float:
    """The reward as UCB counts it: 0 for a node that failed or has no finite objective."""
    return node.reward if node.reward is not None and math.isfinite(node.reward) else 0.0


def ucb(r2: float, visits: int, n_total: int, c: float = 1.414) -> float:
    """R2 + c sqrt(ln(N_total) / visits): the formula of every score, prompt and report (UCB1, Auer et al. 2002)."""
    return r2 + c * math.sqrt(math.log(max(n_total, 1)) / max(visits, 1))


def visits(nodes: Sequence[Node]) -> dict[int, int]:
    """How often each node or a descendant of it was explored, within the given nodes."""
    count = {node.id: 1 for node in nodes}
    for node in sorted(nodes, key=lambda n: n.id, reverse=True):  # children before their parents
        if node.parent in count and node.parent != node.id:
            count[node.parent] += count[node.id]
    return count


@dataclass(frozen=True)
class Scored:
    """A node with its UCB score; `current` marks the nodes of the newest iteration."""

    node: Node
    ucb: float
    visits: int
    current: bool

    @property
    def line(self) -> str:
        """The node's line of ucb_scores.txt."""
        mark = " [CURRENT]" if self.current else ""
        return (
            f"Node {self.node.id}: UCB={self.ucb:.3f}, parent={self.node.parent}, "
            f"visits={self.visits}, R2={score(self.node):.3f}{mark}"
        )


def scores(state: State, block: int, c: float = 1.414) -> list[Scored]:
    """The block's trained nodes by descending UCB; of equal scores the older node comes first."""
    nodes = state.block_nodes(block)
    count, newest = visits(nodes), max((n.iteration for n in nodes), default=0)
    out = [Scored(n, ucb(score(n), count[n.id], len(nodes), c), count[n.id], n.iteration == newest) for n in nodes]
    return sorted(out, key=lambda s: (-s.ucb, s.node.id))


def ucb_lines(state: State, c: float = 1.414) -> list[str]:
    """The lines of ucb_scores.txt; none at a block boundary."""
    newest = state.iteration
    if newest is None or (newest.iter_in_block >= state.n_iter_block and state.pending is None):
        return []
    return [s.line for s in scores(state, newest.block, c)]

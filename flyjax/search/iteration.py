"""An iteration as it is handed to the trainer: K nodes, one simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flyjax.config import Experiment, parse_experiment
from flyjax.search.journal.state import Node, State
from flyjax.search.policy.measures import best_node, iterations_without_improvement


def seeds_of(experiment: Experiment, is_root: bool) -> int:
    """How many trainings a node has; a block's root has two at least, so that its spread says what noise is."""
    return max(2, experiment.training.n_seeds) if is_root else experiment.training.n_seeds


@dataclass(frozen=True)
class IterationPlan:
    """What `evaluate` trains. The same plan comes again when a run resumes inside an iteration."""

    number: int
    block: int
    iter_in_block: int
    simulation: dict[str, Any]  # the whole simulation section of this block
    nodes: tuple[Node, ...]  # ids, whole training sections (`config`), seeds
    done: tuple[int, ...] = ()  # nodes whose result is journaled already; giving them again changes nothing

    @property
    def opens_block(self) -> bool:
        return self.iter_in_block == 1

    def experiment(self, base: Experiment, node: Node) -> Experiment:
        """The experiment of one node: the base with this block's simulation and the node's training."""
        data = base.model_dump(mode="json")
        return parse_experiment({**data, "simulation": self.simulation, "training": node.config}, f"node {node.id}")


def plan_of(state: State) -> IterationPlan | None:
    """The plan of the iteration in training, if there is one."""
    now = state.pending
    if now is None:
        return None
    nodes = tuple(state.nodes[i] for i in now.nodes)
    done = tuple(n.id for n in nodes if n.status != "running")
    simulation = state.blocks[now.block].simulation
    if "data_path" in simulation:
        # Where the videos lie today, not where they lay when the block began.
        simulation = {**simulation, "data_path": state.experiment["simulation"]["data_path"]}
    return IterationPlan(now.number, now.block, now.iter_in_block, simulation, nodes, done)


# --- how much comes next ---

EXHAUSTED = "every configuration of the space was tried"


def at_block_end(experiment: Experiment, state: State) -> bool:
    newest = state.iteration
    return newest is not None and newest.iter_in_block >= experiment.search.n_iter_block


def next_nodes(experiment: Experiment, state: State, wall_s: float) -> tuple[int, str]:
    """How many nodes the next iteration may have after `wall_s` seconds of work, and why none where it may not.

    An iteration is expected to take as long as the newest one did; the first one begins in any case.
    """
    search = experiment.search
    if at_block_end(experiment, state) and state.iteration.block >= search.n_blocks:
        return 0, f"{state.iteration.block} blocks done"  # n_blocks may be less by now
    if search.max_wall_s is not None:
        ahead = state.iteration.wall_s if state.iteration else 0.0
        if wall_s >= search.max_wall_s:
            return 0, f"search.max_wall_s={search.max_wall_s:g} reached"
        if wall_s + ahead > search.max_wall_s:
            return (
                0,
                f"search.max_wall_s={search.max_wall_s:g}: after {wall_s:.0f} s the next iteration would take about {ahead:.0f} s more",
            )
    best = best_node(state)
    if search.target is not None and best is not None and best.reward >= search.target:
        return 0, f"search.target={search.target:g} reached by node {best.id} ({search.objective} {best.reward:.3f})"
    idle = iterations_without_improvement(state)
    if search.patience is not None and idle >= search.patience:
        return 0, f"search.patience={search.patience}: {idle} iterations without an improvement beyond noise"
    left = search.n_candidates
    if search.max_nodes is not None:
        left = min(left, search.max_nodes - len(state.nodes))
    return (left, "") if left > 0 else (0, f"search.max_nodes={search.max_nodes} reached")

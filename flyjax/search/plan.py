"""An iteration as it is handed to the trainer: K nodes, one simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flyjax.config import Experiment, parse_experiment
from flyjax.search.state import Node, State


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
    return IterationPlan(now.number, now.block, now.iter_in_block, state.blocks[now.block].simulation, nodes, done)

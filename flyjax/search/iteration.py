"""An iteration as it is given to the trainer, and how many nodes the next one may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flyjax.config import Experiment
from flyjax.search.journal.state import Node, State
from flyjax.search.policy.measures import best_node, iterations_without_improvement
from flyjax.search.policy.ucb import score


def n_seeds(experiment: Experiment, is_root: bool) -> int:
    """Trainings per node; a block's root has two at least, so that their spread measures the noise."""
    return max(2, experiment.training.n_seeds) if is_root else experiment.training.n_seeds


@dataclass(frozen=True)
class IterationPlan:
    """What `evaluate` trains. A run that resumes inside an iteration gives the same plan again."""

    number: int
    block: int
    iter_in_block: int
    simulation: dict[str, Any]  # the simulation section of this block
    nodes: tuple[Node, ...]  # ids, training sections (`config`), seeds
    done: tuple[int, ...] = ()  # nodes whose result is in the journal already: another result of theirs is ignored


def pending_plan(state: State) -> IterationPlan:
    """The plan of the iteration in training."""
    now = state.pending
    assert now is not None
    nodes = tuple(state.nodes[i] for i in now.nodes)
    done = tuple(n.id for n in nodes if n.status != "running")
    simulation = state.blocks[now.block].simulation
    if "data_path" in simulation:
        # The folder of the videos today: it may have moved since the block began.
        simulation = {**simulation, "data_path": state.experiment["simulation"]["data_path"]}
    return IterationPlan(now.number, now.block, now.iter_in_block, simulation, nodes, done)


EXHAUSTED = "every configuration of the space was tried"


def at_block_end(experiment: Experiment, state: State) -> bool:
    """Whether the newest iteration is the last of its block."""
    newest = state.iteration
    return newest is not None and newest.iter_in_block >= experiment.search.n_iter_block


def next_nodes(experiment: Experiment, state: State, wall_s: float) -> tuple[int, str]:
    """How many nodes the next iteration may have after `wall_s` seconds of work, and why none where it may have none.

    An iteration is expected to take as long as the newest one did; the first one begins in any case.
    """
    search, newest, best = experiment.search, state.iteration, best_node(state)
    if newest is not None and at_block_end(experiment, state) and newest.block >= search.n_blocks:
        return 0, f"{newest.block} blocks done"  # n_blocks may be less by now
    if search.max_wall_s is not None:
        expected = newest.wall_s if newest else 0.0
        if wall_s >= search.max_wall_s:
            return 0, f"search.max_wall_s={search.max_wall_s:g} reached"
        if wall_s + expected > search.max_wall_s:
            why = f"after {wall_s:.0f} s the next iteration would take about {expected:.0f} s more"
            return 0, f"search.max_wall_s={search.max_wall_s:g}: {why}"
    if search.target is not None and best is not None and score(best) >= search.target:
        return 0, f"search.target={search.target:g} reached by node {best.id} ({search.objective} {score(best):.3f})"
    if search.patience is not None and (idle := iterations_without_improvement(state)) >= search.patience:
        return 0, f"search.patience={search.patience}: {idle} iterations without an improvement beyond noise"
    if search.max_nodes is not None and len(state.nodes) >= search.max_nodes:
        return 0, f"search.max_nodes={search.max_nodes} reached"
    rest = search.n_candidates if search.max_nodes is None else search.max_nodes - len(state.nodes)
    return min(search.n_candidates, rest), ""


def spent_budget(experiment: Experiment, state: State) -> str:
    """Why no paid call may be made any more; empty where one may."""
    spent = state.spent
    used = {"max_calls": spent.calls, "max_tokens": spent.input_tokens + spent.output_tokens, "max_usd": spent.usd}
    for name, value in used.items():
        limit = getattr(experiment.search, name)
        if limit is not None and value >= limit:
            return f"search.{name}={limit:.12g} spent; raise it to go on, or go on free with --proposer rules"
    return ""

"""An iteration: what is trained, what the proposer is asked next, and how many nodes there may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.config.ranges import derive_seed
from flyjax.search.confirmation import search_limit
from flyjax.search.journal.state import CONFIRMATION, Node, State
from flyjax.search.policy.measures import best_node, iterations_without_improvement
from flyjax.search.policy.ucb import score
from flyjax.search.proposals.types import ROOT, Context
from flyjax.search.run.user_files import pending_input


def n_seeds(experiment: Experiment, is_root: bool) -> int:
    """Trainings per node; a block's root has two at least, so that their spread measures the noise."""
    return max(2, experiment.training.n_seeds) if is_root else experiment.training.n_seeds


def root_config(experiment: Experiment) -> dict[str, Any]:
    """The baseline: the config file's whole training section."""
    return experiment.training.model_dump(mode="json")


def block_simulation(experiment: Experiment, block: int) -> dict[str, Any]:
    """The simulation `search.simulations` gives a block (cyclically), or the base one."""
    base, listed = experiment.simulation.model_dump(mode="json"), experiment.search.simulations
    return {**base, **(listed[(block - 1) % len(listed)] if listed else {})}


def circuit_text(simulation: Mapping[str, Any]) -> str:
    """What a simulation section is of: the fly of an extent, or a recording or connectome of one's own."""
    rings = simulation["extent"]
    eye = f"extent {rings} ({3 * rings * (rings + 1) + 1} columns)"
    if own := simulation.get("recording"):
        return f"recording {Path(own).name}"
    return f"connectome {Path(own).name}, {eye}" if (own := simulation.get("connectome")) else eye


@dataclass(frozen=True)
class IterationPlan:
    """What `evaluate` trains. A run that resumes inside an iteration gives the same plan again."""

    number: int
    block: int
    iter_in_block: int
    simulation: dict[str, Any]  # the simulation section of this block
    nodes: tuple[Node, ...]  # ids, training sections (`config`), seeds
    done: tuple[int, ...] = ()  # nodes whose result is in the journal already: another result of theirs is ignored
    kind: str = ""  # "confirmation" of the best settings on fresh seeds


def pending_plan(state: State) -> IterationPlan:
    """The plan of the iteration in training."""
    confirming, now = state.confirming, state.pending
    if confirming is not None:
        number, block, place, kind = confirming.number, confirming.block, 0, CONFIRMATION
        nodes = tuple(confirming.nodes.values())
    else:
        assert now is not None
        number, block, place, kind = now.number, now.block, now.iter_in_block, ""
        nodes = tuple(state.nodes[i] for i in now.nodes)
    done = tuple(n.id for n in nodes if n.status != "running")
    simulation = state.blocks[block].simulation
    if "data_path" in simulation:
        # The folder of the videos today: it may have moved since the block began.
        simulation = {**simulation, "data_path": state.experiment["simulation"]["data_path"]}
    return IterationPlan(number, block, place, simulation, nodes, done, kind)


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
    reserved = " (a part for the confirmation)" if search.confirm_share else ""
    if newest is not None and at_block_end(experiment, state) and newest.block >= search.n_blocks:
        return 0, f"{newest.block} blocks done"  # n_blocks may be less by now
    if search.max_wall_s is not None:
        expected, until = newest.wall_s if newest else 0.0, search.max_wall_s / (1 + search.confirm_share)
        if wall_s >= until:
            return 0, f"search.max_wall_s={search.max_wall_s:g} reached{reserved}"
        if wall_s + expected > until:
            why = f"after {wall_s:.0f} s the next iteration would take about {expected:.0f} s more"
            return 0, f"search.max_wall_s={search.max_wall_s:g}{reserved}: {why}"
    if search.target is not None and best is not None and score(best) >= search.target:
        return 0, f"search.target={search.target:g} reached by node {best.id} ({search.objective} {score(best):.3f})"
    if search.patience is not None and (idle := iterations_without_improvement(state)) >= search.patience:
        return 0, f"search.patience={search.patience}: {idle} iterations without an improvement beyond noise"
    limit = search_limit(experiment, len(state.all_nodes) - len(state.nodes))
    if limit is not None and len(state.nodes) >= limit:
        return 0, f"search.max_nodes={search.max_nodes} reached{reserved}"
    return min(search.n_candidates, search.n_candidates if limit is None else limit - len(state.nodes)), ""


def next_context(
    experiment: Experiment,
    state: State,
    run_dir: Path,
    stimuli: tuple[str, ...],
    n_nodes: int,
    protocol: str | None = None,
) -> Context:
    """The context of the next step.

    **Arguments:**

    - `stimuli`: those that proposers may choose from.
    - `n_nodes`: how many nodes the next iteration may have (`next_nodes`).
    - `protocol`: its text, of a run that has not begun.
    """
    newest = state.iteration
    opens = newest is None or at_block_end(experiment, state)
    return Context(
        experiment=experiment,
        state=state,
        protocol=state.protocol if protocol is None else protocol,
        block=newest.block if newest else 1,
        iter_in_block=newest.iter_in_block if newest else 0,
        n_iter_block=experiment.search.n_iter_block,
        new_nodes=newest.nodes if newest else (),
        n_proposals=max(0, n_nodes - 1) if opens else n_nodes,
        next_opens_block=opens and n_nodes > 0,
        available_stimuli=stimuli,
        run_dir=run_dir,
        user_input=pending_input(run_dir, state),
    )


def planned_iteration(experiment: Experiment, state: State, step: dict[str, Any], limit: int) -> dict[str, Any]:
    """The fields of iteration_started for the newest `step`, with `limit` nodes at most."""
    opens, newest = step["opens_block"], state.iteration
    first = max((n.id for n in state.all_nodes), default=0) + 1
    root = {
        "parent": ROOT, "changes": {}, "config": root_config(experiment), "strategy": ROOT, "hypothesis": "",
        "parent_rule": "a block begins: UCB file empty -> parent=root",
    }  # fmt: skip
    nodes = []
    for node, entry in enumerate(([root] * opens + step["proposals"])[:limit], first):
        count = n_seeds(experiment, is_root=entry["strategy"] == ROOT)
        seeds = [derive_seed(experiment.search.seed, node, index) for index in range(count)]
        nodes.append({"node": node, **entry, "seeds": seeds})
    return {
        "iteration": state.number + 1,
        "block": step["block"] + at_block_end(experiment, state),
        "iter_in_block": 1 if opens or newest is None else newest.iter_in_block + 1,
        "simulation": step["simulation"],
        "nodes": nodes,
    }

"""The confirmation of a search: after its end the few best settings are trained again, on seeds no node has used.

The best of many noisy results is too good on average (the winner's curse). The confirmation measures by how much. Its
trainings are no nodes of the search: neither UCB nor a measure, choice or proposer sees them.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from flyjax.config import Experiment
from flyjax.config.ranges import derive_seed
from flyjax.search.journal.state import CONFIRMATION, Node, State, objective_metric
from flyjax.search.policy.measures import noise_estimate
from flyjax.search.policy.run_map import run_map
from flyjax.utils.metric_names import limits

LEVEL = 0.9  # of the intervals
Z = 1.645  # standard deviations below the mean of a map: the end of such an interval


def confirmation_size(experiment: Experiment, n_nodes: int) -> int:
    """Nodes of the confirmation of a search of `n_nodes` nodes; at least one where there is any."""
    share = experiment.search.confirm_share
    return max(1, round(share * n_nodes)) if share and n_nodes else 0


def search_limit(experiment: Experiment, n_confirmed: int) -> int | None:
    """Nodes that `search.max_nodes` leaves to the search itself, `n_confirmed` being those of earlier confirmations."""
    limit = experiment.search.max_nodes
    if limit is None:
        return None
    fitting = (n for n in range(limit, 0, -1) if n + confirmation_size(experiment, n) <= limit - n_confirmed)
    return next(fitting, 1)


def _setting(node: Node) -> tuple:
    return tuple(sorted(node.config.items()))


def _settings(state: State, block: int) -> list[list[Node]]:
    """The trained nodes with the simulation of a block, by configuration; those without any result are left out."""
    simulation = state.blocks[block].simulation
    groups: dict[tuple, list[Node]] = {}
    for node in state.nodes.values():
        if node.status != "running" and state.blocks[node.block].simulation == simulation:
            groups.setdefault(_setting(node), []).append(node)
    return [nodes for nodes in groups.values() if any(n.reward is not None for n in nodes)]


def _values(nodes: list[Node]) -> np.ndarray:
    """The objective of every training; a node that failed counts 0, or the worst of the others below that."""
    known = [v for n in nodes for v in n.values]
    failed = sum(len(n.seeds) for n in nodes if not n.values)
    return np.array(known + [min([0.0, *known])] * failed)


def _deviation(state: State, block: int) -> tuple[float | None, int]:
    """The standard deviation of a single training by the repetitions of the search, and its degrees of freedom."""
    floor, freedom = noise_estimate(state, block)
    per_node = state.experiment.get("training", {}).get("n_seeds", 1)
    return None if floor is None else floor * math.sqrt(per_node), freedom


def ranked(state: State, block: int) -> tuple[list[tuple[list[Node], float]], str]:
    """The settings trained in the simulation of a block by descending lower bound, and where the bound is from.

    It is the bound of the map where that has skill, else the mean minus the standard error of the mean.
    """
    groups, found = _settings(state, block), run_map(state, block)
    if found is not None and not found.problem and groups:
        inside = all(span.contains(n[0].config[k]) for n in groups for k, span in found.space.ranges.items())
        if inside:
            expected = found.predict([nodes[0].config for nodes in groups])
            lower = expected.mean - Z * expected.deviation
            return _descending(groups, lower.tolist()), "lower 90 % bound of the map"
    noise = _deviation(state, block)[0] or 0.0
    bounds = [float(v.mean() - noise / math.sqrt(len(v))) for v in map(_values, groups)]
    return _descending(groups, bounds), "mean of its trainings minus the standard error"


def _descending(groups: list[list[Node]], bounds: list[float]) -> list[tuple[list[Node], float]]:
    return sorted(zip(groups, bounds), key=lambda pair: (-pair[1], pair[0][0].id))


def planned_confirmation(experiment: Experiment, state: State, wall_s: float) -> dict[str, Any] | None:
    """The fields of iteration_started for the confirmation at the end of the search.

    None where there is none: it is turned off or done, nothing was trained, or no node or time is left.
    """
    number, newest, search = state.number + 1, state.iteration, experiment.search
    if newest is None or number in state.confirmations:
        return None
    size, used = confirmation_size(experiment, len(state.nodes)), state.all_nodes
    if search.max_nodes is not None:
        size = min(size, search.max_nodes - len(used))
    if search.max_wall_s is not None and newest.wall_s > 0:
        size = min(size, int((search.max_wall_s - wall_s) * len(newest.nodes) / newest.wall_s))
    best, source = ranked(state, newest.block) if size > 0 else ([], "")
    least = limits(objective_metric(state.objective))[0]
    # As many settings as repetitions of each.
    best = best[: math.isqrt(max(size, 0))]
    if not best:
        return None
    nodes, first = [], used[-1].id + 1
    for k in range(size):
        same, bound = best[k % len(best)]
        seeds = [derive_seed(search.seed, first + k, index) for index in range(experiment.training.n_seeds)]
        nodes.append(
            {
                "node": first + k, "parent": same[-1].id, "changes": {}, "config": same[-1].config, "seeds": seeds,
                "strategy": CONFIRMATION, "parent_rule": f"{source}: {max(least, bound):.3f}",
            }
        )  # fmt: skip
    return {
        "kind": CONFIRMATION, "iteration": number, "block": newest.block, "iter_in_block": 0,
        "simulation": state.blocks[newest.block].simulation, "nodes": nodes,
    }  # fmt: skip


# --- what it found ---


@dataclass(frozen=True)
class Confirmed:
    """A setting that was trained again.

    **Attributes:**

    - `node`: its newest node of the search.
    - `repeated`: the nodes of the confirmation.
    - `best_single`, `n_search`: the best single training of the search with this setting, and how many there were.
    - `mean`, `n`, `deviation`: of the trainings on fresh seeds; `deviation` is None for a single one.
    - `half_width`: of the 90 % interval of the mean (Student's t, the spread pooled over the settings); None where
      no setting was trained twice.
    - `limits`: between which values the objective lies.
    """

    node: Node
    repeated: tuple[int, ...]
    best_single: float
    n_search: int
    mean: float
    n: int
    deviation: float | None
    half_width: float | None
    limits: tuple[float, float]

    @property
    def bound(self) -> float:
        """The lower bound by which settings are ranked, also where it lies outside the limits of the objective."""
        return self.mean - (self.half_width or 0.0)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 90 % interval of the mean on fresh seeds.

        Student's t does not know the limits of the objective; a mean of values within them lies within them.
        """
        if self.half_width is None:
            return None
        least, most = self.limits
        return max(least, self.mean - self.half_width), min(most, self.mean + self.half_width)

    @property
    def winners_curse(self) -> float:
        """What the best single training of the search promised too much."""
        return self.best_single - self.mean

    @property
    def winners_curse_interval(self) -> tuple[float, float] | None:
        """Its 90 % interval, that of the mean."""
        if self.interval is None:
            return None
        low, high = self.interval
        return self.best_single - high, self.best_single - low


def confirmed(state: State) -> list[Confirmed]:
    """The settings of the newest confirmation by descending lower bound; the first one is recommended.

    Empty before its trainings are done, and where there was none.
    """
    if not state.confirmations or state.confirming is not None:
        return []
    newest = state.confirmations[max(state.confirmations)]
    groups: dict[tuple, list[Node]] = {}
    for node in newest.nodes.values():
        groups.setdefault(_setting(node), []).append(node)
    fresh = [_values(nodes) for nodes in groups.values()]
    freedom = sum(len(v) - 1 for v in fresh)
    deviation: float | None = None
    if freedom:
        deviation = math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in fresh) / freedom)
    else:
        deviation, freedom = _deviation(state, newest.block)
    searched = {_setting(nodes[0]): nodes for nodes in _settings(state, newest.block)}
    out, within = [], limits(objective_metric(state.objective))
    for (setting, nodes), values in zip(groups.items(), fresh):
        before = [n for n in searched[setting] if n.id < nodes[0].id]
        single, n = _values(before), len(values)
        half = None if deviation is None else float(stdtrit(freedom, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
        spread = float(values.std(ddof=1)) if n > 1 else None
        repeated = tuple(node.id for node in nodes)
        best, mean = float(single.max()), float(values.mean())
        out.append(Confirmed(before[-1], repeated, best, len(single), mean, n, spread, half, within))
    return sorted(out, key=lambda c: (-c.bound, c.node.id))


def describe(found: Confirmed, metric: str) -> str:
    """A confirmed setting in one line."""
    mean, curse = (
        "" if ends is None else f" ({ends[0]:{sign}.3f} to {ends[1]:{sign}.3f})"
        for ends, sign in ((found.interval, ""), (found.winners_curse_interval, "+"))
    )
    spread = "" if found.deviation is None else f", std {found.deviation:.3f}"
    trainings = "training" if found.n_search == 1 else "trainings"
    return (
        f"setting of node {found.node.id}: {metric} on fresh seeds {found.mean:.3f}{mean}, n={found.n}{spread}, "
        f"best of {found.n_search} {trainings} in the search {found.best_single:.3f}, "
        f"winner's curse {found.winners_curse:+.3f}{curse}"
    )


def summary_lines(state: State, metric: str) -> list[str]:
    """What the confirmation found; its first setting is the recommended one. Empty without one."""
    found = confirmed(state)
    if not found:
        return []
    best = f"recommended: the setting of node {found[0].node.id}, which has the best lower 90 % bound on fresh seeds"
    return [*(describe(one, metric) for one in found), best]
